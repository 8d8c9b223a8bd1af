"""One finding of the doctor: a check, its mark, and what to do about it; and all of them as text."""

import dataclasses
from collections.abc import Callable, Sequence

from vgg_runtime.records import Record
from vgg_runtime.text import padded, printable, printed_width

OK, WARNING, FAILS, UNKNOWN = "ok", "warning", "fails", "unknown"


INSTALL = (
    "python3 -m venv venv && venv/bin/pip install -r runtime/requirements.txt, then venv/bin/python"
    " runtime/compare.py"
)


Report = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Check(Record):
    """One line of the doctor's: ``mark`` is ok, warning, fails or unknown; ``remedy`` what to do."""

    check: str
    mark: str
    found: str
    remedy: str | None = None

    def __post_init__(self) -> None:
        if self.mark in (FAILS, WARNING) and not self.remedy:
            raise ValueError(f"{self.check} {self.mark} without saying what to do")


def table(checks: Sequence[Check]) -> str:
    """A line per check, below it what to do, and a verdict."""
    width = max(printed_width(one.check) for one in checks)
    lines = []
    for one in checks:
        name = padded(one.check, width, flush_left=True)
        lines.append(f"{one.mark:<8} {name}  {printable(one.found, 400)}")
        if one.remedy:
            lines.append(f"{'':<8} {'':<{width}}  → {printable(one.remedy, 400)}")
    fails, warnings, unknown = (sum(one.mark == mark for one in checks) for mark in (FAILS, WARNING, UNKNOWN))
    verdict = f"{fails} of {len(checks)} checks fail" if fails else f"None of {len(checks)} checks fails"
    return "\n".join((*lines, "", f"{verdict}; warnings: {warnings}, unknown: {unknown}."))
