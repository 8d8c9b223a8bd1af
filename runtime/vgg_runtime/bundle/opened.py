"""An opened bundle: what measures, serves and examines it is handed this one thing."""

import dataclasses
import functools
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Self

from . import manifest
from .manifest import FileEntry, Manifest


@dataclasses.dataclass(frozen=True)
class Bundle:
    """The folder of a bundle and its manifest; the class names are read when they are first asked for."""

    folder: Path
    manifest: Manifest

    @classmethod
    def read(cls, folder: Path) -> Self:
        """The bundle in ``folder``.

        Raises:
            BundleError: none there, not readable, damaged, or written by a newer vgg-export.
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
        """The same bundle with its manifest changed, as where other builds of its variants come first."""
        return dataclasses.replace(self, manifest=changed)

    def check(self, entries: Iterable[FileEntry], on_file: Callable[[FileEntry], None] | None = None) -> None:
        """Compare files with the manifest, and read the class names, which are among them.

        Raises:
            BundleError: the first file that is missing or differs.
        """
        manifest.verify(self.folder, entries, on_file)
        _ = self.labels
