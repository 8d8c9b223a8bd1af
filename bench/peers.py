"""Compares the variants of a bundle with what a user would pick instead: other ways to run the same network,
on one machine, on the same pictures, in turns. ``python bench/peers.py --help`` explains."""

import argparse
import dataclasses
import importlib.metadata
import json
import platform
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from peers_compressed import FinetunePictures, write_pictures
from peers_contenders import COMPRESSED, Contender, chosen, of_baseline, of_bundle
from peers_goal import Goal, goal
from peers_measure import Options, Pictures, measure
from vgg_calibration import choose
from vgg_export.core.errors import DataError, VggExportError
from vgg_export.core.files import write_json
from vgg_export.core.progress import Quiet
from vgg_export.data.splits import Item, resolve, unseen
from vgg_export.options import DataOptions, FinetuneOptions
from vgg_runtime import text
from vgg_runtime.board import device
from vgg_runtime.bundle import manifest
from vgg_runtime.bundle.input_spec import InputSpec
from vgg_runtime.bundle.preprocess import load
from vgg_runtime.errors import RuntimeInputError
from vgg_runtime.measure import tuning
from vgg_runtime.result import Proportion

SCHEMA = 1
TIMED_PICTURES = 4
COLUMNS = (
    "contender",
    "input",
    "params M",
    "GMACs",
    "file MB",
    "load ms",
    "first ms",
    "P50 ms",
    "speed",
    "peak MB",
    "agrees",
    "top-1",
    "bf16",
)
HELP = """Compare the variants of a finished bundle with what a user would pick instead, made from the same
baseline: torch, onnxruntime's own quantize_static, OpenVINO and NNCF, ncnn, LiteRT; and with what makes the
network itself smaller: Torch-Pruning, and fasterai's pruning and decomposition, at the arithmetic of a
variant and fine-tuned on the same pictures for the minutes that the variant took. All run on this machine, in
turns, one picture at a time, with the same number of threads, preprocessing, test pictures and
calibration pictures. A contender that is not installed, cannot be converted or does not run gets a row with
the reason."""
EXAMPLE = """example:
  pip install -e . -r bench/requirements.txt
  vgg-export all --weights demo --output artifacts
  python bench/peers.py --bundle artifacts --json peers.json --markdown peers.md
  python bench/peers.py --only vgg-export,torch-pruning,fasterai --finetune-minutes 10

The checkpoint is taken from the work folder that 'vgg-export all' leaves beside the bundle
(.artifacts.work/checkpoint.safetensors). The pictures are those the bundle was made with: --data as it
was given to 'vgg-export all'. Nothing that was used to fit, select or calibrate is a test picture. ncnn's
int8 needs its tools ncnn2table and ncnn2int8 on the PATH. torch.compile needs a C++ compiler. What the
engines print is in log.txt files below --work. The three that make the network smaller take the
fine-tuning minutes each; without --finetune-minutes these are in the sidecars of the work folder."""


def main(arguments: Sequence[str] | None = None) -> int:
    wanted = _parser().parse_args(arguments)
    try:
        result = run(wanted)
    except (VggExportError, RuntimeInputError) as error:
        print(f"Error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    print(terminal(result))
    if wanted.json:
        write_json(wanted.json, result)
    if wanted.markdown:
        wanted.markdown.write_text(markdown(result), encoding="utf-8")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="peers.py",
        description=HELP,
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
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
        "--data",
        metavar="imagenette|DIR|none",
        help="the pictures that were given to 'vgg-export all' (default: what fits the weights)",
    )
    add(
        "--checkpoint",
        type=Path,
        metavar="FILE",
        help="the baseline's .safetensors (default: the one in the bundle's work folder)",
    )
    add(
        "--calibration-images",
        type=_positive,
        default=DataOptions.calibration_images,
        metavar="N",
        help="use at most N calibration pictures (default: %(default)s)",
    )
    add(
        "--test-images",
        type=_positive,
        default=DataOptions.test_images,
        metavar="N",
        help="use at most N test pictures (default: %(default)s)",
    )
    add(
        "--seed",
        type=int,
        default=DataOptions.seed,
        metavar="N",
        help="the seed that was given to 'vgg-export all' (default: %(default)s)",
    )
    add(
        "--compress-to",
        metavar="VARIANT",
        help="the variant whose arithmetic and input size those that make the network smaller get (default:"
        " the one with the fewest multiply-accumulates)",
    )
    add(
        "--finetune-minutes",
        type=_minutes,
        metavar="N",
        help="how long each of them may fine-tune (default: what the variant took, by its sidecars)",
    )
    add(
        "--threads",
        type=_positive,
        default=2,
        metavar="N",
        help="threads of every engine (default: %(default)s)",
    )
    add(
        "--rounds",
        type=_positive,
        default=Options.rounds,
        metavar="N",
        help="turns of every contender (default: %(default)s)",
    )
    add(
        "--runs",
        type=_positive,
        default=Options.runs,
        metavar="N",
        help="timed inferences in a turn (default: %(default)s)",
    )
    add(
        "--only",
        metavar="A,B",
        help="only the baseline and contenders whose name contains one of these; e.g. --only openvino,scaled",
    )
    add(
        "--work",
        type=Path,
        metavar="DIR",
        help="folder for converted files and logs, emptied first (default: .BUNDLE.peers beside the bundle)",
    )
    add("--json", type=Path, metavar="FILE", help="write everything, with every single time")
    add("--markdown", type=Path, metavar="FILE", help="write the table for a README")
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected at least 1, found {number}")
    return number


