"""Kills ``vgg-export all`` anywhere, and lets its calls to the system fail anywhere, on a tiny network:

    python bench/kill_anywhere.py --kills 200 --faults 100 --evaluations 50

Kills (SIGKILL) fall at random moments of a run, and at random calls that open, write, rename or sync a file.
After each the bundle that was there is whole, or the new one is (every hash of its manifest); a rerun ends
well, and its model files have the same bytes as those of a run that nothing disturbed. ``evaluate --record``
is killed likewise: its rerun finds the same figures and writes the same manifest. With a fault (ENOSPC,
EIO, EACCES, EROFS, EMFILE; once, or from that call on) the command ends with one sentence and exit code 1 or
2, or does without what failed, and nothing is half there. The exit code is 1 where any of this is not so.

Runs that are disturbed are forks of this program, which has loaded torch already: the real command with its
real files and calls. Where a fork ends by itself with a signal (torch does not promise to work in one), and
for every rerun, the command is started as usual.
"""

import argparse
import dataclasses
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path

import faults
import vgg_runtime  # noqa: F401  sets what keeps onnxruntime quiet before it is imported
from findings import Findings, say

NAMES = ("stop", "yield", "parking")
WITHIN_S = 60.0
STEPS = 4  # a run is killed within this part of its calls or its time
TRIES = 10  # until a fork comes to its end
FINISHED = 5  # every fifth run with a fault is begun again
# what a run that ended by itself should have removed
_LEFT = re.compile(r"(^|/)\.[^/]*\.(partial|old|parts)(/|$)|/\.scratch\.|^\.artifacts\.lock$")
_LEFT_OUT = re.compile(r"pictures cannot be read and \w+ left out")
SHOWN = 1500  # characters of what a command printed
ARGUMENTS = (
    *("all", "--weights", "tiny.safetensors", "--data", "pictures", "--accept-accuracy", "--no-compare"),
    *("--variants", "pruned-quantized,compact-scaled", "--target", "pi5", "--calibration-images", "8"),
    *("--repair-images", "12", "--finetune-images", "12", "--prune-ratio", "0.3", "--conv-share", "0.5"),
    *("--finetune-epochs", "1"),
)
EVALUATE = (
    *("evaluate", "--bundle", "artifacts", "--data", "pictures", "--accept-accuracy"),
    *("--record", "--json", "figures.json"),
)
PART = 3  # pictures that are evaluated at a time, of 12


@dataclasses.dataclass(frozen=True)
class Fault:
    """What happens at the ``at``-th call that can end with ``error``; KILL: the command is killed there.
    ``stays``: at all later ones, too."""

    at: int
    error: int = faults.KILL
    stays: bool = False


@dataclasses.dataclass(frozen=True)
class Ended:
    """How a run ended: its exit code (negative: the signal), what it printed, the calls that it made and its
    duration."""

    code: int
    said: str
    calls: int
    seconds: float


def make_inputs(folder: Path) -> None:
    """A network of a few thousand weights and 36 drawn signs in ``folder``."""
    import torch

    from vgg_export.data import signs
    from vgg_export.network import chain, checkpoint
    from vgg_export.network.provenance import Provenance
    from vgg_runtime.bundle.input_spec import for_input

    torch.manual_seed(0)
    network = chain.Chain(for_input(32), chain.vgg_layers([[16], [32, 32], [32, 32]], (48, 40, len(NAMES))))
    tensors = {}
    for site in network.sites:
        kernel = site.layer.kernel if isinstance(site.layer, chain.Conv) else ()
        rows = site.layer.outputs
        inputs = site.inputs[0] if kernel else torch.Size(site.inputs).numel()
        weight = torch.randn(rows, inputs, *kernel)
        tensors[f"{site.name}.weight"] = weight * (2 / weight[0].numel()) ** 0.5
        tensors[f"{site.name}.bias"] = 0.1 * torch.randn(rows)
    made = checkpoint.Checkpoint(network, tensors, NAMES, Provenance("file", "a tiny VGG"))
    checkpoint.save(made, folder / "tiny.safetensors")
    for part, each in (("train", 8), ("test", 4)):
        for name in NAMES:
            (folder / "pictures" / part / name).mkdir(parents=True)
            for k in range(each):
                number = k + (1000 if part == "test" else 0)
                signs.draw(name, number, 64).save(folder / "pictures" / part / name / f"{number}.png")


