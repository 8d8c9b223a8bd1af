"""One finding of the doctor: a check, its mark, and what to do about it."""

import dataclasses
from collections.abc import Callable

OK, WARNING, FAILS, UNKNOWN = "ok", "warning", "fails", "unknown"


INSTALL = (
    "python3 -m venv venv && venv/bin/pip install -r runtime/requirements.txt, then venv/bin/python"
    " runtime/compare.py"
)


Report = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Check:
    """One line of the doctor's: ``mark`` is ok, warning, fails or unknown; ``remedy`` what to do."""

    check: str
    mark: str
    found: str
    remedy: str | None = None

    def __post_init__(self) -> None:
        if self.mark in (FAILS, WARNING) and not self.remedy:
            raise ValueError(f"{self.check} {self.mark} without saying what to do")
