import dataclasses

import pytest
import torch
from conftest import small_checkpoint, small_torchvision_vgg

from vgg_export.core.errors import CheckFailedError, OptionsError
from vgg_export.network import chain, input_size
from vgg_export.network import checkpoint as checkpoints


@pytest.mark.parametrize("px", [64, 96, 160, 192, 256])
@pytest.mark.parametrize("family", ["vgg11", "vgg19"])
def test_folding_is_torchvisions_adaptive_pool(family: str, px: int) -> None:
    original = small_torchvision_vgg(family, False)
    folded = input_size.fold(small_checkpoint(family), px)
    assert folded.plan.input_px == px
    x = torch.randn(2, 3, px, px)
    with torch.inference_mode():
        expected, found = original(x), folded.model()(x)
    assert float((found - expected).abs().max() / expected.abs().max()) < 1e-5


def test_at_224_px_the_pool_is_the_identity(checkpoint: checkpoints.Checkpoint) -> None:
    assert torch.equal(input_size.pooling_matrix(7), torch.eye(49, dtype=torch.float64))
    torch.testing.assert_close(
        input_size.fold(checkpoint, 224).tensors["fc1.weight"], checkpoint.tensors["fc1.weight"]
    )


def test_vgg19_at_160_px_has_the_known_size() -> None:
    plan = dataclasses.replace(chain.full_width("vgg19"), input_px=160)
    assert plan.parameters() / 1e6 == pytest.approx(93.3, abs=0.1)
    assert plan.macs() / 1e9 == pytest.approx(10.0, abs=0.1)


def test_folding_twice_is_refused(checkpoint: checkpoints.Checkpoint) -> None:
    with pytest.raises(OptionsError, match="already takes 160 px"):
        input_size.fold(input_size.fold(checkpoint, 160), 96)


def test_the_check_notices_a_wrong_matrix(checkpoint: checkpoints.Checkpoint) -> None:
    folded = input_size.fold(checkpoint, 160)
    wrong = folded.tensors | {"fc1.weight": folded.tensors["fc1.weight"].flip(1)}
    with pytest.raises(CheckFailedError, match="logits differ by"):
        input_size.ensure_same_as_pooled(checkpoint, dataclasses.replace(folded, tensors=wrong))
