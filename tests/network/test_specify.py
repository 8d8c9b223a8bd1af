"""What the user tells is applied to what a file says, and contradictions are refused."""

import json
import math
from pathlib import Path

import pytest
import torch
from conftest import small_checkpoint, small_torchvision_vgg
from torch import nn

from vgg_export.core.errors import CheckpointError, OptionsError
from vgg_export.network import chain, inspection, modules, specify, weights
from vgg_export.network import checkpoint as checkpoints
from vgg_export.network.provenance import ASSUMED, CONVENTION, FILE, TOLD, Origins
from vgg_export.network.readers import reading
from vgg_export.options import InputOptions, WeightsOptions
from vgg_runtime.bundle.input_spec import InputSpec, for_input


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """A state dict of a torchvision VGG of 7 classes."""
    torch.manual_seed(0)
    torch.save(small_torchvision_vgg("vgg11", False).state_dict(), tmp_path / "vgg.pth")
    return tmp_path / "vgg.pth"


def test_what_nobody_said_is_a_sentence_with_the_flag_that_says_otherwise(state: Path) -> None:
    found = specify.specify(reading.read(state), InputOptions())
    assert (found.chain.input, found.chain.output) == (for_input(224), "softmax")
    assert found.origins == Origins(CONVENTION, FILE, ASSUMED, ASSUMED, ASSUMED, ASSUMED)
    assert found.assumed == (
        "ReLU behind every layer but the last (else --activation)",
        "an input of 224 x 224 px (else --input-px)",
        "RGB with ImageNet's mean and standard deviation (else --normalize and --bgr)",
        "the shorter side to 256 px, the middle 224 px taken (else --resize)",
        "one class per picture (softmax) (else --output-kind)",
    )


def test_what_is_told_is_no_longer_assumed(state: Path) -> None:
    told = InputOptions(
        input_px=128,
        resize="squash",
        normalize="half",
        bgr=True,
        activation="leaky_relu(0.2)",
        output_kind="multi-label",
    )
    found = specify.specify(reading.read(state), told)
    half = (0.5, 0.5, 0.5)
    assert found.chain.input == InputSpec(128, 128, half, half, 3, "squash", bgr=True)
    assert found.chain.output == "multi-label"
    assert [site.layer.activation for site in found.chain.linears] == ["leaky_relu(0.2)"] * 2 + ["none"]
    assert {site.layer.activation for site in found.chain.convs} == {"relu"}
    assert found.origins == Origins(TOLD, FILE, TOLD, TOLD, TOLD, TOLD)
    assert found.assumed == ()


def test_a_head_is_pooled_to_where_the_told_size_needs_it(tmp_path: Path) -> None:
    """At the size that fits there is no pool; at another one the head's own number of places says which."""
    network = nn.Module()
    network.features = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(),
        nn.MaxPool2d(2),
    )  # fmt: skip
    network.classifier = nn.Linear(16 * 25, 3)
    torch.save(network.state_dict(), tmp_path / "c.pth")
    found = reading.read(tmp_path / "c.pth")
    fitting = specify.specify(found, InputOptions())
    assert fitting.chain.input.px == 20
    assert not any(isinstance(layer, chain.AdaptiveAvgPool) for layer in fitting.chain.layers)
    pooled = specify.specify(found, InputOptions(input_px=32))
    assert chain.AdaptiveAvgPool((5, 5)) in pooled.chain.layers
    assert any("adaptive average pool to 5 x 5 before the head" in words for words in pooled.assumed)
    x = torch.randn(2, 3, 32, 32)
    maps = nn.functional.adaptive_avg_pool2d(network.get_submodule("features")(x), 5).flatten(1)
    rebuilt = modules.build(pooled.chain)
    rebuilt.load_state_dict(pooled.tensors)
    torch.testing.assert_close(rebuilt(x), network.get_submodule("classifier")(maps))
    with pytest.raises(CheckpointError, match=r"do not fit an input of 3 px \(20 to 23 px fit\)"):
        specify._fitting(found.network, 3)


def test_no_padding_is_assumed_where_only_so_the_told_size_fits(tmp_path: Path) -> None:
    network = nn.Sequential(
        *(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 16, 3), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(16 * 36, 5)),
    )
    torch.save(network.state_dict(), tmp_path / "c.pth")
    found = reading.read(tmp_path / "c.pth")
    padded = specify.specify(found, InputOptions())
    assert padded.chain.input.px == 24
    assert "padding that keeps the size of the maps" in padded.assumed
    bare = specify.specify(found, InputOptions(input_px=32))
    assert "convolutions without padding, since only so 32 px fit" in bare.assumed
    assert not any("keeps the size" in words or "--input-px" in words for words in bare.assumed)
    rebuilt = modules.build(bare.chain)
    rebuilt.load_state_dict(bare.tensors)
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(rebuilt(x), network(x))