def run(
    folder: Path, arguments: Sequence[str], fault: Fault | None = None, kill_s: float = WITHIN_S
) -> Ended:
    """Run the command in ``folder`` as a fork of this process, and kill it after ``kill_s`` seconds."""
    reading, writing = os.pipe()
    start = time.monotonic()
    sys.stdout.flush()
    said = folder.parent / f"{folder.name}.said"
    child = os.fork()
    if not child:
        os.close(reading)
        _as_child(folder, arguments, fault or Fault(0), said, writing)
    os.close(writing)
    while not os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT):
        if time.monotonic() - start >= kill_s:
            try:
                os.killpg(child, signal.SIGKILL)
            except ProcessLookupError:  # it has no group of its own yet
                os.kill(child, signal.SIGKILL)
            break
        time.sleep(0.002)
    _, status = os.waitpid(child, 0)
    with os.fdopen(reading) as counted:
        calls = int(counted.read() or 0)
    seconds = time.monotonic() - start
    return Ended(os.waitstatus_to_exitcode(status), said.read_text(errors="replace"), calls, seconds)


def run_alone(folder: Path, arguments: Sequence[str], fault: Fault | None = None) -> Ended:
    """``run`` as a process of its own; its calls are not counted."""
    start = time.monotonic()
    added = {}
    if fault:
        library = Path(os.environ["LD_PRELOAD"])
        added = faults.environment(library, folder, fault.at, fault.error, stays=fault.stays)
    done = subprocess.run(
        [sys.executable, "-m", "vgg_export", *arguments],
        cwd=folder,
        env=os.environ | added,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=10 * WITHIN_S,
        check=False,
    )
    return Ended(done.returncode, done.stdout + done.stderr, 0, time.monotonic() - start)


def _as_child(folder: Path, arguments: Sequence[str], fault: Fault, said: Path, writing: int) -> None:
    """Become the command: its own session, folder and output."""
    os.setsid()
    os.chdir(folder)
    output = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(output, stream)
    code = 99
    try:
        from vgg_export.cli import main

        faults.arm(folder, fault.at, fault.error, stays=fault.stays)
        code = main(list(arguments))
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:
        traceback.print_exc()
    finally:
        os.write(writing, str(faults.count()).encode())
        os._exit(code)


def models(bundle: Path) -> dict[str, bytes]:
    """The model files of a bundle by name."""
    return {path.name: path.read_bytes() for path in sorted((bundle / "models").iterdir())}


def state(folder: Path) -> str:
    """Which bundle is in ``folder``: its key, after all its hashes were compared, or "none".

    Raises:
        BundleError: it is not whole.
    """
    from vgg_runtime.bundle import manifest

    if not (folder / "artifacts").exists():
        return "none"
    found = manifest.read(folder / "artifacts")
    manifest.verify(folder / "artifacts", found.all_files())
    return found.created_by["key"]


def _figures(folder: Path) -> tuple[bytes, bytes | None]:
    """The manifest and, where there are any, the figures of an evaluation."""
    found = folder / "figures.json"
    return (folder / "artifacts/manifest.json").read_bytes(), found.read_bytes() if found.exists() else None


def left_over(folder: Path) -> list[str]:
    """What a run that ended by itself should have removed."""
    places = {p.relative_to(folder).as_posix() for p in folder.rglob("*")}
    return sorted(p for p in places if _LEFT.search(p))


