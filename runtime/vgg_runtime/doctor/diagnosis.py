"""``compare.py --doctor``: checks this machine and this bundle before anything is measured.

The checks of the machine need only the standard library. They therefore also work where the requirements
cannot be installed (a 32-bit system has no onnxruntime). Every file is read below ``root``, so that a test
can lay out another board.
"""

import dataclasses
import json
import time
from collections.abc import Sequence
from pathlib import Path

from vgg_runtime import console, output, text
from vgg_runtime.board import device
from vgg_runtime.records import Record
from vgg_runtime.result import Device

from .finding import FAILS, INSTALL, OK, Check, Report, table
from .machine import machine

SCHEMA = 1


@dataclasses.dataclass(frozen=True)
class Diagnosis(Record):
    """The document of ``--doctor --json``: the checks of the machine and the bundle; ``fails`` counts the
    failed ones."""

    schema: int
    examined_at: str
    device: Device
    bundle: str
    checks: tuple[Check, ...]
    fails: int


def examine(folder: Path, threads: int, report: Report, root: Path = Path("/")) -> Diagnosis:
    """Check the machine below ``root`` and the bundle in ``folder``; ``report`` receives the progress."""
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
    """The failed check of a package that is missing or cannot be imported."""
    if isinstance(error, ModuleNotFoundError):
        found = f"the package {error.name} is missing, so nothing can be run and the bundle was not checked"
    else:
        # numpy puts a page of instructions around the cause
        reason = " ".join(str(error.__cause__ or error).split())[:160]
        found = f"{error.name or 'a package'} cannot be imported ({reason})"
    return Check("numpy, Pillow", FAILS, found, INSTALL)


def command(folder: Path, threads: int, json_path: Path | None, report: Report) -> int:
    """Run all checks, show them on standard output, and write them to ``json_path``. Exit codes: 0 no check
    fails, 1 a check fails."""
    if json_path:
        output.check_writable(json_path)
    found = examine(folder, threads, report)
    report("")
    try:  # a full disk behind what is printed must not lose the document
        console.shown(table(found.checks, text.terminal_width()))
    finally:
        if json_path:
            output.write(json_path, json.dumps(found.to_json(), indent=1, allow_nan=False))
    return console.EXIT_FAILED if found.fails else console.EXIT_OK


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the doctor where ``compare.py`` cannot be imported because numpy or Pillow is missing."""
    parser = console.Parser(prog="compare.py", allow_abbrev=False)
    parser.add_argument("--doctor", action="store_true")
    parser.add_argument("--bundle", type=console.path, default=Path())
    parser.add_argument("--json", type=console.path)

    def run() -> int:
        options, _ = parser.parse_known_args(arguments)
        return command(options.bundle, device.usable_cores(), options.json, lambda line: None)

    return console.ended(run)
