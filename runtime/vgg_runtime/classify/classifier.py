"""A variant of a bundle as a call: a picture in, its classes out."""

import dataclasses
import os
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, Self, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image

from vgg_runtime.board import device
from vgg_runtime.bundle import builds, outputs, self_check
from vgg_runtime.bundle.ahead import ahead
from vgg_runtime.bundle.input_spec import InputSpec
from vgg_runtime.bundle.manifest import Variant
from vgg_runtime.bundle.opened import Bundle
from vgg_runtime.bundle.preprocess import from_pillow, open_image, to_tensor
from vgg_runtime.bundle.session import Model
from vgg_runtime.errors import ImageError, ModelError, RuntimeInputError
from vgg_runtime.measure import tuning
from vgg_runtime.measure.answers import failure

from . import choice

Bytes: TypeAlias = bytes | bytearray | memoryview
Picture: TypeAlias = str | os.PathLike[str] | Bytes | Image.Image | npt.NDArray[Any]
TOP = 5


@dataclasses.dataclass(frozen=True)
class Prediction:
    """A label, its probability 0..1, and its index in the order of the logits."""

    label: str
    probability: float
    index: int


class Answer(NamedTuple):
    """The predictions for one picture, most probable first. ``prepare_ms`` is decoding and resizing."""

    predictions: list[Prediction]
    prepare_ms: float
    model_ms: float


class Classifier:
    """One variant of a bundle, loaded.

    Several threads may call it at once; they share the model's ``threads``. It is a context manager;
    ``close`` gives its memory back.

    The model runs in this process. What ``compare.py`` can survive, because there each model has a process of
    its own, ends this one: too little memory, or an instruction that the core lacks.
    """

    def __init__(
        self,
        bundle: str | os.PathLike[str] = "artifacts",
        variant: str | None = None,
        threads: int | None = None,
        memory: str = builds.AUTO,
    ) -> None:
        """Open a bundle, compare the files of the variant with their hashes, load it, and replay the recorded
        inputs.

        Args:
            bundle: the folder that ``vgg-export all`` or ``ship`` wrote.
            variant: None: the one that the bundle recommends for this core (``choice.recommended``).
            threads: of onnxruntime; None: the cores that this process may use.
            memory: ``fast``, ``lean`` or ``auto``, as ``compare.py --memory``.

        Raises:
            BundleError: there is no bundle, it is damaged, has no such variant, or recommends none.
            RuntimeInputError: ``threads`` or ``memory`` is none of what they can be.
            ModelError: the variant cannot be loaded, or its logits are not those recorded.
        """
        if memory not in builds.MEMORY_MODES:
            raise RuntimeInputError(f"memory is one of {', '.join(builds.MEMORY_MODES)}, found {memory!r}")
        if threads is not None and not 1 <= threads <= 1024:
            raise RuntimeInputError(f"threads is 1 to 1024 or None, found {threads!r}")
        folder = Path(bundle)
        opened = Bundle.read(folder)
        opened = opened.using(tuning.for_here(opened.manifest, None))
        chosen = choice.recommended(opened.manifest) if variant is None else opened.manifest.variant(variant)
        opened.check([opened.manifest.labels, opened.manifest.expected, *chosen.build.files])
        self.bundle, self.variant = folder, chosen.id
        self.notices = opened.manifest.notices
        self.labels, self.input_px = opened.labels, chosen.preprocessing.px
        self.output, self._input = opened.manifest.output, chosen.preprocessing
        self._model: Model | None = _loaded(opened, chosen, threads or device.usable_cores(), memory)

    def classify(self, picture: Picture, top: int = TOP) -> list[Prediction]:
        """The ``top`` most probable labels of a picture, most probable first. Of a multi-label network also
        every other one above 0.5.

        Args:
            picture: a file's path or content; an RGB or other Pillow image; or uint8 [height, width, 3] in
                the order red, green, blue, or [height, width] in grey.

        Raises:
            ImageError: it cannot be read as a picture.
            ModelError: the model failed.
        """
        return self.answer(picture, top).predictions

    def classify_many(self, pictures: Iterable[Picture], top: int = TOP) -> Iterator[list[Prediction]]:
        """The labels of each picture, in order. A thread decodes the next one while the model runs.

        Raises:
            ImageError: a picture cannot be read; those before it have been answered.
            ModelError: the model failed.
        """
        for answer in self.answers(pictures, top):
            if isinstance(answer, ImageError):
                raise answer
            yield answer.predictions

    def answer(self, picture: Picture, top: int = TOP) -> Answer:
        """``classify`` with the times that it took."""
        return self._run(*self._prepared(picture), _at_least_1(top))

    def answers(self, pictures: Iterable[Picture], top: int = TOP) -> Iterator[Answer | ImageError]:
        """``classify_many`` with the times, and with the error in place of an answer where a picture cannot
        be read. Decoding takes its time while the model runs on the picture before."""
        top = _at_least_1(top)
        for decoded in ahead(self._prepared, pictures):
            yield self._answered(decoded, top)

    def close(self) -> None:
        """Give the model's memory back. Later calls raise RuntimeInputError."""
        self._model = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _answered(
        self, decoded: Callable[[], tuple[npt.NDArray[np.float32], float]], top: int
    ) -> Answer | ImageError:
        try:
            tensor, prepare_ms = decoded()
        except ImageError as error:
            return error
        return self._run(tensor, prepare_ms, top)

    def _prepared(self, picture: Picture) -> tuple[npt.NDArray[np.float32], float]:
        """The tensor [1, channels, px, px] of a picture, and the ms that this took."""
        start = time.perf_counter()
        tensor = to_tensor(_image(picture, self._input), self._input)[None]
        return tensor, (time.perf_counter() - start) * 1e3

    def _run(self, tensor: npt.NDArray[np.float32], prepare_ms: float, top: int) -> Answer:
        model = self._model  # read once: another thread may close
        if model is None:
            raise RuntimeInputError("this classifier was closed; make a new one")
        start = time.perf_counter()
        try:
            logits = model(tensor)[0]
            model_ms = (time.perf_counter() - start) * 1e3
            found = outputs.predictions(logits, self.output, top)
        except Exception as error:  # whatever onnxruntime raises, with its message
            raise ModelError(f"{self.variant}: {failure(error)}") from error
        said = [Prediction(self.labels[index], probability, index) for index, probability in found]
        return Answer(said, prepare_ms, model_ms)


