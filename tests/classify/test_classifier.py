"""The call for scripts, on real bundles: one made by the exporter, and drawn ones whose answers can be
computed by hand."""

import dataclasses
import io
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from conftest import CLASSES, ROOT, command_environment
from damage import rewrite
from drawn_bundles import Drawn, colours, draw
from PIL import Image

import vgg_runtime
from vgg_runtime import Classifier, Prediction
from vgg_runtime.board.targets import TARGETS
from vgg_runtime.bundle import manifest, outputs
from vgg_runtime.bundle.preprocess import load
from vgg_runtime.classify import choice
from vgg_runtime.errors import BundleError, ImageError, ModelError, RuntimeInputError
from vgg_runtime.result import Loss

PHOTO = ROOT / "calibration/images/cat.jpg"


@pytest.fixture(scope="module")
def baseline(bundle_folder: Path) -> Classifier:
    return Classifier(bundle_folder, "baseline")


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Drawn:
    return draw(tmp_path_factory.mktemp("drawn") / "artifacts", outputs.SOFTMAX)


def test_it_says_what_the_model_says(baseline: Classifier, bundle_folder: Path) -> None:
    (variant, *_) = manifest.read(bundle_folder).variants
    session = onnxruntime.InferenceSession(bundle_folder / variant.build.model.path)
    logits = session.run(None, {"input": load(PHOTO, variant.preprocessing)[None]})[0]
    shares = outputs.softmax(logits)[0]
    said = baseline.classify(PHOTO)
    assert [one.index for one in said] == list(np.argsort(-shares)[:5])
    assert [one.label for one in said] == [CLASSES[one.index] for one in said]
    assert [one.probability for one in said] == pytest.approx(sorted(shares)[::-1][:5], abs=1e-6)
    assert baseline.classify(PHOTO, top=1) == said[:1]
    assert isinstance(said[0], Prediction)


def test_a_picture_may_come_in_any_form(baseline: Classifier) -> None:
    content = PHOTO.read_bytes()
    said = baseline.classify(PHOTO)
    assert baseline.classify(str(PHOTO)) == said
    assert baseline.classify(content) == said
    assert baseline.classify(bytearray(content)) == said
    opened = Image.open(PHOTO)
    assert baseline.classify(opened) == said
    assert baseline.classify(np.asarray(opened)) == said
    grey = np.asarray(opened.convert("L"))
    assert baseline.classify(grey) == baseline.classify(opened.convert("L"))
    assert baseline.classify(grey) != said


def test_a_picture_that_pillow_opened_is_turned_upright(baseline: Classifier) -> None:
    image = Image.open(PHOTO).convert("RGB")
    exif = Image.Exif()
    exif[0x112] = 6
    buffer = io.BytesIO()
    image.save(buffer, "PNG", exif=exif)
    turned = image.transpose(Image.Transpose.ROTATE_270)
    assert baseline.classify(Image.open(buffer)) == baseline.classify(turned)
    assert baseline.classify(turned) != baseline.classify(image)


@pytest.mark.parametrize(
    ("picture", "said"),
    [
        (3, "a path, the bytes of a file, a Pillow image or a numpy array, found int"),
        (np.zeros((4, 4, 3), np.float32), r"found float32 \[4, 4, 3\]"),
        (np.zeros((3, 4, 4), np.uint8), r"found uint8 \[3, 4, 4\]"),
        (np.zeros((0, 4, 3), np.uint8), r"found uint8 \[0, 4, 3\]"),
        (b"not a picture", "is not a picture"),
        ("nowhere.jpg", "there is no file nowhere.jpg"),
    ],
)
def test_what_is_no_picture_is_an_error(baseline: Classifier, picture: object, said: str) -> None:
    with pytest.raises(ImageError, match=said):
        baseline.classify(picture)  # type: ignore[arg-type]


def test_many_pictures_are_answered_in_order(drawn: Drawn) -> None:
    wanted = colours(40)
    pictures = [np.full((20, 16, 3), colour, np.uint8) for colour in wanted]
    expected = drawn.logits("far", *wanted).argmax(axis=1)
    with Classifier(drawn.folder, "far") as classifier:
        said = [labels[0].index for labels in classifier.classify_many(iter(pictures))]
    assert said == list(expected)
    assert len(set(said)) > 1


def test_one_that_cannot_be_read_ends_many_after_those_before_it(drawn: Drawn) -> None:
    classifier = Classifier(drawn.folder, "far")
    answers = classifier.classify_many([np.zeros((9, 9, 3), np.uint8), b"?", np.zeros((9, 9, 3), np.uint8)])
    assert next(answers)[0].label in drawn.labels
    with pytest.raises(ImageError, match="is not a picture"):
        next(answers)
    kinds = [type(answer).__name__ for answer in classifier.answers([b"?", np.zeros((9, 9, 3), np.uint8)])]
    assert kinds == ["ImageError", "Answer"]
    assert list(classifier.classify_many([])) == []


