"""A check of the doctor with its mark and remedy, and all checks as text."""

import dataclasses
from collections.abc import Callable, Sequence

from vgg_runtime.records import Record
from vgg_runtime.text import folded, padded, printable, printed_width

OK, WARNING, FAILS, UNKNOWN = "ok", "warning", "fails", "unknown"


INSTALL = (
    "python3 -m venv venv && venv/bin/pip install -r runtime/requirements.txt, then venv/bin/python"
    " runtime/compare.py"
)


Report = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Check(Record):
    """One check. ``mark`` is ok, warning, fails or unknown; ``found`` is the finding; ``remedy`` is what to
    do, and must be given for a warning or a failure."""

    check: str
    mark: str
    found: str
    remedy: str | None = None

    def __post_init__(self) -> None:
        if self.mark in (FAILS, WARNING) and not self.remedy:
            raise ValueError(f"the check {self.check} has the mark {self.mark} and no remedy; give one")


def table(checks: Sequence[Check], limit: int | None = None) -> str:
    """One line per check with its remedy below it, and a verdict at the end; folded at ``limit``
    characters."""
    width = max(printed_width(one.check) for one in checks)
    lines, indent = list[str](), " " * (width + 11)
    for one in checks:
        name = padded(one.check, width, flush_left=True)
        lines.append(folded(f"{one.mark:<8} {name}  {printable(one.found, 400)}", limit, indent))
        if one.remedy:
            remedy = folded(f"{indent}→ {printable(one.remedy, 400)}", limit, f"{indent}  ")
            lines.append(remedy)
    fails, warnings, unknown = (sum(one.mark == mark for one in checks) for mark in (FAILS, WARNING, UNKNOWN))
    verdict = f"{fails} of {len(checks)} checks fail" if fails else f"None of {len(checks)} checks fails"
    return "\n".join((*lines, "", f"{verdict}; warnings: {warnings}, unknown: {unknown}."))
