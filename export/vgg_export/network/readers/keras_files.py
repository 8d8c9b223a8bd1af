"""Reads networks from Keras files: .keras, and HDF5 files of model.save. Neither Keras nor TensorFlow is
needed, and no code in a file is run."""

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vgg_export.core.errors import CheckpointError
from vgg_export.network.assemble import Assembled
from vgg_export.network.provenance import ASSUMED, CONVENTION, FILE, Origins
from vgg_runtime.text import printable

from . import file_kinds, keras_config, keras_store, tracked
from .found import Found
from .keras_config import Step
from .keras_layers import Layers
from .keras_store import Store
from .tracked import Tracked

_PRETRAINED = re.compile(r"block1_conv1")  # the first layer of Keras' own VGG
_SHAPES = ("batch_shape", "batch_input_shape")


def read(path: Path) -> Found:
    """The network in a Keras file.

    Raises:
        CheckpointError: the file is damaged, has no layers beside its weights, or is no chain of layers that
            this program knows; the message names the first that is not. h5py is not installed.
    """
    kind = "a Keras model (.keras)" if file_kinds.is_zip(path) else "an HDF5 file"
    try:
        with keras_store.opened(path) as store:
            return _found(store)
    except CheckpointError as error:
        raise CheckpointError(f"{path} is {kind}: {error}") from error
    except Exception as error:  # a damaged file can raise any error, with a message for programmers
        raise CheckpointError(
            f"{path} is {kind} that cannot be read ({type(error).__name__}:"
            f" {printable(str(error), 100)}); it may be damaged: fetch it again, or {keras_store.SAVE}"
        ) from error


def _found(store: Store) -> Found:
    steps = list(keras_config.steps(store.config))
    size = _size(store.config, steps)

    def walk(px: int) -> Assembled:
        layers = Layers(store, chain := Tracked(size.channels, (px, px)))
        for step in steps:
            layers.add(step)
        return chain.finish()

    network, px = (walk(size.px), size.px) if size.px else tracked.sized(walk)
    pretrained = any(_PRETRAINED.search(step.name) for step in steps)
    base = tracked.from_keras(px, size.channels, pretrained=pretrained)
    base = dataclasses.replace(base, resize_px=max(px, size.before_crop), resize=size.resize or base.resize)
    origins = Origins(
        px=FILE if size.px else ASSUMED,
        channels=FILE,
        resize=FILE if size.resize else CONVENTION,
        normalize=ASSUMED,
        activations=FILE,
    )
    spec, origins = tracked.prepared(network, base, origins)
    output, origins = tracked.output_of(network, origins)
    kind = "a Keras model (.keras" if store.archived else "a Keras model (HDF5"
    return Found(f"{kind}, Keras {store.version or 'of an old version'})", network, spec, output, origins)


@dataclasses.dataclass(frozen=True)
class _Size:
    """The size in pixels, None where the file leaves it open, and the number of channels. ``resize``: what
    the model itself does to pictures of other sizes; ``before_crop``: the size before its crop, 0 without
    one."""

    px: int | None
    channels: int
    resize: str | None
    before_crop: int


def _size(model: Any, steps: Sequence[Step]) -> _Size:
    shape = _input_shape(model, steps)
    channels = tracked.ensure_channels(int(shape[2] or 0) or 3)
    px, resize, before = _square(shape[0], shape[1]), None, 0
    for step in steps:
        if step.kind == "Resizing":
            px = _square(step.config.get("height"), step.config.get("width"))
            resize = "squash"
            if step.config.get("crop_to_aspect_ratio"):
                resize = "crop"
            elif step.config.get("pad_to_aspect_ratio"):
                resize = "pad"
        elif step.kind in ("CenterCrop", "RandomCrop"):
            before = px or 0
            px = _square(step.config.get("height"), step.config.get("width"))
        elif step.kind in ("Conv2D", "Dense"):
            break
    return _Size(px, channels, resize, before)


def _square(rows: Any, columns: Any) -> int | None:
    if rows and columns and rows != columns:
        raise CheckpointError(f"it takes pictures of {rows} x {columns} px; expected square ones")
    return int(rows or columns or 0) or None


def _input_shape(model: Any, steps: Sequence[Step]) -> list[Any]:
    """(rows, columns, channels) of the input, None where one is open. Of several that layers say, the first
    that says most."""
    config = model.get("config")
    found = [step.config.get(key) for step in steps for key in _SHAPES if step.config.get(key)]
    found += [step.built for step in steps if step.built]
    if isinstance(config, dict) and config.get("build_input_shape"):
        found.append(config["build_input_shape"])
    shapes = [list(shape)[1:] for shape in found if isinstance(shape, list | tuple)]
    if not shapes:
        raise CheckpointError(
            f"it does not say the shape of its input; give it one (keras.Input) and {keras_store.SAVE}"
        )
    if len(shapes[0]) != 3:
        raise CheckpointError(
            f"its input has {len(shapes[0])} dimensions; expected 3: rows, columns and channels of a picture"
        )
    return max((shape for shape in shapes[:2] if len(shape) == 3), key=lambda shape: sum(map(bool, shape)))
