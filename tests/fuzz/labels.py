"""Class names: --labels in its forms, and a bundle's labels.txt."""

import json
import tempfile
from pathlib import Path

from fuzz.fuzzing import Target

from vgg_export.core.errors import CheckpointError
from vgg_export.network.readers import class_names

NAMES = ("cat", "dog", "Ente é", "a, b")


def seeds() -> list[bytes]:
    documents = (
        list(NAMES),
        dict(enumerate(NAMES)),
        {name: k for k, name in enumerate(NAMES)},
        {"class_to_idx": {name: k for k, name in enumerate(NAMES)}},
        {"0": ["n01", "cat"], "1": ["n02", "dog"]},
    )
    texts = (
        "\n".join(NAMES),
        "0 cat\n1 dog\n",
        "name,id\ncat,0\ndog,1\n",
        "\ufeffcat\r\ndog\r\n",
        "[" * 3000,
    )
    return [json.dumps(one).encode() for one in documents] + [text.encode() for text in texts]


def feed(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as name:
        refused = 0
        for suffix in (".txt", ".json"):
            path = Path(name) / f"labels{suffix}"
            path.write_bytes(data)
            try:
                found = class_names.read(path)
                found.in_words().encode()
                assert all(isinstance(one, str) and one for one in found.names)
            except CheckpointError:
                refused += 1
    assert refused <= 2


TARGET = Target(seeds, feed, (CheckpointError,))
