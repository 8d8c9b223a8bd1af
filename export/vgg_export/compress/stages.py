"""What a number of a stage means in a network. A stage is the convolutions between two pools."""

from vgg_export.core.errors import OptionsError
from vgg_export.network.chain import Chain
from vgg_export.options import CLASSIFIER


def first_of(chain: Chain, asked: int | None, flag: str, last: int = 2) -> int:
    """The number of the first stage that an option means: the one that was asked for, or the first of the
    ``last`` ones.

    Raises:
        OptionsError: the network has fewer stages.
    """
    count = len(chain.stages)
    if asked is None:
        return max(1, count - last + 1)
    if asked > count:
        raise OptionsError(
            f"{flag} asks for stage {asked}, but the network has {count} stage{'' if count == 1 else 's'}"
            f" between its pools; expected a number from 1 to {count}"
        )
    return asked


def names_from(chain: Chain, first: int) -> tuple[str, ...]:
    """The convolutions from stage ``first`` on, without one that gives the logits: its filters are the
    classes."""
    last = chain.sites[-1].name
    return tuple(name for stage in chain.stages[first - 1 :] for name in stage if name != last)


def first_trained(chain: Chain, asked: int | str | None, last: int = 2) -> str:
    """The name of the first layer whose weights are trained: the first of a stage or of the ``last`` ones, or
    for the word ``CLASSIFIER`` the first fully connected layer, or the last convolution where there is none.

    Raises:
        OptionsError: the network has fewer stages.
    """
    if asked == CLASSIFIER:
        return (chain.linears or chain.sites[-1:])[0].name
    if not chain.stages:
        return chain.sites[0].name
    number = first_of(chain, None if isinstance(asked, str) else asked, "--train-from", last)
    return chain.stages[number - 1][0]