def _minutes(text: str) -> float:
    number = float(text)
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a number of minutes above 0, found {text}")
    return number


def run(wanted: argparse.Namespace) -> dict[str, Any]:
    """Measure and return the result document.

    Raises:
        VggExportError, RuntimeInputError: the bundle or the pictures cannot be used.
    """
    folder = wanted.bundle.resolve()
    bundle = tuning.for_here(manifest.read(folder), None)
    manifest.verify(folder, bundle.all_files())
    every = (*of_bundle(folder, bundle), *of_baseline(bundle), *COMPRESSED)
    contenders = chosen(every, wanted.only)
    if wanted.compress_to:
        bundle.variant(wanted.compress_to)  # a wrong name ends here, not after the pictures were read
    work = _emptied(wanted.work or folder.parent / f".{folder.name}.peers")
    sets = gather(
        folder,
        bundle,
        DataOptions(wanted.data, wanted.seed, wanted.calibration_images, wanted.test_images),
        work,
    )
    baseline = bundle.variants[0]
    _report(f"preprocessing {len(sets.calibration)} calibration and {len(sets.test)} test pictures")
    sources = {
        "onnx": str(folder / baseline.build.model.path),
        "checkpoint": str((wanted.checkpoint or _work_of(folder) / "checkpoint.safetensors").resolve()),
        "calibration": str(_tensors(sets.calibration, baseline.preprocessing, work / "calibration.npy")),
        "px": baseline.preprocessing.px,
        "threads": wanted.threads,
    }
    contenders, minutes = with_goal(contenders, folder, bundle, sets, wanted, work)
    options = Options(
        wanted.threads, wanted.rounds, wanted.runs, patience_s=Options.patience_s + 60 * minutes
    )
    rows = measure(contenders, sources, _pictures(contenders, sets, work), work, options, _report)
    return document(bundle, contenders, rows, sets, options)


@dataclasses.dataclass(frozen=True)
class Sets:
    """Pictures to calibrate with, and others to test on. ``fitting`` and ``selection``: all that the bundle
    was fitted on, and all that it was selected with."""

    calibration: tuple[Item, ...]
    test: tuple[Item, ...]
    fitting: tuple[Item, ...] = ()
    selection: tuple[Item, ...] = ()


def with_goal(
    contenders: Sequence[Contender],
    folder: Path,
    bundle: manifest.Manifest,
    sets: Sets,
    wanted: argparse.Namespace,
    work: Path,
) -> tuple[tuple[Contender, ...], float]:
    """The contenders, and those that make the network smaller with what they have to meet, or with the reason
    why they cannot; and the minutes of their fine-tuning."""
    variant = bundle.variant(wanted.compress_to) if wanted.compress_to else None
    if not any(contender.compresses for contender in contenders):
        return tuple(contenders), 0.0
    try:
        found = goal(bundle, _work_of(folder), variant, wanted.finetune_minutes)
    except DataError as error:
        why = str(error)
        return tuple(dataclasses.replace(c, absent=why) if c.compresses else c for c in contenders), 0.0
    spec = found.variant.preprocessing
    _report(
        f"each that makes the network smaller gets {found.variant.macs / 1e9:.3g} GMACs at {spec.px} px, as"
        f" {found.variant.id} has, and {found.minutes:.1f} minutes"
    )
    given = _sources_of(found, sets, wanted.seed, work)
    return tuple(
        dataclasses.replace(c, sources=given, preprocessing=spec) if c.compresses else c for c in contenders
    ), found.minutes


