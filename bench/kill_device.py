"""Kills what runs on a board at every call that touches its files, and lets every such call fail:

    python bench/kill_device.py --bundle artifacts

``compare.py`` with ``--json`` and ``--html``, with ``--tune``, a live stream with ``--log``, and ``--ship``,
each as the real command with its real calls (``faults.c``). ``--only`` takes some of them.

Call by call it is killed (SIGKILL), and ends with ENOSPC, EIO, EACCES, EROFS and EMFILE, once and from that
call on. Afterwards every document is the old one or the new one as a whole, the log has whole lines, the
tuning cache can be read, and the shipped folder is there with all its hashes or not at all; what ended by
itself did so with one sentence and without a traceback; a rerun ends well and leaves nothing beside. The exit
code is 1 where any of this is not so.
"""

import argparse
import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import faults
from findings import Findings, say
from soak import LAUNCHER, pictures
from vgg_runtime.bundle import manifest
from vgg_runtime.errors import RuntimeInputError
from vgg_runtime.report import diff

KILLED = -9
PATIENCE_S = 120.0
HOUR_S = 3600.0
KINDS = {"SIGKILL": faults.KILL, **faults.ERRORS}
_BESIDE = re.compile(r"(^|/)\.(compare-|app\.)")


@dataclasses.dataclass(frozen=True)
class Scenario:
    """A command in a folder. ``check``: says what is not whole in the folder, or None. ``made``: what there
    is after a run that ended with exit code 0. ``old``: it begins with the results of an earlier run."""

    name: str
    arguments: tuple[str, ...]
    check: Callable[[Path], str | None]
    made: tuple[str, ...]
    old: bool = True


def documents(folder: Path) -> str | None:
    """The result and the report."""
    try:
        diff.read(folder / "r.json")
    except RuntimeInputError as error:
        return f"r.json: {error}"
    try:
        whole = (folder / "r.html").read_text().rstrip().endswith("</html>")
    except OSError as error:
        return f"r.html: {error}"
    return None if whole else "r.html is not whole"


def tuned(folder: Path) -> str | None:
    """The tuning cache."""
    return _is_json(folder / "cache/vgg-export/tuned.json")


def stream(folder: Path) -> str | None:
    """The live document, and every line of both log files."""
    for path in (folder / "l.jsonl", folder / "l.jsonl.1"):
        if not path.exists():
            continue
        for line in path.read_text().splitlines():
            try:
                json.loads(line)
            except ValueError:
                return f"{path.name} has the line {line[:60]!r}"
    return _is_json(folder / "live.json")


def shipped(folder: Path) -> str | None:
    """The folder for use elsewhere."""
    try:
        if (folder / "app").exists():
            manifest.verify(folder / "app", manifest.read(folder / "app").all_files())
    except RuntimeInputError as error:
        return f"app: {error}"
    return None


def _is_json(path: Path) -> str | None:
    try:
        json.loads(path.read_text())
    except (OSError, ValueError) as error:
        return f"{path.name}: {error}"
    return None


def scenarios(variant: str) -> tuple[Scenario, ...]:
    quick = ("--image", "a.jpg", "--variants", variant, "--budget", "0.02", "--rounds", "1", "--threads", "1")
    written = ("--json", "r.json", "--html", "r.html")
    live = ("--live", variant, "--source", "clip.mjpeg", "--fps", "60", "--threads", "1", "--every", "60")
    logged = ("--log", "l.jsonl", "--log-bytes", "600", "--json", "live.json")
    return (
        Scenario("compare", (*quick, *written), documents, ("r.json", "r.html")),
        Scenario("tune", ("--tune", *quick), tuned, ()),  # it says where it cannot be saved
        Scenario("live", (*live, *logged), stream, ("live.json",)),
        Scenario("ship", ("--ship", "app", "--variants", variant), shipped, ("app",), old=False),
    )


SCENARIOS = tuple(one.name for one in scenarios(""))


@dataclasses.dataclass(frozen=True)
class Ended:
    code: int
    out: str
    err: str


