"""The device's command line as a user runs it."""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

from conftest import ROOT

QUICK = ("--budget", "0.2", "--rounds", "1")  # each round is a process of its own for each variant


def compare(
    *arguments: str | Path,
    bundle: Path | None = None,
    cwd: Path = ROOT,
    limit_bytes: int | None = None,
    **extra: str,
) -> subprocess.CompletedProcess[str]:
    """Run ``compare.py`` of a bundle, or the checkout's; never a traceback. ``limit_bytes``: of its address
    space, for real."""

    def limit() -> None:
        assert limit_bytes is not None
        resource.setrlimit(resource.RLIMIT_AS, (limit_bytes, limit_bytes))

    launcher = bundle / "runtime/compare.py" if bundle else ROOT / "runtime/compare.py"
    # what is said is not folded, unless a test asks for a width
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"COLUMNS": "1000"} | extra
    done = subprocess.run(
        [sys.executable, str(launcher), *map(str, arguments)],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        preexec_fn=None if limit_bytes is None else limit,
    )
    assert "Traceback" not in done.stderr + done.stdout
    return done


def rows_of(
    bundle: Path, result: Path, *arguments: str | Path, limit_bytes: int | None = None
) -> tuple[int, dict[str, dict[str, Any]]]:
    """The exit code of ``compare``, and the rows by variant of the result that it wrote."""
    done = compare("--json", result, *arguments, bundle=bundle, limit_bytes=limit_bytes)
    return done.returncode, {row["variant"]: row for row in json.loads(result.read_text())["variants"]}
