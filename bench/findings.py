"""What a bench that kills or disturbs runs counts, and what it finds wrong."""

import sys
from collections import Counter
from collections.abc import Iterator


class Findings:
    """``counts``: how often what happened; ``wrong``: what must not be, a sentence each."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.wrong: list[str] = []

    def note(self, wrong: str) -> None:
        """Remember what is wrong, and say it at once: a run takes an hour."""
        self.wrong.append(wrong)
        say(f"WRONG: {wrong}")

    def lines(self) -> Iterator[str]:
        """What was done and what was found."""
        for name, count in sorted(self.counts.items()):
            yield f"{count:5} {name}"
        yield from (f"WRONG: {wrong}" for wrong in self.wrong)
        yield f"{len(self.wrong)} wrong"


def say(line: str) -> None:
    """How far it is, on standard error."""
    print(line, file=sys.stderr, flush=True)
