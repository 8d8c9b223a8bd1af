"""Makes and counts folders of pictures; for tests of how folders are read."""

from collections.abc import Iterable
from pathlib import Path

from vgg_export.data.folders import Layout


def laid_out(root: Path, files: Iterable[str]) -> Path:
    """Files of the same content; "x/*4" makes four pictures, a name that ends in "/" an empty folder."""
    for name in files:
        path = root / name
        if name.endswith("/"):
            path.mkdir(parents=True, exist_ok=True)
            continue
        many = path.name.startswith("*")
        path.parent.mkdir(parents=True, exist_ok=True)
        for k in range(int(path.name[1:])) if many else [0]:
            one = path.with_name(f"{k}.jpg") if many else path
            one.write_bytes(b"a picture")
    return root


def classes_of(layout: Layout) -> dict[str, dict[str, int]]:
    """The number of pictures of each part and class; "-" where they have none."""
    found: dict[str, dict[str, int]] = {}
    for part, pictures in layout.parts.items():
        counts = found.setdefault(part, {})
        for picture in pictures:
            counts[picture.folder or "-"] = counts.get(picture.folder or "-", 0) + 1
    return found
