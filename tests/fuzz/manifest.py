"""A bundle's manifest, and what a comparison does with it before a model is opened."""

import json
import tempfile
from pathlib import Path

from fuzz import documents
from fuzz.fuzzing import Target, changed_json

from vgg_runtime.board.targets import TARGETS
from vgg_runtime.bundle import builds, manifest
from vgg_runtime.bundle.opened import Bundle
from vgg_runtime.errors import RuntimeInputError
from vgg_runtime.measure import measure
from vgg_runtime.measure.running import Options
from vgg_runtime.report import tables


def seeds() -> list[bytes]:
    whole = documents.manifest()
    older = whole | {"schema": 2, "searched": None}
    return [json.dumps(one).encode() for one in (whole, older)] + [
        b"{}",
        b"[" * 2000,
        b"[1" + b"0" * 5000 + b"]",
    ]


def feed(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "labels.txt").write_text("cat\ndog\n")
        path = folder / manifest.FILE_NAME
        path.write_bytes(data)
        try:
            read(folder)
        except RuntimeInputError:
            path.write_bytes(sealed(data))
            read(folder)


def sealed(data: bytes) -> bytes:
    """The document with its own hash, where it is one."""
    try:
        return json.dumps(manifest.seal(json.loads(data))).encode()
    except (ValueError, RecursionError, TypeError, AttributeError):
        return data


def read(folder: Path) -> None:
    found = manifest.read(folder)
    bundle = Bundle(folder, builds.for_core(found, TARGETS["pi4"]))
    for variant in bundle.manifest.variants:
        builds.mode(variant.build, builds.AUTO, 10**9)
    result = measure.skeleton(bundle, [measure.Shown(Path("a.jpg"), 0)], Options(1))
    tables.whole(result, 80)
    json.dumps(result.to_json(), allow_nan=False)
    json.dumps(found.to_json())
    bundle.manifest.chosen("baseline")
    bundle.check(bundle.manifest.all_files())


TARGET = Target(seeds, feed, (RuntimeInputError,), changed_json)
