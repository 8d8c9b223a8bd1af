import dataclasses
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from conftest import first, small_checkpoint, small_torchvision_vgg

from vgg_export.core import cache
from vgg_export.core.errors import CheckFailedError
from vgg_export.core.progress import Quiet
from vgg_export.graphs import audit, export, lowering
from vgg_export.network import chain, input_size
from vgg_export.network import checkpoint as checkpoints


@pytest.mark.parametrize("px", first(1, [160, 224]))
@pytest.mark.parametrize("family", first(1, chain.CONVS_PER_STAGE))
def test_the_exported_graph_is_torchvisions_network(family: str, px: int, tmp_path: Path) -> None:
    original = small_torchvision_vgg(family, False)
    checkpoint = input_size.fold(small_checkpoint(family), px)
    export.export(checkpoint, tmp_path / "m.onnx")
    convs = sum(chain.CONVS_PER_STAGE[family])
    expected = {"Conv": convs, "Gemm": 3, "MaxPool": 5, "Relu": convs + 2, "Reshape": 1}
    assert lowering.operators(checkpoint.chain) == expected
    assert audit.audit_exported(tmp_path / "m.onnx", expected) == expected
    assert export.ensure_parity(checkpoint, tmp_path / "m.onnx") < 1e-5
    session = ort.InferenceSession(tmp_path / "m.onnx")
    for batch in (1, 4):
        x = torch.randn(batch, 3, px, px)
        with torch.inference_mode():
            expected = original(x).numpy()
        found = session.run(["logits"], {"input": x.numpy()})[0]
        assert np.abs(found - expected).max() / np.abs(expected).max() < 1e-5


def test_fully_connected_weights_are_stored_transposed_and_nothing_tells_of_this_machine(
    saved: cache.Artifact, tmp_path: Path
) -> None:
    made = export.run(saved, tmp_path / "m.onnx", Quiet())
    exported = onnx.load(made.path)
    shapes = {t.name: tuple(t.dims) for t in exported.graph.initializer}
    assert shapes["fc1.weight"] == (32 * 49, 48)
    assert all(a.i == 0 for node in exported.graph.node for a in node.attribute if a.name == "transB")
    content = made.path.read_bytes()
    assert str(Path(torch.__file__).parent.parent).encode() not in content
    assert b"stack_trace" not in content


def test_the_sidecar_tells_what_later_stages_need(saved: cache.Artifact, tmp_path: Path) -> None:
    made = export.run(saved, tmp_path / "m.onnx", Quiet())
    again = cache.of(made.path)
    info = again.measured["model"]
    assert info["parameters"] == checkpoints.load(saved.path).chain.parameters()
    assert (info["precision"], info["preprocessing"]["px"]) == ("fp32", 224)
    assert again.measured["parity"] < export.TOLERANCE


def test_parity_notices_other_weights(checkpoint: checkpoints.Checkpoint, tmp_path: Path) -> None:
    export.export(checkpoint, tmp_path / "m.onnx")
    other = checkpoint.tensors | {"fc3.bias": checkpoint.tensors["fc3.bias"] + 0.1}
    with pytest.raises(CheckFailedError, match="logits differ from torch's"):
        export.ensure_parity(dataclasses.replace(checkpoint, tensors=other), tmp_path / "m.onnx")


def test_the_audit_notices_a_pooling_tail(tmp_path: Path) -> None:
    tail = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(4, 2)
    )
    torch.onnx.export(
        tail.eval(), (torch.zeros(1, 3, 32, 32),), tmp_path / "tail.onnx", dynamo=True, verbose=False
    )
    with pytest.raises(CheckFailedError, match="the exported graph holds"):
        audit.audit_exported(tmp_path / "tail.onnx", {"Conv": 1, "Gemm": 1, "Reshape": 1})


def test_the_audit_notices_an_invalid_graph(checkpoint: checkpoints.Checkpoint, tmp_path: Path) -> None:
    export.export(checkpoint, tmp_path / "m.onnx")
    broken = onnx.load(tmp_path / "m.onnx")
    broken.graph.node[0].input[0] = "nowhere"
    onnx.save(broken, tmp_path / "broken.onnx")
    with pytest.raises(CheckFailedError, match="not valid ONNX"):
        audit.audit_exported(tmp_path / "broken.onnx", lowering.operators(checkpoint.chain))