def _sources_of(found: Goal, sets: Sets, seed: int, work: Path) -> dict[str, Any]:
    """What those that make the network smaller are made from, where it differs from the others' sources."""
    spec = found.variant.preprocessing
    limits = ((sets.fitting, found.images), (sets.selection, FinetuneOptions.select_images))
    parts = [tuple(choose.limit(part, [i.source for i in part], n, seed)) for part, n in limits]
    pictures = write_pictures(FinetunePictures(spec, *parts), work / "finetune.json")
    return {
        "px": spec.px,
        "calibration": str(_tensors(sets.calibration, spec, work / "calibration-smaller.npy")),
        "compression": {
            "macs": found.variant.macs,
            "minutes": found.minutes,
            "pictures": str(pictures),
        },
    }


def gather(folder: Path, bundle: manifest.Manifest, options: DataOptions, cache: Path) -> Sets:
    """The bundle's own fitting pictures, and test pictures that nothing in it was fitted to or selected on.

    'vgg-export evaluate' takes the same test pictures. Signs are drawn into ``cache``.

    Raises:
        DataError: the pictures that the bundle was fitted on are not among them.
    """
    kind, labels, ids = bundle.weights["weights"], manifest.read_labels(folder, bundle), bundle.class_ids
    progress, fitted = Quiet(), manifest.read_fitted(folder)
    splits = resolve(options, kind, labels, ids, cache, progress)
    test = () if bundle.figures_absent else unseen(options, kind, labels, ids, fitted, cache, progress)
    every, recorded = (*splits.fit, *splits.select, *splits.test), _recorded(folder)
    fit, select = (tuple(i for i in every if i.sha256 in recorded[part]) for part in ("fit", "select"))
    if not fit:
        raise DataError(
            f"{splits.origin}: none of these pictures is one the bundle was fitted on; give the --data that"
            " 'vgg-export all' was given"
        )
    return Sets(
        tuple(choose.limit(fit, [i.source for i in fit], options.calibration_images, options.seed)),
        tuple(test),
        fit,
        select,
    )


def _recorded(folder: Path) -> dict[str, set[str]]:
    """The hashes of the pictures that the bundle was fitted on and selected with."""
    recorded = json.loads((folder / manifest.SPLITS_NAME).read_text(encoding="utf-8"))
    return {part: {item["sha256"] for item in recorded[part]} for part in ("fit", "select")}


def _work_of(folder: Path) -> Path:
    """The work folder that 'vgg-export all' leaves beside a bundle."""
    return folder.parent / f".{folder.name}.work"


def _emptied(work: Path) -> Path:
    """Make the work folder, or empty it; returns its absolute path.

    Raises:
        DataError: it is not empty, and something else made it.
    """
    mark = work / ".peers"
    if work.exists() and any(work.iterdir()) and not mark.exists():
        raise DataError(
            f"{work} is not empty and was not made by this program; name another folder with --work"
        )
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    mark.touch()
    return work.resolve()


def _pictures(contenders: Sequence[Contender], sets: Sets, work: Path) -> Pictures:
    """The pictures, preprocessed once for all contenders with the same preprocessing."""
    kinds = {c.preprocessing for c in contenders if c.preprocessing}
    timed = (sets.test or sets.calibration)[:TIMED_PICTURES]
    return Pictures(
        {kind: _tensors(timed, kind, work / f"timed-{kind.px}.npy") for kind in kinds},
        {kind: _tensors(sets.test, kind, work / f"test-{kind.px}.npy") for kind in kinds if sets.test},
        tuple(item.label for item in sets.test),
    )


def _tensors(items: Sequence[Item], preprocessing: InputSpec, path: Path) -> Path:
    """The pictures as one .npy file [n, 3, px, px], written picture by picture."""
    shape = (len(items), *preprocessing.shape)
    tensors = np.lib.format.open_memmap(path, "w+", np.float32, shape)
    for row, item in enumerate(items):
        tensors[row] = load(item.path, preprocessing)
    tensors.flush()
    return path


