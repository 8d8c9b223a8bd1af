"""Recognises the state dicts of networks that are no chain by the names of their tensors."""

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from vgg_export.core.errors import CheckpointError
from vgg_runtime.text import printable

if TYPE_CHECKING:
    import torch

_BRANCHES = (
    "it has branches, which are not supported; expected a chain, where each layer reads the one before"
)
# A pattern of names, what such a file looks like, and why it cannot be read.
_SIGNS = (
    (r"lora_|\blora\b", "a network with LoRA adapters", "merge them into the weights, then save again"),
    (
        r"_packed_params|\b(?:zero_point|activation_post_process|fake_quant)|weight_quantizer",
        "a quantized network",
        "give the network as it was before quantization",
    ),
    (r"denselayer\d|denseblock", "a DenseNet", _BRANCHES),
    (
        r"downsample|shortcut|residual|res_?block|\bskip|\blayer\d+\.\d+\.conv\d",
        "a ResNet or another residual network",
        _BRANCHES,
    ),
    (r"\brbr_", "a RepVGG with parallel branches", f"{_BRANCHES}: merge the branches, then save again"),
    (
        r"\bse\.|_se_reduce|\bconv_dw\b|_depthwise_conv",
        "an EfficientNet, a MobileNet or another network with squeeze-and-excitation",
        _BRANCHES,
    ),
    (r"\bfire\d*\.|\.squeeze\.|\bexpand[13]x[13]", "a SqueezeNet", _BRANCHES),
    (r"\bMixed_\d|\binception|\bbranch_?\d", "an Inception network", _BRANCHES),
    (
        r"\bcls_token|\bpos_embed|\battn\b|\bqkv\b|\bself_attn|\b(?:self_)?attention",
        "a transformer or a network with attention",
        _BRANCHES,
    ),
    (r"\bweight_[ih]h_l\d", "a recurrent network", "this program reads chains of convolutions"),
)


def ensure_none(tensors: "Mapping[str, torch.Tensor]") -> None:
    """Make sure that no tensor has a name that only networks of another kind have.

    Raises:
        CheckpointError: one has; the message says what the file looks like and names the tensor.
    """
    for pattern, what, why in _SIGNS:
        if name := next((name for name in tensors if re.search(pattern, name)), None):
            shape = list(tensors[name].shape)
            raise CheckpointError(f"it looks like {what} ({printable(name, 60)} {shape}): {why}")
