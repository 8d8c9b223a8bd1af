"""An opened bundle: the object that measuring, serving and checking a bundle share."""

import dataclasses
import functools
from collections.abc import Callable, Collection, Iterable
from pathlib import Path, PurePosixPath
from typing import Self

from vgg_runtime.errors import BundleError

from . import graph_files, manifest
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
        """Compare files with the manifest, make sure that the graphs among them read no others, then read the
        class names.

        Raises:
            BundleError: a file cannot be read or differs, or a graph reads one that is not among ``entries``;
                the first one is named.
        """
        checked = list(entries)
        manifest.verify(self.folder, checked, on_file)
        for entry in checked:
            self.ensure_reads_only(entry, checked)
        _ = self.labels

    def ensure_reads_only(self, entry: FileEntry, checked: Collection[FileEntry]) -> None:
        """Make sure that ``entry``, if it is a graph, keeps its tensors in itself and the files ``checked``.

        Raises:
            BundleError: it names another file, which onnxruntime would read without its sha256.
        """
        if entry not in {build.model for variant in self.manifest.variants for build in variant.builds}:
            return
        known = {PurePosixPath(one.path) for one in checked}
        path = self.folder / entry.path
        try:
            named = graph_files.named_in(path)
        except (OSError, ValueError):
            return  # onnxruntime does not read it either, and that is said with its variant
        for name in sorted(named):
            if PurePosixPath(entry.path).parent / name not in known:
                raise BundleError(
                    f"{path} reads weights from {name!r}, which the manifest does not name as its weights; do"
                    " not use this bundle"
                )
