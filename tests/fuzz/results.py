"""Result documents as --diff, --boards and the report read them."""

import json
import tempfile
from pathlib import Path

from fuzz import documents
from fuzz.fuzzing import Target, changed_json

from vgg_runtime import result
from vgg_runtime.errors import RuntimeInputError
from vgg_runtime.report import diff, page, tables


def seeds() -> list[bytes]:
    whole = documents.measured()
    bare = {"schema": 1, "device": {}, "bundle": {}, "variants": []}
    return [json.dumps(one).encode() for one in (whole, whole | {"images": []}, bare)]


def feed(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "result.json"
        path.write_bytes(data)
        found = diff.read(path)
    good = result.Result.from_json(documents.measured())
    for before, after in ((found, good), (good, found), (found, found)):
        shown(diff.diff(before, after, 80))
    shown(diff.boards([found, good], 80))
    shown(tables.whole(found, 80, top5=True))
    shown(tables.whole(found))
    if not found.images:
        page.report(found, [])


def shown(words: str) -> None:
    words.encode(errors="backslashreplace")  # as a console prints


TARGET = Target(seeds, feed, (RuntimeInputError,), changed_json)