class Bench(Findings):
    """The bundle, and what was found wrong."""

    def __init__(self, root: Path, bundle: Path) -> None:
        super().__init__()
        self.root, self.bundle = root, bundle.resolve()
        self.library = faults.build(root)
        self.inputs = root / "inputs"
        self.inputs.mkdir()
        frames = pictures(6, (320, 240))
        (self.inputs / "a.jpg").write_bytes(frames[0])
        (self.inputs / "clip.mjpeg").write_bytes(b"".join(frames))

    def run(self, folder: Path, scenario: Scenario, **variables: str) -> Ended:
        """The command in ``folder``, with what the layer is told."""
        command = [sys.executable, str(LAUNCHER), "--bundle", str(self.bundle), *scenario.arguments]
        environment = os.environ | {"XDG_CACHE_HOME": str(folder / "cache")} | variables
        done = subprocess.run(
            command,
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=PATIENCE_S,
            check=False,
        )
        return Ended(done.returncode, done.stdout, done.stderr)

    def begun(self, scenario: Scenario) -> Path:
        """A folder as a disturbed run finds it."""
        template, folder = self.root / f"{scenario.name}-before", self.root / "disturbed"
        if not template.exists():
            shutil.copytree(self.inputs, template)
            done = self.run(template, scenario) if scenario.old else None
            if done and done.code:
                raise RuntimeError(f"an undisturbed run failed: {done.err[-500:]}")
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(template, folder)
        for name in scenario.made if scenario.old else ():
            os.utime(folder / name, times=(time.time() - HOUR_S,) * 2)
        return folder

    def calls(self, scenario: Scenario, error: int) -> int:
        """How many calls of an undisturbed run can end with ``error``."""
        folder, report = self.begun(scenario), self.root / "report"
        report.unlink(missing_ok=True)
        told = faults.environment(self.library, folder, 0, error)
        done = self.run(folder, scenario, FAULT_REPORT=str(report), **told)
        if done.code:
            raise RuntimeError(f"an undisturbed run failed: {done.err[-500:]}")
        return max(int(line) for line in report.read_text().split())

    def disturb(self, scenario: Scenario, every: int, kinds: Sequence[str]) -> None:
        """Kill it, and let it fail, at every ``every``-th call, each kind beginning with another one."""
        number = 0
        for name in kinds:
            error = KINDS[name]
            calls = self.calls(scenario, error)
            for stays in (False, True) if error else (False,):
                number += 1
                for at in range(1 + number % every, calls + 1, every):
                    what = f"{scenario.name}, {name} at call {at}{' and later' if stays else ''}"
                    self._disturb(scenario, what, name, faults_at=(at, error, stays))
                say(f"{scenario.name}: {name}, {self.counts.total()} runs, {len(self.wrong)} wrong")

    def _disturb(self, scenario: Scenario, what: str, name: str, faults_at: tuple[int, int, bool]) -> None:
        at, error, stays = faults_at
        folder = self.begun(scenario)
        done = self.run(folder, scenario, **faults.environment(self.library, folder, at, error, stays=stays))
        self.counts[f"{scenario.name}: {name}, exit {done.code}"] += 1
        if problem := unfit(done, killed=error == faults.KILL):
            self.note(f"{what}: {problem}")
        if problem := scenario.check(folder):
            self.note(f"{what}: {problem}")
        for place in scenario.made if done.code == 0 else ():
            path = folder / place
            if not path.exists() or time.time() - path.stat().st_mtime > HOUR_S / 2:
                self.note(f"{what}: exit code 0 without a new {place}")
        for path in folder.rglob(".*"):  # as if it had happened long ago
            os.utime(path, times=(time.time() - HOUR_S,) * 2)
        if not scenario.old:
            shutil.rmtree(folder / "app", ignore_errors=True)
        again = self.run(folder, scenario)
        left = [str(p.relative_to(folder)) for p in folder.rglob("*") if _BESIDE.search(f"/{p.name}")]
        if again.code:
            self.note(f"{what}: a rerun failed: {again.err[-300:]}")
        elif problem := scenario.check(folder) or (f"left over: {left[:3]}" if left else None):
            self.note(f"{what}: after a rerun: {problem}")
        else:
            self.counts["reruns that ended well"] += 1


def unfit(done: Ended, *, killed: bool) -> str | None:
    """What is wrong with how a command ended, or None."""
    said = done.out + done.err
    if killed:
        return (
            None if done.code == KILLED else f"exit code {done.code} instead of being killed: {said[-300:]}"
        )
    if done.code not in (0, 1, 2):
        return f"exit code {done.code}: {said[-500:]}"
    if "Traceback" in said or "unexpected" in said:
        return f"a traceback or a surprise: {said[-1000:]}"
    told = len(re.findall(r"^Error: ", done.err, re.MULTILINE))
    if told > 1 or (done.code and not told and not (done.code == 1 and "✗" in done.out)):
        return f"not one sentence: {done.err[-500:]}"
    return None


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="kill_device.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--bundle", type=Path, default=Path("artifacts"), metavar="DIR", help="default: %(default)s")
    add("--variant", metavar="NAME", help="default: the last of the bundle")
    add("--every", type=int, default=1, metavar="N", help="every N-th call only (default: %(default)s)")
    add("--only", default=",".join(SCENARIOS), metavar="LIST", help="what runs (default: %(default)s)")
    add("--kinds", default=",".join(KINDS), metavar="LIST", help="what happens (default: %(default)s)")
    wanted = parser.parse_args(arguments)
    for option, given, known in (("--kinds", wanted.kinds, KINDS), ("--only", wanted.only, SCENARIOS)):
        if unknown := set(given.split(",")) - set(known):
            parser.error(f"{option} has {', '.join(sorted(unknown))}; expected some of {', '.join(known)}")
    variant = wanted.variant or manifest.read(wanted.bundle).variants[-1].id
    with tempfile.TemporaryDirectory(prefix="kill-device-") as folder:
        bench = Bench(Path(folder).resolve(), wanted.bundle)
        try:
            for scenario in scenarios(variant):
                if scenario.name in wanted.only.split(","):
                    bench.disturb(scenario, wanted.every, wanted.kinds.split(","))
        finally:
            print("\n".join(bench.lines()), flush=True)
    return 1 if bench.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
