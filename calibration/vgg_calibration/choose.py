"""Chooses images by their content, so that the same pictures are chosen whatever they are called and wherever
they lie."""

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

# Augmented copies of one photograph that annotation tools export: name_jpg.rf.<hash>.jpg (Roboflow).
_AUGMENTED = re.compile(r"^(?P<source>.+)\.rf\.[0-9a-f]{16,}$")


def content_hash(path: Path) -> str:
    """sha256 of the file's bytes, hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def source_of(path: Path, sha256: str) -> str:
    """The source of a picture: the original's name where it is an augmented copy, else its own ``sha256``.

    Pictures of one source must not be split between fitting and testing.
    """
    match = _AUGMENTED.match(path.stem)
    return match["source"] if match else sha256


def spread(sources: Sequence[str], seed: int) -> list[float]:
    """A number in [0, 1) per source, from its hash and the seed alone: equal sources get equal numbers."""
    return [
        int(hashlib.sha256(f"{seed}:{source}".encode()).hexdigest()[:13], 16) / 16**13 for source in sources
    ]


def limit(items: Sequence[T], sources: Sequence[str], count: int, seed: int) -> list[T]:
    """At most ``count`` of the items, chosen by hash, in their given order."""
    chosen = sorted(range(len(items)), key=lambda k: (spread([sources[k]], seed)[0], k))[:count]
    return [items[k] for k in sorted(chosen)]
