"""Models whose answers cannot be used: NaN for some pictures, or more of them than there are class names.
Each is the error of its own row; the others are measured, and every document is JSON."""

import io
import json
import re
from pathlib import Path

import numpy as np
import onnx
import pytest
from conftest import reseal
from damage import rewrite
from launch import QUICK, compare
from onnx import helper, numpy_helper
from PIL import Image

from vgg_runtime import records
from vgg_runtime.bundle import manifest, outputs, self_check
from vgg_runtime.bundle.session import Model
from vgg_runtime.classify.classifier import Classifier
from vgg_runtime.errors import ModelError

NO_NUMBERS = "the network answers with values that are no numbers (NaN or infinity)"
WIDE = "the bundle names 7 classes, and its network has 9 outputs (softmax)"


def network(px: int, classes: int, limit: float) -> onnx.ModelProto:
    """Answers sqrt(limit - v) per class, where v is the mean of a picture's normalised values, 1 to 10 % less
    for some classes: no number for a bright picture."""
    weight = np.full((3, classes), 1 / 3, np.float32) * np.linspace(0.9, 1, classes, dtype=np.float32)
    nodes = [
        helper.make_node("GlobalAveragePool", ["input"], ["by_channel"]),
        helper.make_node("Flatten", ["by_channel"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weight"], ["mean"]),
        helper.make_node("Sub", ["limit", "mean"], ["rest"]),
        helper.make_node("Sqrt", ["rest"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "odd",
        [helper.make_tensor_value_info("input", onnx.TensorProto.FLOAT, ["n", 3, px, px])],
        [helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["n", classes])],
        [
            numpy_helper.from_array(weight, "weight"),
            numpy_helper.from_array(np.array([limit], np.float32), "limit"),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def put(bundle: Path, classes: int) -> None:
    """Make ``scaled`` of ``bundle`` such a network, with its own answers as the recorded ones."""
    found = manifest.read(bundle)
    variant = found.variant("scaled")
    build = variant.build
    with np.load(bundle / found.expected.path) as archive:
        arrays = dict(archive)
    inputs = arrays[self_check.input_key(variant.preprocessing.px)]
    made = network(variant.preprocessing.px, classes, float(inputs.mean((1, 2, 3)).max()) + 0.05)
    rewrite(bundle, build.model.path, made.SerializeToString())
    logits = Model(bundle / build.model.path, build.sessions["fast"], 1)(inputs)
    assert np.isfinite(logits).all()
    arrays[self_check.logits_key(build.id)] = logits[:, : len(manifest.read_labels(bundle, found))]
    written = io.BytesIO()
    np.savez(written, **arrays)
    rewrite(bundle, found.expected.path, written.getvalue())
    document = json.loads((bundle / manifest.FILE_NAME).read_text())
    for one in document["variants"]:
        if one["id"] == "scaled":
            one["builds"] = [one["builds"][0] | {"weights": None, "targets": []}]
    reseal(bundle, **document)


@pytest.fixture
def white(tmp_path: Path) -> Path:
    path = tmp_path / "white.png"
    Image.new("RGB", (256, 256), "white").save(path)
    return path


@pytest.mark.parametrize(("classes", "said"), [(7, NO_NUMBERS), (9, WIDE)])
def test_its_row_alone_has_the_error(
    classes: int, said: str, bundle_copy: Path, white: Path, tmp_path: Path
) -> None:
    put(bundle_copy, classes)
    written = tmp_path / "r.json", tmp_path / "r.html"
    given = ("--variants", "baseline,scaled", "--image", white, "--json", written[0], "--html", written[1])
    done = compare(*given, *QUICK, "--bundle", bundle_copy)
    assert done.returncode == 1, done.stderr
    rows = {row["variant"]: row for row in records.parse(written[0].read_text())["variants"]}
    assert said in rows["scaled"]["error"]
    assert rows["scaled"]["predictions"] == []
    assert rows["baseline"]["error"] is None
    assert len(rows["baseline"]["predictions"]) == 1
    assert "scaled is recommended" not in done.stdout
    assert " nan" not in done.stdout
    assert "NaN," not in written[1].read_text()


@pytest.mark.parametrize(("classes", "said"), [(7, NO_NUMBERS), (9, WIDE)])
def test_a_call_refuses_it(classes: int, said: str, bundle_copy: Path, white: Path) -> None:
    put(bundle_copy, classes)
    with (
        pytest.raises(ModelError, match=re.escape(f"scaled: {said}")),
        Classifier(bundle_copy, "scaled") as it,
    ):
        it.classify(white)


@pytest.mark.parametrize("classes", [7, 9])
def test_a_stream_ends_with_a_sentence(classes: int, bundle_copy: Path, white: Path, tmp_path: Path) -> None:
    put(bundle_copy, classes)
    log, said = tmp_path / "l.json", {7: NO_NUMBERS, 9: WIDE}[classes]
    frames = tmp_path / "frames"
    frames.mkdir()
    white.rename(frames / "white.png")
    given = ("--live", "scaled", "--source", frames, "--frames", "3", "--json", log)
    done = compare(*given, "--bundle", bundle_copy)
    assert done.returncode == 1
    assert said in " ".join((done.stdout + done.stderr).split())
    records.parse(log.read_text())  # refuses what is no number of JSON


def test_what_is_no_number_is_no_prediction() -> None:
    for odd in (float("nan"), float("inf"), -float("inf")):
        logits = np.array([1, odd, 2], np.float32)
        for kind in (outputs.SOFTMAX, outputs.MULTI_LABEL):
            with pytest.raises(ValueError, match="no numbers"):
                outputs.predictions(logits, kind, 1)