def document(
    bundle: manifest.Manifest,
    contenders: Sequence[Contender],
    rows: list[dict[str, Any]],
    sets: Sets,
    options: Options,
) -> dict[str, Any]:
    """Everything that was measured, and on what."""
    packages = dict.fromkeys(package for contender in contenders for package in contender.packages)
    return {
        "schema": SCHEMA,
        "measured_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "device": device.describe(options.threads).to_json(),
        "kernel": platform.release(),
        "versions": {package: _version(package) for package in packages},
        "options": dataclasses.asdict(options),
        "bundle": {
            "family": bundle.family,
            "weights": bundle.weights,
            "target": bundle.target,
            "notice": bundle.notice,
        },
        "figures_absent": bundle.figures_absent or (None if sets.test else "there are no test pictures"),
        "calibration_images": len(sets.calibration),
        "test_images": len(sets.test),
        "contenders": rows,
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def cells(row: dict[str, Any], default_px: int) -> list[str]:
    """A row of the table as text; what was not measured is a dash."""
    bfloat16 = {None: text.ABSENT, True: "yes", False: "no"}[row["bfloat16"]]
    return [
        row["contender"],
        f"{row['input_px'] or default_px} px",
        text.number(row["parameters"] and row["parameters"] / 1e6, digits=2),
        text.number(row["macs"] and row["macs"] / 1e9, digits=2),
        text.megabytes(row["size_bytes"]),
        text.number(row["load_ms"], digits=0),
        text.number(row["first_ms"], digits=0),
        text.number(row["p50_ms"]),
        text.number(row["speedup"], "x", 2),
        text.megabytes(row["peak_rss_bytes"]),
        text.percent(row["agreement"] and Proportion.from_json(row["agreement"]), interval=True),
        text.percent(row["top1"] and Proportion.from_json(row["top1"]), interval=True),
        bfloat16,
    ]


def _remark(row: dict[str, Any]) -> str:
    return str(row["error"] or "; ".join(filter(None, (row["made"], row["remark"]))))


def facts(result: dict[str, Any]) -> list[str]:
    """What was measured, on which machine and how, in one line each."""
    machine, options = result["device"], result["options"]
    versions = ", ".join(
        f"{name} {version or 'not installed'}" for name, version in result["versions"].items()
    )
    agreement = (
        f"agrees: same top-1 as the baseline on {result['test_images']} test pictures, with the 95 %"
        " interval; top-1: right on those with labels"
    )
    return [
        f"{machine['cpu'] or machine['machine']}"
        f" ({' '.join(machine['features']) or 'no int8 instructions known'}),"
        f" {machine['cores']} cores, {machine['os']}, Python {machine['python']};"
        f" {result['measured_at'][:10]}",
        f"{versions}",
        f"{options['threads']} threads, one picture at a time; P50 of {options['rounds']} rounds of"
        f" {options['runs']} runs,"
        " the order rotated from round to round, the other contenders stopped meanwhile",
        f"{result['bundle']['family']},"
        f" {result['bundle']['weights'].get('what', 'weights of unknown origin')};"
        f" {result['calibration_images']} calibration pictures; vgg-export's int8 made for"
        f" {result['bundle']['target']}",
        f"no agreement: {result['figures_absent']}" if result["figures_absent"] else agreement,
        "file: what must be shipped; load: with the file in the system's cache, without importing the"
        " engine; peak: VmHWM of the"
        " contender's process, Python included; bf16: whether the engine may compute in bfloat16",
    ]


def terminal(result: dict[str, Any]) -> str:
    """The aligned table, the reasons and remarks below it."""
    rows = result["contenders"]
    lines = [
        *facts(result),
        *([f"!! {result['bundle']['notice']}"] if result["bundle"]["notice"] else []),
        "",
    ]
    lines.append(text.table(COLUMNS, [cells(row, rows[0]["input_px"]) for row in rows]))
    lines += [
        f"{'✗' if row['error'] else '·'} {row['contender']}: {_remark(row)}" for row in rows if _remark(row)
    ]
    return "\n".join(lines)


def markdown(result: dict[str, Any]) -> str:
    """The table for a README, each reason in its row, and the facts as a list."""
    rows = [[*cells(row, result["contenders"][0]["input_px"]), _remark(row)] for row in result["contenders"]]
    lines = [[*COLUMNS, "remark"], ["---"] * (len(COLUMNS) + 1), *rows]
    table = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
    notice = [f"- {result['bundle']['notice']}"] if result["bundle"]["notice"] else []
    return "\n".join([table, "", *(f"- {fact}" for fact in facts(result)), *notice]) + "\n"


def _report(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
