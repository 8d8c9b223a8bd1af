"""The device's command line as a user runs it."""

import os
import subprocess
import sys
from pathlib import Path

from conftest import ROOT

QUICK = ("--budget", "0.2", "--rounds", "1")  # each round is a process of its own for each variant


def compare(
    *arguments: str | Path, bundle: Path | None = None, cwd: Path = ROOT, **extra: str
) -> subprocess.CompletedProcess[str]:
    launcher = bundle / "runtime/compare.py" if bundle else ROOT / "runtime/compare.py"
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | extra
    done = subprocess.run(
        [sys.executable, str(launcher), *map(str, arguments)],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert "Traceback" not in done.stderr + done.stdout
    return done
