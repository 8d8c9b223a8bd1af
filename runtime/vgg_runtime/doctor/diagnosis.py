"""``compare.py --doctor``: what this machine and this bundle have and lack before anything is measured.

The machine's checks need the standard library alone, so that they also answer where the requirements cannot
be installed (a 32-bit system has no onnxruntime). Every file is read below ``root``, so that a test can lay
out another board.
"""

import argparse
import dataclasses
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from vgg_runtime import output
from vgg_runtime.board import device
from vgg_runtime.errors import RuntimeInputError
from vgg_runtime.records import Record
from vgg_runtime.result import Device

from .finding import FAILS, INSTALL, OK, Check, Report, table
from .machine import machine

SCHEMA = 1


EXIT_OK, EXIT_FAILS, EXIT_INPUT = 0, 1, 2


@dataclasses.dataclass(frozen=True)
class Diagnosis(Record):
    """The doctor's document: what was found on the machine and in the bundle."""

    schema: int
    examined_at: str
    device: Device
    bundle: str
    checks: tuple[Check, ...]
    fails: int


def examine(folder: Path, threads: int, report: Report, root: Path = Path("/")) -> Diagnosis:
    """What the machine below ``root`` and the bundle in ``folder`` have and lack; ``report`` is told what is
    being done."""
    board = device.describe(threads, root)
    checks = (*machine(board, root), *_bundle(folder, threads, board, report))
    examined_at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    fails = sum(check.mark == FAILS for check in checks)
    return Diagnosis(SCHEMA, examined_at, board, str(folder), checks, fails)


def _bundle(folder: Path, threads: int, board: Device, report: Report) -> list[Check]:
    try:
        from . import bundle_checks  # needs numpy and Pillow
    except ImportError as error:
        return [requirements(error)]
    return [
        Check("numpy, Pillow", OK, "can be imported"),
        *bundle_checks.examine(folder, threads, board, report),
    ]


def requirements(error: ImportError) -> Check:
    """A package that is not there, or whose shared libraries are not."""
    if isinstance(error, ModuleNotFoundError):
        found = (
            f"the package {error.name} is missing, so that nothing can be run and the bundle was not"
            " looked at"
        )
    else:
        # numpy puts a page of advice around the cause
        reason = " ".join(str(error.__cause__ or error).split())[:160]
        found = f"{error.name or 'a package'} cannot be imported ({reason})"
    return Check("numpy, Pillow", FAILS, found, INSTALL)


def command(folder: Path, threads: int, json_path: Path | None, report: Report) -> int:
    """Examine, show it on standard output and write it. Exit codes: 0 nothing fails, 1 something does."""
    if json_path:
        output.check_writable(json_path)
    found = examine(folder, threads, report)
    report("")
    sys.stdout.write(table(found.checks) + "\n")
    if json_path:
        output.write(json_path, json.dumps(found.to_json(), indent=1, allow_nan=False))
    return EXIT_FAILS if found.fails else EXIT_OK


def main(arguments: Sequence[str] | None = None) -> int:
    """The doctor where ``compare.py`` cannot be imported because numpy or Pillow is missing."""
    parser = argparse.ArgumentParser(prog="compare.py", allow_abbrev=False)
    parser.add_argument("--doctor", action="store_true")
    parser.add_argument("--bundle", type=Path, default=Path())
    parser.add_argument("--json", type=Path)
    options, _ = parser.parse_known_args(arguments)
    try:
        return command(options.bundle, os.cpu_count() or 1, options.json, lambda line: None)
    except RuntimeInputError as error:
        sys.stderr.write(f"Error: {error}\n")
        return EXIT_INPUT