class Bench(Findings):
    """The inputs, an undisturbed run, and what was found wrong."""

    def __init__(self, root: Path, seed: int) -> None:
        super().__init__()
        self.root, self.random = root, random.Random(seed)
        inputs = root / "inputs"
        inputs.mkdir()
        make_inputs(inputs)
        self.seconds, self.calls = 0.0, 0
        self.old = self._made("old", "--seed", "1")
        self.new = self._made("new")
        self.old_key, self.new_key = state(self.old), state(self.new)
        self.models = models(self.new / "artifacts")

    def _made(self, name: str, *more: str) -> Path:
        folder = self.root / name
        shutil.copytree(self.root / "inputs", folder)
        if (done := self.undisturbed(folder, *more)).code:
            raise RuntimeError(f"an undisturbed run failed: {done.said[-500:]}")
        self.seconds, self.calls = done.seconds, done.calls or self.calls
        return folder

    def undisturbed(self, folder: Path, *more: str) -> Ended:
        """Run the command as a fork, or, where that fails for being one, as usual."""
        done = run(folder, [*ARGUMENTS, *more])
        return run_alone(folder, [*ARGUMENTS, *more]) if done.code < 0 else done

    def fresh(self, name: str) -> Path:
        """A folder with the inputs and the old bundle, but no intermediate files."""
        folder = self.root / name
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(self.root / "inputs", folder)
        shutil.copytree(self.old / "artifacts", folder / "artifacts")
        return folder

    def check_bundle(self, folder: Path, what: str, said: str) -> str:
        """Note it where neither the old nor the new bundle is there as a whole; returns which it is. A run
        that said that it left out a picture which could not be read makes a bundle of its own."""
        try:
            found = state(folder)
        except Exception as error:
            found = f"a damaged one ({error})"
        is_own = len(found) == len(self.new_key) and _LEFT_OUT.search(said)
        if found not in (self.old_key, self.new_key) and not is_own:
            self.note(f"{what}: the bundle is {found}")
        return found

    def finish(self, folder: Path, what: str) -> None:
        """Run once more, undisturbed, and compare the models."""
        done = self.undisturbed(folder)
        if done.code:
            self.note(f"{what}: a rerun failed: {done.said[-300:]}")
        elif other := self._other_files(folder):
            self.note(f"{what}: a rerun made other files: {', '.join(other)}")
        elif left := left_over(folder):
            self.note(f"{what}: left over after a rerun: {left[:3]}")
        else:
            self.counts["reruns with the same bytes"] += 1

    def _other_files(self, folder: Path) -> list[str]:
        """What of a bundle is not as the undisturbed run made it."""
        found = models(folder / "artifacts")
        names = {name for name in found | self.models if found.get(name) != self.models.get(name)}
        return sorted(names) or ([] if state(folder) == self.new_key else ["the manifest"])

    def lines(self) -> Iterator[str]:
        """What was done and what was found."""
        yield f"an undisturbed run: {self.seconds:.1f} s, {self.calls} calls below its folder"
        yield from super().lines()

    def kills(self, wanted: int) -> None:
        """Kill runs until they were ``wanted``: each goes on in the folder of the last, until one ends."""
        killed = 0
        while killed < wanted:
            folder, code = self.fresh("killed"), -signal.SIGKILL
            while code == -signal.SIGKILL and killed < wanted:
                if self.random.random() < 0.5:
                    at = Fault(self.random.randint(1, self.calls // STEPS))
                    done, what = run(folder, ARGUMENTS, at), f"killed at call {at.at}"
                else:
                    seconds = self.random.uniform(0, self.seconds / STEPS)
                    done, what = run(folder, ARGUMENTS, kill_s=seconds), f"killed after {seconds:.3f} s"
                self.check_bundle(folder, what, done.said)
                code = done.code
                if code != -signal.SIGKILL and (problem := unfit(done) or (done.said if code else None)):
                    self.note(f"{what}: a rerun that was not killed: {problem[-SHOWN:]}")
                if code == -signal.SIGKILL:
                    killed += 1
                    self.counts[f"killed {'at a call' if 'call' in what else 'at a moment'}"] += 1
                    self.counts[f"killed behind: {_stage(done.said)}"] += 1
                say(f"{killed} kills, {len(self.wrong)} wrong")
            self.finish(folder, what)

    def evaluations(self, wanted: int) -> None:
        """Kill evaluations until they were ``wanted``; each goes on with what the last one left."""
        if not wanted:
            return
        from vgg_export.bundle import evaluate

        evaluate.CHUNK = PART  # of the forks
        folder = self._evaluated()
        done = run(folder, EVALUATE)
        right = _figures(folder)
        if done.code or None in right:
            raise RuntimeError(f"an undisturbed evaluation failed: {done.said[-500:]}")
        allowed = right[0], _figures(self.new)[0]
        folder = self._evaluated()
        for number in range(wanted):
            at = Fault(self.random.randint(1, max(1, done.calls))) if number % 2 else Fault(0)
            seconds = WITHIN_S if at.at else self.random.uniform(0, done.seconds)
            what = f"evaluate, killed {f'at call {at.at}' if at.at else f'after {seconds:.3f} s'}"
            found = run(folder, EVALUATE, at, seconds)
            self.counts[f"evaluate: {'killed' if found.code == -signal.SIGKILL else 'ended before'}"] += 1
            try:
                state(folder)
            except Exception as error:
                self.note(f"{what}: the bundle is damaged ({error})")
            written, told = _figures(folder)
            if written not in allowed or told not in (right[1], None):
                self.note(f"{what}: the manifest or the figures are neither the old ones nor the new ones")
            if number % FINISHED == FINISHED - 1:
                for young in folder.glob(".*.partial"):  # what is young may be a living process's
                    os.utime(young, (0, 0))
                again = run(folder, EVALUATE)
                if again.code or _figures(folder) != right:
                    self.note(f"{what}: a rerun found other figures: {again.said[-SHOWN:]}")
                elif left := left_over(folder):
                    self.note(f"{what}: left over after a rerun: {left[:3]}")
                folder = self._evaluated()
            say(f"{number + 1} evaluations, {len(self.wrong)} wrong")

    def _evaluated(self) -> Path:
        """A folder with the inputs and the new bundle."""
        folder = self.root / "evaluated"
        shutil.rmtree(folder, ignore_errors=True)
        return shutil.copytree(self.new, folder)

    def faults(self, wanted: int) -> None:
        """Let calls fail, spread over the whole run, the errors in turn."""
        calls = {error: self._counted(error) for error in (list(faults.ERRORS.values()) if wanted else [])}
        for number in range(wanted):
            name, error = list(faults.ERRORS.items())[number % len(faults.ERRORS)]
            stays = self.random.random() < 0.5
            folder = self.fresh("faulty")
            fault = Fault(self.random.randint(1, calls[error]), error, stays)
            done = run(folder, ARGUMENTS, fault)
            reached = done.calls >= fault.at
            if done.code < 0:
                folder = self.fresh("faulty")
                done = run_alone(folder, ARGUMENTS, fault)
                reached = done.code != 0
            what = f"{name} at call {fault.at}{' and later' if stays else ''}"
            self.counts[f"{name}: {'exit ' + str(done.code) if reached else 'not reached'}"] += 1
            if problem := unfit(done):
                self.note(f"{what}: {problem}")
            say(f"{number + 1} faults, {len(self.wrong)} wrong")
            found = self.check_bundle(folder, what, done.said)
            if not done.code and found != self.new_key and not _LEFT_OUT.search(done.said):
                self.note(f"{what}: exit code 0 without the new bundle")
            if number % FINISHED == 0:
                self.finish(folder, what)

    def _counted(self, error: int) -> int:
        """How many calls of an undisturbed run can end with ``error``.

        Raises:
            RuntimeError: no fork came to its end.
        """
        for _ in range(TRIES):
            done = run(self.fresh("counted"), ARGUMENTS, Fault(0, error))
            if done.calls:
                return done.calls
        raise RuntimeError(
            f"a fork that counts calls ended {TRIES} times with {done.code}: {done.said[-500:]}"
        )


def unfit(done: Ended) -> str | None:
    """What is wrong with how a command ended, or None."""
    end = done.said[-SHOWN:]
    if done.code not in (0, 1, 2):
        return f"exit code {done.code}: {end}"
    if "Traceback" in done.said or "unexpected" in done.said:
        return f"a traceback or a surprise: {end}"
    if done.code and len(re.findall(r"^Error: ", done.said, re.MULTILINE)) != 1:
        return f"not one sentence: {end}"
    return None


def _stage(said: str) -> str:
    lines = [line for line in said.splitlines() if line.strip()]
    return re.sub(r"[\d.]+.*", "", lines[-1])[:40] if lines else "the beginning"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="kill_anywhere.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=200, metavar="N", help="default: %(default)s")
    parser.add_argument("--faults", type=int, default=100, metavar="N", help="default: %(default)s")
    parser.add_argument("--evaluations", type=int, default=50, metavar="N", help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of what is hit (default: 0)")
    wanted = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="kill-anywhere-") as folder:
        if "libfaults.so" not in os.environ.get("LD_PRELOAD", ""):
            return _with_layer(Path(folder), sys.argv[1:] if arguments is None else list(arguments))
        _load()
        bench = Bench(Path(folder).resolve(), wanted.seed)
        try:
            bench.kills(wanted.kills)
            bench.evaluations(wanted.evaluations)
            bench.faults(wanted.faults)
        finally:  # what an hour has shown is not lost by what ends it
            print("\n".join(bench.lines()), flush=True)
    return 1 if bench.wrong else 0


def _with_layer(folder: Path, arguments: Sequence[str]) -> int:
    environment = os.environ | {"LD_PRELOAD": str(faults.build(folder)), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(Path(__file__).resolve()), *arguments]
    return subprocess.run(command, env=environment, check=False).returncode


def _load() -> None:
    """Load what a run loads, so that a fork begins at once."""
    import onnxruntime  # noqa: F401
    import torch

    from vgg_export import cli, pipeline  # noqa: F401

    torch.set_num_threads(1)


if __name__ == "__main__":
    sys.exit(main())
