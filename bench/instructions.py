"""Counts the instructions that an inference of each variant takes on the emulated core of a Raspberry Pi.

    python bench/instructions.py --bundle artifacts --cores cortex-a72,cortex-a76 --markdown instructions.md

This is the project's deterministic measure of work on a Pi until somebody runs it on one. The real aarch64
wheels run on one thread, with the kernels that they pick for that core. An inference after a first one is
counted, so that loading and first-time allocations are not. The count is not time: one instruction may be an
addition or sixteen multiplications, and waiting for memory is not an instruction at all.
"""

import argparse
import dataclasses
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import emulated
from emulated import EmulationError, Pi
from vgg_export.core.errors import VggExportError
from vgg_export.core.files import explain_write_errors, write_json
from vgg_runtime import text
from vgg_runtime.board.targets import TARGETS
from vgg_runtime.bundle import builds, manifest, self_check
from vgg_runtime.bundle.opened import Bundle
from vgg_runtime.errors import RuntimeInputError

SCHEMA = 1
WARM_UP = 1
TARGET_OF = {"cortex-a53": "pi3", "cortex-a72": "pi4", "cortex-a76": "pi5"}
CHILD = Path(__file__).resolve().with_name("instructions_child.py")
REQUIREMENTS = "runtime/requirements.txt"  # of the bundle
EXIT_OK, EXIT_FAILED, EXIT_INPUT, EXIT_INTERRUPTED = 0, 1, 2, 130
REMARKS = """This program needs qemu-aarch64 with plugins and gcc (Debian: apt-get install qemu-user gcc
libc6-dev). What else it needs is fetched once with apt-get and pip. Ten full-size variants take tens of
minutes."""

Report = Callable[[str], None]


def main(arguments: Sequence[str] | None = None) -> int:
    wanted = _parser().parse_args(arguments)
    try:
        result = run(wanted, _report)
        print(terminal(result))
        if wanted.json:
            write_json(wanted.json, result)
        if wanted.markdown:
            with explain_write_errors(wanted.markdown):
                wanted.markdown.write_text(markdown(result), encoding="utf-8")
    except (VggExportError, RuntimeInputError) as error:
        print(f"Error: {error}", file=sys.stderr)
        return EXIT_INPUT
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    return EXIT_FAILED if any(row["error"] for row in result["counts"]) else EXIT_OK


def _parser() -> argparse.ArgumentParser:
    description, example = (__doc__ or "").split("\n\n")[:2]
    epilog = f"example:\n{example}\n\n{REMARKS}"
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="instructions.py", description=description, epilog=epilog, formatter_class=formatter
    )
    add = parser.add_argument
    add(
        "--bundle",
        type=Path,
        default=Path("artifacts"),
        metavar="DIR",
        help="what 'vgg-export all' wrote (default: artifacts)",
    )
    add(
        "--cores",
        default="cortex-a72,cortex-a76",
        metavar="A,B",
        help=f"cores to count on, of {', '.join(emulated.BOARDS)} (default: %(default)s)",
    )
    add("--variants", metavar="A,B", help="only these, by name (default: all)")
    add("--every-build", action="store_true", help="count also the builds that were made for other cores")
    add(
        "--inferences",
        type=_positive,
        default=1,
        metavar="N",
        help="inferences counted after a first one; the median is shown (default: %(default)s)",
    )
    add(
        "--jobs",
        type=_positive,
        default=os.cpu_count() or 1,
        metavar="N",
        help="variants counted at a time (default: %(default)s)",
    )
    add(
        "--cache",
        type=Path,
        metavar="DIR",
        help="folder for what is fetched (default: vgg-export/emulated in the user's cache)",
    )
    add(
        "--json", type=Path, metavar="FILE", help="write everything, with the count of every single inference"
    )
    add("--markdown", type=Path, metavar="FILE", help="write the table for a README")
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected at least 1, found {number}")
    return number


def run(wanted: argparse.Namespace, report: Report) -> dict[str, Any]:
    """Count and return the result document.

    Raises:
        EmulationError: the boards cannot be emulated here.
        RuntimeInputError: the bundle cannot be used.
    """
    folder = wanted.bundle.resolve()
    bundle = manifest.read(folder)
    variants = bundle.chosen(wanted.variants) if wanted.variants is not None else list(bundle.variants)
    boards = emulated.chosen(wanted.cores)
    manifest.verify(folder, bundle.all_files())
    pis = emulated.prepare(wanted.cache, folder / REQUIREMENTS, report)
    tasks = [
        Task(folder, bundle, variant, pis[board.core], wanted.inferences)
        for board in boards
        for variant in subjects(bundle, variants, board.core, every=wanted.every_build)
    ]
    pool = ThreadPoolExecutor(wanted.jobs)
    try:
        counts = list(pool.map(lambda task: counted(task, report), tasks))
    finally:
        pool.shutdown(cancel_futures=True)  # Ctrl-C must not have the waiting ones started
    relate(counts, bundle.variants[0].build.id)
    return document(bundle, [pis[board.core] for board in boards], counts)


def subjects(
    bundle: manifest.Manifest, variants: Sequence[manifest.Variant], core: str, *, every: bool
) -> list[manifest.Variant]:
    """What is counted on a core: of each variant the build for this core or, with ``every``, all builds.

    The first variant, with which the others are compared, is always counted as it was exported, too.
    """
    first = bundle.variants[0]
    there = {v.id: v for v in builds.for_core(bundle, TARGETS[TARGET_OF[core]]).variants}
    found = [first] if first in variants else []
    for variant in variants:
        found += [variant.using(build) for build in variant.builds] if every else [there[variant.id]]
    return list({variant.build.id: variant for variant in found}.values())


