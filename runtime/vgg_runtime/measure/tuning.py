"""``compare.py --tune``: times the builds of each variant on this board once and remembers the fastest.

Counted instructions and tables of cores only estimate time; the board measures it. The result is kept in the
user's cache, for this board, this onnxruntime and these models.
"""

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from vgg_runtime import output
from vgg_runtime.board import device
from vgg_runtime.board.targets import of_device
from vgg_runtime.bundle import builds
from vgg_runtime.bundle.manifest import Build, Manifest, Variant
from vgg_runtime.bundle.opened import Bundle
from vgg_runtime.errors import RuntimeInputError
from vgg_runtime.records import parse
from vgg_runtime.result import Device

from .running import Options, Pictures, measure

ROUNDS = 3
BUDGET_S = 0.6  # of timed runs of each build in a round
MARGIN = 1.03  # another build must be this many times as fast as the one for this core

Report = Callable[[str], None]


def for_here(bundle: Manifest, wanted: str | None, root: Path = Path("/")) -> Manifest:
    """The manifest with the builds to run here in front: those for the target ``wanted``, else those that
    were measured to be the fastest here, else those for this core.

    Raises:
        BundleError: there is no such target.
    """
    if wanted is not None:
        return builds.for_core(bundle, builds.target_named(wanted))
    board = device.describe(1, root)
    return builds.for_core(bundle, of_device(board), remembered(bundle, board))


def tune(bundle: Bundle, variants: Sequence[Variant], threads: int, root: Path, report: Report) -> Bundle:
    """Time the builds of each variant in turn, remember the fastest, and return the bundle with these in
    front."""
    board = device.describe(threads, root)
    target, options = of_device(board), Options(threads, budget_s=BUDGET_S, rounds=1, root=root)
    found, before = remembered(bundle.manifest, board), builds.for_core(bundle.manifest, target)
    for variant in variants:
        if len(variant.builds) > 1:
            # the build for this core comes first, whatever an earlier run remembered
            tried = before.variant(variant.id).builds
            times = _timed(bundle, variant, tried, options)
            if best := _fastest(times):
                found[variant.id] = best
            told = ", ".join(
                f"{name} {'failed' if ms == float('inf') else f'{ms:.1f} ms'}" for name, ms in times.items()
            )
            report(f"tuned {variant.id}: {told}; {found.get(variant.id, 'none')} is used")
    try:
        _remember(bundle.manifest, board, found)
    except (OSError, RuntimeInputError) as error:
        report(f"the fastest builds could not be saved ({error}); set XDG_CACHE_HOME to a writable folder")
    return bundle.using(builds.for_core(bundle.manifest, target, found))


def _timed(bundle: Bundle, variant: Variant, tried: Sequence[Build], options: Options) -> dict[str, float]:
    """Median latency in ms by build id, infinite for a build that fails; the builds take turns."""
    times: dict[str, list[float]] = {build.id: [] for build in tried}
    for _ in range(ROUNDS):
        for build in tried:
            row = measure(bundle, variant.using(build), Pictures(), options, lambda _: None)
            times[build.id].append(row.p50_ms if row.error is None and row.p50_ms else float("inf"))
    return {name: sorted(values)[len(values) // 2] for name, values in times.items()}


def _fastest(times: dict[str, float]) -> str | None:
    """The id of the build with the least latency; the first id if no other is faster by MARGIN; None if all
    failed."""
    best, first = min(times, key=lambda name: times[name]), next(iter(times))
    if times[best] == float("inf"):
        return None
    return best if times[best] * MARGIN < times[first] else first


def cache_file() -> Path:
    """The file that remembers the fastest builds.

    Raises:
        RuntimeInputError: this user has no home folder.
    """
    return output.cache_folder() / "tuned.json"


def remembered(bundle: Manifest, board: Device) -> dict[str, str]:
    """The ids of the fastest builds on this board, by variant; empty if they were never measured."""
    found = _read().get(_key(bundle, board), {}).get("builds", {})
    return {str(variant): str(build) for variant, build in found.items()} if isinstance(found, dict) else {}


def _remember(bundle: Manifest, board: Device, found: dict[str, str]) -> None:
    known = _read() | {
        _key(bundle, board): {"board": board.board, "measured_at": time.strftime("%Y-%m-%d"), "builds": found}
    }
    cache_file().parent.mkdir(parents=True, exist_ok=True)
    output.write(cache_file(), json.dumps(known, indent=1))


def _read() -> dict[str, Any]:
    try:
        known = parse(cache_file().read_text(encoding="utf-8"))
    except (OSError, ValueError, RuntimeInputError):
        return {}  # nothing was measured yet, or the file is damaged and --tune writes it anew
    return known if isinstance(known, dict) and all(isinstance(v, dict) for v in known.values()) else {}


def _key(bundle: Manifest, board: Device) -> str:
    models = [
        entry.sha256 for variant in bundle.variants for build in variant.builds for entry in build.files
    ]
    parts = [sorted(models), board.board, board.cpu, board.cores, board.onnxruntime]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]
