"""One lint and type configuration, the same here and in CI."""

import subprocess
import sys

import pytest
from conftest import ROOT, first


@pytest.mark.parametrize(
    "command", first(2, [("ruff", "check", "."), ("ruff", "format", "--check", "."), ("mypy",)]), ids=" ".join
)
def test_it_is_clean(command: tuple[str, ...]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
