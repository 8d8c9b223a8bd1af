"""The WordNet ids of ImageNet's classes."""

import importlib.resources

from vgg_export.network.provenance import Provenance


def wordnet_ids() -> tuple[str, ...]:
    """ImageNet's 1000 WordNet ids in the order of the classes."""
    assets = importlib.resources.files("vgg_export").joinpath("assets")
    return tuple(assets.joinpath("imagenet_wnids.txt").read_text(encoding="ascii").split())


def ids_for(source: Provenance) -> tuple[str, ...] | None:
    """The WordNet ids of a checkpoint's classes, None when they are not ImageNet's."""
    return wordnet_ids() if source.wordnet else None
