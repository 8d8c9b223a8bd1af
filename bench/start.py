"""How large a shipped folder is, and what its first answer takes: on this machine in ms, and on the emulated
core of a Raspberry Pi in instructions.

    vgg-export ship --bundle artifacts --target pi4 --output app
    python bench/start.py --app app --picture photo.jpg --cores cortex-a72,cortex-a76

Each start on this machine is a new process, with the files in the system's cache. The steps are importing the
package (with numpy and Pillow), opening (onnxruntime, hashes, loading, replaying the recorded inputs), the
first answer and the second one.
"""

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import emulated

STEPS = ("import", "open", "first answer", "second answer")
STARTS = 7
CHILD = Path(__file__).resolve().with_name("start_child.py")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="start.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--app", type=Path, default=Path("app"), metavar="DIR", help="default: %(default)s")
    parser.add_argument("--picture", type=Path, required=True, metavar="FILE")
    parser.add_argument("--cores", default="", metavar="LIST", help="emulated cores, e.g. cortex-a72")
    wanted = parser.parse_args(arguments)
    print(contents(wanted.app))
    whole, steps = here(wanted.app, wanted.picture)
    print(f"this machine: {whole:.0f} ms from the start of Python to its end; {in_steps(steps, '.0f', 'ms')}")
    if wanted.cores:
        pis = emulated.prepare()
        for pi in (pis[core] for core in wanted.cores.split(",")):
            print(f"{pi.board.name}: {in_steps(there(pi, wanted.app, wanted.picture), '.2f', '10^9')}")
    return 0


def contents(app: Path) -> str:
    """The size of a folder, and of its largest files."""
    files = {path: path.stat().st_size for path in app.rglob("*") if path.is_file()}
    largest = sorted(files, key=lambda path: -files[path])[:3]
    named = ", ".join(f"{path.relative_to(app)} {files[path] / 1e6:.2f} MB" for path in largest)
    return f"{app}: {sum(files.values()) / 1e6:.2f} MB in {len(files)} files ({named})"


def here(app: Path, picture: Path) -> tuple[float, list[float]]:
    """The medians in ms of whole processes and of their steps."""
    wholes, steps = [], []
    for _ in range(STARTS):
        begun = time.perf_counter()
        command = [sys.executable, str(CHILD), str(app), str(picture)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        wholes.append((time.perf_counter() - begun) * 1e3)
        steps.append([float(word) * 1e3 for word in done.stdout.split()[-len(STEPS) :]])
    return statistics.median(wholes), [statistics.median(step) for step in zip(*steps, strict=True)]


def there(pi: emulated.Pi, app: Path, picture: Path) -> list[float]:
    """Instructions of each step in 10^9, of one thread."""
    _, counts = pi.count(CHILD, app.resolve(), picture.resolve(), "1")
    return [count.instructions / 1e9 for count in counts]


def in_steps(values: Sequence[float], form: str, unit: str) -> str:
    return ", ".join(f"{step} {value:{form}} {unit}" for step, value in zip(STEPS, values, strict=True))


if __name__ == "__main__":
    sys.exit(main())
