"""docs/checkpoints.md is true: its code makes the files, and inspect prints what stands there."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, export_in

DOCS = (ROOT / "docs" / "checkpoints.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(
    r"```python\n(.*?)```.*?vgg-export inspect (\S+)\n.*?```text\n(.*?)```", DOCS, re.DOTALL
)


def without_versions(text: str) -> str:
    """The text with other programs' versions taken out."""
    return re.sub(r"Keras [0-9.]+|version [0-9]+", "VERSION", text)


@pytest.mark.release
@pytest.mark.parametrize(("code", "file", "said"), EXAMPLES, ids=[file for _, file, _ in EXAMPLES])
def test_inspect_prints_what_the_docs_show(code: str, file: str, said: str, tmp_path: Path) -> None:
    making = [
        sys.executable,
        "-W",
        "ignore",
        "-c",
        f"import os\nos.environ['KERAS_BACKEND'] = 'torch'\n{code}",
    ]
    subprocess.run(making, cwd=tmp_path, check=True, capture_output=True, timeout=300)
    done = export_in(tmp_path, "inspect", file)
    assert done.returncode == 0, done.stderr
    assert without_versions(done.stdout) == without_versions(said)


def test_there_are_three_examples() -> None:
    assert [Path(file).suffix for _, file, _ in EXAMPLES] == [".pth", ".keras", ".onnx"]
