"""Bundles changed as a wrong build would."""

import json
from pathlib import Path

from conftest import reseal


def rewrite(folder: Path, path: str, content: bytes) -> None:
    """Replace a file of a bundle and make the manifest agree, as a wrong build would."""
    import hashlib

    (folder / path).write_bytes(content)
    entry = json.dumps({"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)})
    data = json.loads((folder / "manifest.json").read_text())

    def visit(node: object) -> None:
        if isinstance(node, dict):
            if node.get("path") == path:
                node.update(json.loads(entry))
            for value in node.values():
                visit(value)
        elif isinstance(node, list):
            for value in node:
                visit(value)

    visit(data)
    reseal(folder, **data)
