"""Whether layers that unknown code runs can run in the order in which they were made."""

import itertools
from collections.abc import Iterator, Sequence

from vgg_export.core.errors import CheckpointError

from . import module_layers
from .module_layers import ACTIVATION, CONV, EXPORT, LINEAR, NORM, NORMALIZE, POOL, WHOLE_POOL, Leaf, role

_HOW = f"which is in code that is not in the file: {EXPORT}"
# a state dict tells norms by names and widths, and ReLU is assumed there and said; pools it does not tell
_OR_STATE_DICT = (
    ". A state dict, torch.save(model.state_dict(), FILE), is read too where the network is a VGG"
)


def ensure_runs(made: Sequence[Leaf], leaves: Sequence[Leaf], *, in_own: bool) -> None:
    """Make sure that layers which unknown code runs can run where they stand.

    Args:
        made: the layers in the order in which they were made.
        leaves: these, with each activation in its place.
        in_own: unknown code runs some of the layers, or containers of them.

    Raises:
        CheckpointError: a layer cannot stand where it was made.
    """
    _ensure_normalised_first(made)
    if in_own:
        _ensure_no_gate(made)
    _ensure_one_behind_each(made)
    _ensure_logits_last(leaves)
    _ensure_order(leaves)


def _slots(leaves: Sequence[Leaf]) -> Iterator[list[Leaf]]:
    """The layers behind each layer with weights, up to the next one."""
    starts = [k for k, one in enumerate(leaves) if role(one) in (CONV, LINEAR)]
    for start, end in itertools.pairwise([*starts, len(leaves)]):
        yield list(leaves[start + 1 : end])


def _ensure_normalised_first(leaves: Sequence[Leaf]) -> None:
    """Make sure that the tensors of a normalisation belong to the front of the network.

    Raises:
        CheckpointError: they do not.
    """
    first = next(k for k, one in enumerate(leaves) if role(one) in (CONV, LINEAR))
    for one in leaves[first:]:
        if one.stub.name == NORMALIZE and one.owner is not None:
            raise CheckpointError(
                f"{one.path} belong to a part that is not the first; expected the normalisation of the input:"
                f" {EXPORT}"
            )


def _ensure_no_gate(leaves: Sequence[Leaf]) -> None:
    """Make sure that nothing behind a global pool makes factors for the maps before it, as
    squeeze-and-excitation does. 1x1 convolutions that give the logits may follow it.

    Raises:
        CheckpointError: something looks so.
    """
    k = next((k for k, one in enumerate(leaves) if role(one) == WHOLE_POOL and _is_global(one)), None)
    behind = leaves[k + 1 :] if k is not None else []
    weighted = [one for one in behind if role(one) in (CONV, LINEAR)]
    convs = [one for one in weighted if role(one) == CONV]
    are_logits = weighted == convs and all(one.pair("kernel_size") == (1, 1) for one in convs)
    if k is not None and ((convs and not are_logits) or _is_gate(behind)):
        raise CheckpointError(
            f"{(convs or weighted)[0].shown} stands behind {leaves[k].shown}, as in squeeze-and-excitation,"
            f" whose result multiplies maps; expected a chain: if it is one, {EXPORT}"
        )


def _is_global(leaf: Leaf) -> bool:
    return leaf.get("output_size", 1) in (1, (1, 1), [1, 1])


def _is_gate(behind: Sequence[Leaf]) -> bool:
    """Whether layers with as many outputs as inputs end in a sigmoid, and others with weights follow."""
    weighted = [k for k, one in enumerate(behind) if role(one) in (CONV, LINEAR)]
    for k, one in enumerate(behind):
        before = [behind[i] for i in weighted if i < k]
        is_sigmoid = role(one) == ACTIVATION and "igmoid" in one.kind
        if is_sigmoid and before and weighted[-1] > k and _inputs(before[0]) == _outputs(before[-1]):
            return True
    return False


def _inputs(leaf: Leaf) -> object:
    return leaf.get("in_channels" if role(leaf) == CONV else "in_features")


def _outputs(leaf: Leaf) -> object:
    return leaf.get("out_channels" if role(leaf) == CONV else "out_features")


def _ensure_one_behind_each(leaves: Sequence[Leaf]) -> None:
    """Make sure that no pools or batch norms of one class were made in a row, as of one that makes all its
    convolutions first. An average pool may follow the last of several max-pools.

    Raises:
        CheckpointError: two were.
    """
    pooled = False
    for slot in _slots(leaves):
        for wanted in (POOL, NORM):
            own = [one for one in slot if role(one) == wanted and one.owner is not None]
            for first, second in itertools.pairwise(own):
                if first.kind != second.kind and (pooled or wanted == NORM):
                    continue
                raise CheckpointError(
                    f"{first.shown} and {second.shown} were made in a row, so they run behind different"
                    f" layers, {_HOW}{_OR_STATE_DICT if wanted == NORM else ''}"
                )
        pooled = pooled or any(role(one) == POOL for one in slot)


def _ensure_logits_last(leaves: Sequence[Leaf]) -> None:
    """Make sure that no activation was made behind the last fully connected layer, which gives the logits.

    Raises:
        CheckpointError: one was. A sigmoid or softmax belongs there.
    """
    weighted = [k for k, one in enumerate(leaves) if role(one) in (CONV, LINEAR)]
    if role(leaves[weighted[-1]]) != LINEAR:
        return
    for one in leaves[weighted[-1] + 1 :]:
        if one.owner is not None and role(one) == ACTIVATION and not _is_output(one):
            raise CheckpointError(
                f"{one.shown} was made behind the last fully connected layer, which gives the logits, so it"
                f" runs elsewhere, {_HOW}{_OR_STATE_DICT}"
            )


def _is_output(leaf: Leaf) -> bool:
    return module_layers.is_output(leaf) or module_layers.activation_of(leaf) == "sigmoid"


def _ensure_order(leaves: Sequence[Leaf]) -> None:
    """Make sure that layers which unknown code runs can run where they stand.

    Raises:
        CheckpointError: one stands before all convolutions, a global pool before some, or no pool stands
            between them, because a function pools.
    """
    convs = [k for k, one in enumerate(leaves) if role(one) == CONV]
    for k, one in enumerate(leaves):
        too_early = role(one) in (ACTIVATION, POOL) and k < min(convs, default=0)
        if one.owner is not None and (too_early or (role(one) == WHOLE_POOL and k < max(convs, default=0))):
            raise CheckpointError(
                f"{one.shown} was made before the convolutions that it must follow, and where it runs is in"
                f" code that is not in the file: {EXPORT}"
            )
    shrinks = any(role(one) == POOL for one in leaves) or any(
        max(leaves[k].pair("stride", 1)) > 1 for k in convs
    )
    if (
        not shrinks
        and len(convs) > 1
        and any(one.owner is not None and one.stub.name != NORMALIZE for one in leaves)
    ):
        raise CheckpointError(
            f"its {len(convs)} convolutions have no pool between them: a function that pools, as in"
            f" max_pool2d(x, 2), is in code that is not in the file; {EXPORT}"
        )