def _at_least_1(top: int) -> int:
    if top < 1:
        raise RuntimeInputError(f"top is at least 1, found {top}")
    return top


def _loaded(bundle: Bundle, variant: Variant, threads: int, memory: str) -> Model:
    """The model of a variant, after its self-check."""
    build = variant.build
    mode = builds.mode(build, memory, device.available_bytes())
    path = bundle.folder / bundle.manifest.expected.path
    inputs, expected = self_check.load_expected(path, build.id, variant.preprocessing.px)
    self_check.ensure_classes(expected, bundle.manifest.output, len(bundle.labels))
    try:
        model = Model(bundle.folder / build.model.path, builds.session_here(build, mode), threads)
        replayed = np.concatenate([model(inputs[k : k + 1]) for k in range(len(inputs))])
        self_check.ensure_classes(replayed, bundle.manifest.output, len(bundle.labels))
    except Exception as error:  # whatever onnxruntime raises, with its message
        raise ModelError(f"{variant.id}: {failure(error)}") from error
    if wrong := self_check.refusal(self_check.deviation(replayed, expected), variant.precision):
        raise ModelError(f"{variant.id}: {wrong}")
    return model


def _image(picture: Picture, spec: InputSpec) -> Image.Image:
    """A picture in any of its forms as an RGB image."""
    if isinstance(picture, Image.Image):
        return from_pillow(picture)
    if isinstance(picture, np.ndarray):
        return from_pillow(_of_array(picture))
    if isinstance(picture, bytes | bytearray | memoryview):
        return open_image(bytes(picture), spec)
    if isinstance(picture, str | os.PathLike):
        return open_image(Path(picture), spec)
    raise ImageError(
        f"a picture is a path, the bytes of a file, a Pillow image or a numpy array, found"
        f" {type(picture).__name__}"
    )


def _of_array(array: npt.NDArray[Any]) -> Image.Image:
    """uint8 [height, width, 3] or [height, width] as an image."""
    fits = array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 3)
    if array.dtype != np.uint8 or not fits or not array.size:
        raise ImageError(
            f"an array is uint8 [height, width, 3] in the order red, green, blue, or [height, width] in grey;"
            f" found {array.dtype} {list(array.shape)}"
        )
    return Image.fromarray(array)