def test_the_next_picture_is_decoded_while_the_model_runs(drawn: Drawn) -> None:
    """The decoder is asked for the second picture before the first answer is taken from the model."""
    order: list[str] = []
    asked = threading.Event()

    def pictures() -> Iterator[np.ndarray[Any, Any]]:
        yield np.zeros((9, 9, 3), np.uint8)
        order.append("second picture")
        asked.set()
        yield np.zeros((9, 9, 3), np.uint8)

    classifier = Classifier(drawn.folder, "far")
    whole = classifier._model
    assert whole is not None

    def model(batch: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        assert asked.wait(10)
        order.append("model")
        return whole(batch)

    classifier._model = model  # type: ignore[assignment]
    assert len(list(classifier.classify_many(pictures()))) == 2
    assert order == ["second picture", "model", "model"]


def test_several_threads_may_call_it(drawn: Drawn) -> None:
    wanted = colours(200)
    expected = list(drawn.logits("far", *wanted).argmax(axis=1))
    found: dict[int, int] = {}
    with Classifier(drawn.folder, "far", threads=1) as classifier:

        def work(part: int) -> None:
            for k in range(part, len(wanted), 4):
                found[k] = classifier.classify(np.full((9, 9, 3), wanted[k], np.uint8), 1)[0].index

        workers = [threading.Thread(target=work, args=(part,)) for part in range(4)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(30)
    assert [found[k] for k in range(len(wanted))] == expected


def test_labels_above_a_half_come_besides_the_top(tmp_path: Path) -> None:
    drawn = draw(tmp_path / "artifacts", outputs.MULTI_LABEL)
    colour = next(c for c in colours(500) if (drawn.logits("far", c) > 0).sum() >= 2)
    with Classifier(drawn.folder, "far") as classifier:
        said = classifier.classify(np.full((9, 9, 3), colour, np.uint8), top=1)
    logits = drawn.logits("far", colour)[0]
    assert {one.index for one in said} == set(np.flatnonzero(logits > 0))
    assert [one.probability for one in said] == pytest.approx(
        sorted(1 / (1 + np.exp(-logits[logits > 0])))[::-1]
    )


def test_a_closed_one_says_so(drawn: Drawn) -> None:
    classifier = Classifier(drawn.folder, "far")
    classifier.close()
    classifier.close()
    with pytest.raises(RuntimeInputError, match="was closed"):
        classifier.classify(np.zeros((9, 9, 3), np.uint8))


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"variant": "none"}, "there is no variant 'none'"),
        ({"variant": "baseline", "threads": 0}, "threads is 1 to 1024"),
        ({"variant": "baseline", "memory": "much"}, "memory is one of auto, fast, lean, found 'much'"),
        ({}, "recommends no variant .*42 test images are too few"),
    ],
)
def test_what_it_cannot_be_asked(bundle_folder: Path, asked: dict[str, object], said: str) -> None:
    with pytest.raises(RuntimeInputError, match=said):
        Classifier(bundle_folder, **asked)  # type: ignore[arg-type]


def test_top_is_at_least_one(baseline: Classifier) -> None:
    with pytest.raises(RuntimeInputError, match="top is at least 1, found 0"):
        baseline.classify(PHOTO, top=0)


def test_a_damaged_model_is_not_loaded(bundle_copy: Path) -> None:
    path = bundle_copy / "models/scaled.data"
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.raises(BundleError, match=r"scaled\.data differs from the manifest"):
        Classifier(bundle_copy, "scaled")
    Classifier(bundle_copy, "baseline").close()


def test_other_logits_than_those_recorded_are_an_error(bundle_copy: Path) -> None:
    with np.load(bundle_copy / "expected.npz") as archive:
        arrays = dict(archive)
    arrays["logits_scaled"] = arrays["logits_scaled"][:, ::-1]
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    rewrite(bundle_copy, "expected.npz", buffer.getvalue())
    with pytest.raises(ModelError, match="scaled: self-check failed"):
        Classifier(bundle_copy, "scaled")


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> manifest.Manifest:
    """A bundle with figures on 120 test pictures: ``close`` loses less than 3 points, ``far`` more, and has
    the least arithmetic."""
    drawn = draw(tmp_path_factory.mktemp("judged") / "artifacts", outputs.MULTI_LABEL)
    whole = manifest.read(drawn.folder)
    macs = {"baseline": 9, "close": 5, "far": 1}
    variants = tuple(dataclasses.replace(variant, macs=macs[variant.id]) for variant in whole.variants)
    return dataclasses.replace(whole, variants=variants, max_drop=3.0)


def test_without_a_name_it_takes_what_the_search_chose(judged: manifest.Manifest) -> None:
    close, far = (
        dataclasses.replace(
            judged, searched=manifest.Searched(name, Loss(0.0, 0.5, 120, 1.0, 360), ("close", "far"))
        )
        for name in ("close", "far")
    )
    assert choice.recommended(close).id == "close"
    assert choice.recommended(dataclasses.replace(far, max_drop=None)).id == "far"


def test_without_a_search_it_takes_the_least_arithmetic_within_the_loss(judged: manifest.Manifest) -> None:
    assert choice.recommended(judged).id == "close"
    assert choice.recommended(dataclasses.replace(judged, max_drop=100.0)).id == "far"
    several = dataclasses.replace(
        judged,
        variants=tuple(
            dataclasses.replace(v, precision="int8", macs=10) if v.id == "close" else v
            for v in judged.variants
        ),
    )
    assert choice.recommended(several, TARGETS["pi5"]).id == "close"  # a dot product makes up for a tenth
    assert choice.recommended(several, TARGETS["pi4"]).id == "baseline"


def test_the_call_is_loaded_when_it_is_asked_for() -> None:
    code = (
        "import sys, vgg_runtime; assert 'numpy' not in sys.modules; assert vgg_runtime.__version__;"
        " from vgg_runtime import Classifier, Prediction; assert 'numpy' in sys.modules;"
        " assert 'onnxruntime' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], env=command_environment(), check=True)
    with pytest.raises(AttributeError, match="has no attribute 'Classifer'"):
        _ = vgg_runtime.Classifer