def test_what_contradicts_the_file_is_refused(state: Path, tmp_path: Path) -> None:
    with pytest.raises(OptionsError, match="--channels 1 contradicts the file, whose first layer reads 3"):
        specify.specify(reading.read(state), InputOptions(channels=1))
    with pytest.raises(CheckpointError, match="7 outputs is said to be 'sigmoid'"):
        specify.specify(reading.read(state), InputOptions(output_kind="sigmoid"))
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(4 * 900, 2))
    torch.save(network, tmp_path / "whole.pt")
    with pytest.raises(OptionsError, match="--activation relu contradicts the file, which says its activ"):
        specify.specify(reading.read(tmp_path / "whole.pt"), InputOptions(activation="relu"))
    own = small_checkpoint().chain
    with pytest.raises(OptionsError, match="--activation contradicts the checkpoint"):
        specify.retold(own, InputOptions(activation="tanh"))
    with pytest.raises(OptionsError, match="--channels 1 contradicts the file, whose first layer reads 3"):
        specify.retold(own, InputOptions(channels=1))
    with pytest.raises(OptionsError, match="cannot take what was told: the map is only 1 x 1"):
        specify.retold(own, InputOptions(input_px=16))


def test_a_checkpoint_of_our_own_takes_another_input(tmp_path: Path) -> None:
    checkpoints.save(small_checkpoint(), tmp_path / "own.safetensors")
    told = InputOptions(input_px=96, normalize="unit")
    found = weights.resolve(WeightsOptions(str(tmp_path / "own.safetensors"), input=told))
    assert found.chain.input == InputSpec(110, 96, (0.0,) * 3, (1.0,) * 3)
    assert found.provenance.history[-1] == "taken to 96 px"
    assert found.model()(torch.zeros(1, 3, 96, 96)).shape == (1, 7)


def test_inspect_tells_every_layer_and_where_each_part_is_from(state: Path) -> None:
    told = InputOptions(normalize="caffe")
    found = inspection.inspect(weights.find(WeightsOptions(str(state), input=told)))
    assert (found.family, found.classes, found.labels_from) == ("vgg11", 7, None)
    network = small_torchvision_vgg("vgg11", False)
    assert found.parameters == sum(p.numel() for p in network.parameters())
    assert sum(line.parameters for line in found.layers) == found.parameters
    assert sum(line.macs for line in found.layers) == found.macs
    assert (found.origins.normalize, found.input.bgr) == (TOLD, True)
    named = {line.name: (line.in_file, line.what, line.gives) for line in found.layers if line.name}
    assert named["conv1_1"] == ("features.0", "3x3 convolution", (16, 224, 224))
    assert named["fc3"] == ("classifier.6", "fully connected", (7,))
    assert inspection.Inspection.from_json(json.loads(json.dumps(found.to_json()))) == found
    lines = list(inspection.text("vgg.pth", found))
    assert lines[0].startswith("vgg.pth is a PyTorch state dict")
    (values,) = [line for line in lines if line.startswith("  values")]
    assert values.split()[-3:] == ["you", "--normalize,", "--bgr"]
    assert max(map(len, lines)) <= 115


def test_inspect_shows_the_two_parts_of_a_factorised_layer(tmp_path: Path) -> None:
    whole = small_checkpoint()
    made = whole.chain.with_factors({"conv3_1": chain.Factor("spatial", 4)})
    tensors = {name: torch.zeros(shape) for name, shape in made.tensor_shapes().items()}
    checkpoints.save(checkpoints.Checkpoint(made, tensors, whole.labels, whole.provenance), tmp_path / "f")
    found = inspection.inspect(weights.find(WeightsOptions(str(tmp_path / "f"))))
    (line,) = [line for line in found.layers if line.name == "conv3_1"]
    assert line.what == "3x3 convolution, in two (spatial, 4)"
    reads, gives = whole.chain.site("conv3_1").channels, line.gives[0]
    assert line.parameters == 3 * 4 * reads + 3 * 4 * gives + gives
    assert line.macs == (line.parameters - gives) * math.prod(line.gives[1:])


def test_a_file_that_is_missing_or_a_folder_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(
        CheckpointError, match=r"there is no file .*; expected a file of PyTorch, Keras or ONNX"
    ):
        reading.read(tmp_path / "none.pth")
    with pytest.raises(CheckpointError, match="is a folder"):
        reading.read(tmp_path)
