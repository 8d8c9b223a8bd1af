"""The WordNet ids of ImageNet's classes."""

import importlib.resources
import logging

log = logging.getLogger(__name__)


def wordnet_ids() -> tuple[str, ...]:
    """ImageNet's 1000 WordNet ids in the order of the classes."""
    text = (
        importlib.resources.files("vgg_export")
        .joinpath("assets", "imagenet_wnids.txt")
        .read_text(encoding="ascii")
    )
    return tuple(text.split())
