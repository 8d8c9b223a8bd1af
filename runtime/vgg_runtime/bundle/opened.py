"""An opened bundle: the object that measuring, serving and checking a bundle share."""

import dataclasses
import functools
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Self

from . import manifest
from .manifest import FileEntry, Manifest


@dataclasses.dataclass(frozen=True)
class Bundle:
    """The folder of a bundle and its manifest. The class names are read on first use."""

    folder: Path
    manifest: Manifest

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Open the bundle in ``folder``.

        Raises:
            BundleError: there is no bundle, or it cannot be read, is damaged, or has another schema.
        """
        return cls(folder, manifest.read(folder))

    @functools.cached_property
    def labels(self) -> tuple[str, ...]:
        """Class names, in the order of the logits.

        Raises:
            BundleError: their file cannot be read.
        """
        return manifest.read_labels(self.folder, self.manifest)

    def using(self, changed: Manifest) -> Self:
        """The same bundle with another manifest, e.g. one in which other builds come first."""
        return dataclasses.replace(self, manifest=changed)

    def check(self, entries: Iterable[FileEntry], on_file: Callable[[FileEntry], None] | None = None) -> None:
        """Compare files with the manifest, then read the class names.

        Raises:
            BundleError: a file cannot be read or differs; the first one is named.
        """
        manifest.verify(self.folder, entries, on_file)
        _ = self.labels