@dataclasses.dataclass(frozen=True)
class Task:
    """A variant to be counted on a board, over ``inferences`` after the first one."""

    folder: Path
    bundle: manifest.Manifest
    variant: manifest.Variant
    pi: Pi
    inferences: int = 1

    def request(self) -> str:
        """What instructions_child reads."""
        variant = self.variant
        fields = builds.request(Bundle(self.folder, self.bundle), variant, builds.FAST) | {
            "input_px": variant.preprocessing.px,
            "inferences": WARM_UP + self.inferences,
        }
        return json.dumps(fields)


def counted(task: Task, report: Report) -> dict[str, Any]:
    """Count a variant; returns its entry in the result document.

    Nothing is counted when the logits differ from those recorded.
    """
    variant, board = task.variant, task.pi.board
    row: dict[str, Any] = {
        "variant": variant.id,
        "build": variant.build.id,
        "core": board.core,
        "input_px": variant.preprocessing.px,
        "macs": variant.macs,
        "instructions": None,
        "dot_products": None,
        "samples": [],
        "fewer": None,
        "deviation": None,
        "error": None,
    }
    try:
        output, counts = task.pi.count(CHILD, task.request(), PYTHONPATH=str(task.folder / "runtime"))
    except EmulationError as error:
        return row | {"error": str(error)}
    row["deviation"] = json.loads(output.splitlines()[-1])["deviation"]
    if row["deviation"] > self_check.TOLERANCE[variant.precision]:
        limit = self_check.TOLERANCE[variant.precision]
        return row | {
            "error": f"logits differ by {row['deviation']:.2g} of their spread from those recorded; expected"
            f" at most {limit:g}"
        }
    samples = [dataclasses.asdict(count) for count in counts[WARM_UP:]]
    row["samples"] = samples
    row |= {
        key: int(statistics.median(sample[key] for sample in samples))
        for key in ("instructions", "dot_products")
    }
    report(f"{board.name} {variant.build.id}: {row['instructions'] / 1e9:.3f} x 10^9 instructions")
    return row


def relate(counts: Sequence[dict[str, Any]], baseline: str) -> None:
    """Enter how many times fewer instructions a build takes than the baseline on the same core."""
    of_baseline = {row["core"]: row["instructions"] for row in counts if row["build"] == baseline}
    for row in counts:
        if row["instructions"] and of_baseline.get(row["core"]):
            row["fewer"] = of_baseline[row["core"]] / row["instructions"]


def document(bundle: manifest.Manifest, pis: Sequence[Pi], counts: list[dict[str, Any]]) -> dict[str, Any]:
    """Everything that was counted, and on what."""
    versions = (
        "import json, platform, onnxruntime; print(json.dumps([platform.python_version(),"
        " onnxruntime.__version__]))"
    )
    python, onnxruntime = json.loads(pis[0].run("-c", versions).stdout)
    return {
        "schema": SCHEMA,
        "measured_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "emulator": emulated.emulator(),
        "python": python,
        "onnxruntime": onnxruntime,
        "boards": {pi.board.core: pi.board.model for pi in pis},
        "bundle": {
            "family": bundle.family,
            "weights": bundle.weights,
            "target": bundle.target,
            "notice": bundle.notice,
        },
        "counts": counts,
    }


def rows(result: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the table: a variant a row, two columns a core."""
    header = ["build", "input", "GMACs"]
    for core in result["boards"]:
        header += [f"{core.title()}, 10^9 instructions", "fewer"]
    found = {(row["build"], row["core"]): row for row in result["counts"]}
    lines = []
    for row in {row["build"]: row for row in result["counts"]}.values():
        cells = [row["build"], f"{row['input_px']} px", f"{row['macs'] / 1e9:.2f}"]
        for core in result["boards"]:  # not every build is counted on every core
            there = found.get((row["build"], core), {"instructions": None, "fewer": None})
            billions = text.ABSENT if there["instructions"] is None else f"{there['instructions'] / 1e9:.3g}"
            cells += [billions, text.number(there["fewer"], "x")]
        lines.append(cells)
    return header, lines


def facts(result: dict[str, Any]) -> list[str]:
    """What was counted and how, in one line each."""
    boards = ", ".join(f"{core.title()} as in a {model}" for core, model in result["boards"].items())
    found = [
        f"{result['emulator']} as {boards}; onnxruntime {result['onnxruntime']}, Python"
        f" {result['python']}; {result['measured_at'][:10]}",
        f"{result['bundle']['family']},"
        f" {result['bundle']['weights'].get('what', 'weights of unknown origin')};"
        f" int8 made for {result['bundle']['target']}",
        "one inference on one thread, loading not counted; instructions are work done and not time, which"
        " only a board can tell",
    ]
    return found + ([result["bundle"]["notice"]] if result["bundle"]["notice"] else [])


def _failures(result: dict[str, Any]) -> list[str]:
    return [f"{row['build']} on {row['core']}: {row['error']}" for row in result["counts"] if row["error"]]


def terminal(result: dict[str, Any]) -> str:
    """The facts, the aligned table, and what failed."""
    return "\n".join(
        [*facts(result), "", text.table(*rows(result)), *(f"✗ {failure}" for failure in _failures(result))]
    )


def markdown(result: dict[str, Any]) -> str:
    """The table for a README, the facts as a list."""
    header, body = rows(result)
    lines = [header, ["---"] * len(header), *body]
    table = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
    return "\n".join([table, "", *(f"- {fact}" for fact in [*facts(result), *_failures(result)])]) + "\n"


def _report(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
