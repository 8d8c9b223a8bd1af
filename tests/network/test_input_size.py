import dataclasses

import pytest
import torch
from conftest import first, small_checkpoint, small_torchvision_vgg

from vgg_export.core.errors import CheckFailedError, NothingToGainError, OptionsError
from vgg_export.network import adaptive_pool, chain, input_size
from vgg_export.network import checkpoint as checkpoints
from vgg_export.network.provenance import Provenance
from vgg_runtime.bundle.input_spec import InputSpec, for_input


@pytest.mark.parametrize("px", first(2, [64, 256, 96, 160, 192]))
@pytest.mark.parametrize("family", first(1, ["vgg11", "vgg19"]))
def test_folding_is_torchvisions_adaptive_pool(family: str, px: int) -> None:
    original = small_torchvision_vgg(family, False)
    folded = input_size.fold(small_checkpoint(family), px)
    assert folded.chain.input.px == px
    x = torch.randn(2, 3, px, px)
    with torch.inference_mode():
        expected, found = original(x), folded.model()(x)
    assert float((found - expected).abs().max() / expected.abs().max()) < 1e-5


def test_at_224_px_the_pool_is_the_identity(checkpoint: checkpoints.Checkpoint) -> None:
    assert torch.equal(adaptive_pool.pooling_matrix((7, 7), (7, 7)), torch.eye(49, dtype=torch.float64))
    torch.testing.assert_close(
        input_size.fold(checkpoint, 224).tensors["fc1.weight"], checkpoint.tensors["fc1.weight"]
    )


def test_vgg19_at_160_px_has_the_known_size() -> None:
    layers = tuple(
        layer for layer in chain.full_width("vgg19").layers if not isinstance(layer, chain.AdaptiveAvgPool)
    )
    folded = chain.Chain(for_input(160), layers)
    assert folded.parameters() / 1e6 == pytest.approx(93.3, abs=0.1)
    assert folded.macs() / 1e9 == pytest.approx(10.0, abs=0.1)


def test_folding_twice_is_refused(checkpoint: checkpoints.Checkpoint) -> None:
    with pytest.raises(OptionsError, match="takes 160 px and no other size: fc1 reads the map as it is"):
        input_size.fold(input_size.fold(checkpoint, 160), 96)


def test_the_check_notices_a_wrong_matrix(checkpoint: checkpoints.Checkpoint) -> None:
    folded = input_size.fold(checkpoint, 160)
    wrong = folded.tensors | {"fc1.weight": folded.tensors["fc1.weight"].flip(1)}
    with pytest.raises(CheckFailedError, match="logits differ by"):
        input_size.ensure_same_as_pooled(checkpoint, dataclasses.replace(folded, tensors=wrong))


def _chain(px: int, *before_flatten: chain.Layer, linear: int = 3) -> chain.Chain:
    layers = (chain.Conv("conv1_1", 4), chain.MaxPool(), chain.Conv("conv2_1", 6), chain.MaxPool())
    last = chain.Linear("fc1", linear, activation="none")
    return chain.Chain(InputSpec(px, px), (*layers, *before_flatten, chain.Flatten(), last))


def _drawn(network: chain.Chain) -> checkpoints.Checkpoint:
    torch.manual_seed(0)
    tensors = {name: torch.randn(shape) for name, shape in network.tensor_shapes().items()}
    labels = tuple(str(k) for k in range(network.classes))
    return checkpoints.Checkpoint(network, tensors, labels, Provenance("file", "x"))


@pytest.mark.parametrize(("size", "px"), [((3, 3), 28), ((5, 4), 24), ((7, 7), 12), ((3, 5), 52)])
def test_any_adaptive_pool_is_folded(size: tuple[int, int], px: int) -> None:
    original = _drawn(_chain(px, chain.AdaptiveAvgPool(size)))
    folded = adaptive_pool.without_pool(original)
    assert not any(isinstance(layer, chain.AdaptiveAvgPool) for layer in folded.chain.layers)
    assert folded.tensors["fc1.weight"].shape == (3, 6 * (px // 4) ** 2)
    x = torch.randn(2, 3, px, px)
    with torch.inference_mode():
        torch.testing.assert_close(folded.model()(x), original.model()(x), rtol=1e-4, atol=1e-4)


def test_an_even_or_global_pool_stays() -> None:
    for size in ((1, 1), (2, 2), (4, 4)):
        original = _drawn(_chain(32, chain.AdaptiveAvgPool(size)))
        assert adaptive_pool.without_pool(original) is original
    moved = input_size.fold(_drawn(_chain(32, chain.AdaptiveAvgPool((1, 1)))), 20)
    assert moved.chain.input.px == 20
    assert moved.provenance.history == ("taken to 20 px",)


def test_a_smaller_input_is_five_sevenths_in_steps_of_the_stride() -> None:
    vgg = chain.full_width("vgg11")
    assert [input_size.smaller_px(vgg.at(px), None) for px in (224, 128, 96, 64)] == [160, 96, 64, 32]
    assert input_size.smaller_px(vgg, 96) == 96
    with pytest.raises(OptionsError, match="must be below the network's own 224 px, found 224"):
        input_size.smaller_px(vgg, 224)
    with pytest.raises(OptionsError, match="cannot take 31 px: the map is only 1 x 1"):
        input_size.smaller_px(vgg, 31)
    with pytest.raises(NothingToGainError, match="no smaller input: the network takes 32 px, and one step"):
        input_size.smaller_px(vgg.at(32), None)


def test_without_a_pool_no_other_size_is_possible() -> None:
    whole = _chain(32)
    with pytest.raises(NothingToGainError, match="takes 32 px and no other size: fc1 reads the map as it is"):
        input_size.smaller_px(whole, None)
    with pytest.raises(OptionsError, match="takes 32 px and no other size"):
        input_size.smaller_px(whole, 24)
