"""Measures variants one at a time, in rounds, and makes the result document.

The document is a contract (schema 1, described in docs/json.md). Values that were not measured are
None.
"""

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vgg_runtime.board import device, monitor, targets
from vgg_runtime.bundle import builds
from vgg_runtime.bundle.manifest import Variant
from vgg_runtime.bundle.metrics import chance, proportion
from vgg_runtime.bundle.opened import Bundle
from vgg_runtime.bundle.outputs import MULTI_LABEL, TOP1_ABSENT, given
from vgg_runtime.result import (
    SCHEMA,
    About,
    Image,
    MeasuredDevice,
    Prediction,
    Predictions,
    Result,
    Row,
    ThreadTrial,
)

from . import aggregate, remedies
from .kept import Kept, Store
from .recommend import LEAST_LABELLED, near_chance, recommend
from .running import Options, Pictures, Report, empty_row, measure

SWEPT_THREADS = (1, 2, 4)


@dataclasses.dataclass(frozen=True)
class Shown:
    """A picture to classify, with its class index where that is known. ``fitted``: the models of the bundle
    were fitted or calibrated on it, so it counts for no figure. ``digest``: the beginning of its sha256,
    if it was read."""

    path: Path
    label: int | None = None
    fitted: bool = False
    digest: str | None = None


def compare(
    bundle: Bundle,
    variants: Sequence[Variant],
    images: Sequence[Shown],
    options: Options,
    report: Report,
    store: Store | None = None,
) -> Result:
    """Measure ``variants`` on ``images`` in rounds. ``store`` keeps their answers, and has those of an
    interrupted comparison."""
    begun = skeleton(bundle, images, options)
    start = monitor.state_now(options.root)
    rows = [empty_row(variant) for variant in variants]
    paths = [image.path for image in images]
    for turn in range(options.rounds):
        for number, k in enumerate(aggregate.order(len(variants), turn), 1):
            variant = variants[k]
            if rows[k].error:
                continue  # it failed in the first round
            report(f"round {turn + 1}/{options.rounds}, {number}/{len(variants)} {variant.id}")
            if not turn:
                rows[k] = _with_threads(bundle, variant, rows[k], options, report)
            monitor.cool_down(start, options.cool_down_s, options.root)
            share = options.of_a_round(rows[k].threads or device.usable_cores())
            # what is kept belongs to a memory mode, so that it must not change until the model is loaded
            share = dataclasses.replace(share, memory=_mode(variant, options))
            asked = Pictures() if turn else Pictures(paths, kept=_kept(store, bundle, variant, share))
            rows[k] = _with_round(rows[k], measure(bundle, variant, asked, share, report))
    clocks = [found.state.during.clock_mhz for row in rows for found in row.rounds]
    highest = max((mhz for mhz in clocks if mhz), default=None)
    return finish(begun, [aggregate.settled(row, highest) for row in rows], bundle, images, options.root)


def _mode(variant: Variant, options: Options) -> str:
    """The memory mode that a variant is run in now."""
    return builds.mode(variant.build, options.memory, device.available_bytes(options.root))


def _kept(store: Store | None, bundle: Bundle, variant: Variant, options: Options) -> Kept | None:
    """Where the answers of a variant are kept, if anywhere."""
    if store is None:
        return None
    return store.of(variant, options.memory, bundle.manifest.output, len(bundle.labels))


def _with_round(row: Row, found: Row) -> Row:
    """The row with one more round. The predictions come from the first round, which alone runs the
    pictures."""
    deviations = [one.self_check_deviation for one in (row, found)]
    return dataclasses.replace(
        row,
        rounds=row.rounds + found.rounds,
        peak_rss_bytes=_most(row.peak_rss_bytes, found.peak_rss_bytes),
        peak_anonymous_bytes=_most(row.peak_anonymous_bytes, found.peak_anonymous_bytes),
        peak_file_backed_bytes=_most(row.peak_file_backed_bytes, found.peak_file_backed_bytes),
        memory_mode=found.memory_mode,
        error=row.error or found.error,
        self_check_deviation=max((one for one in deviations if one is not None), default=None),
        predictions=row.predictions or found.predictions,
        prepare_ms=row.prepare_ms or found.prepare_ms,
        end_to_end_ms=row.end_to_end_ms or found.end_to_end_ms,
    )


def _most(one: int | None, other: int | None) -> int | None:
    return max((value for value in (one, other) if value is not None), default=None)


def _with_threads(bundle: Bundle, variant: Variant, row: Row, options: Options, report: Report) -> Row:
    """The row with its number of threads and the trials that led to it. It is the number that was asked for,
    else the one with the least P90, or the least P50 where there were too few runs for a P90."""
    if options.threads:
        return dataclasses.replace(row, threads=options.threads)
    usable = device.usable_cores()
    sweep = []
    for threads in [n for n in SWEPT_THREADS if n <= usable]:
        report(f"  {variant.id}: trying {threads} thread{'s' if threads > 1 else ''}")
        found = measure(bundle, variant, Pictures(), options.of_a_round(threads), report)
        sweep.append(ThreadTrial(threads, found.p50_ms, found.p90_ms, found.runs, found.error))
    worked = [tried for tried in sweep if tried.p50_ms]
    by_p90 = all(tried.p90_ms for tried in worked)
    best = min(worked, key=lambda tried: (tried.p90_ms if by_p90 else tried.p50_ms) or 0.0, default=None)
    return dataclasses.replace(row, threads=best.threads if best else usable, thread_sweep=tuple(sweep))


def skeleton(bundle: Bundle, images: Sequence[Shown], options: Options) -> Result:
    """The result before any variant has been measured."""
    board = device.describe(options.threads or device.usable_cores(), options.root)
    return Result(
        schema=SCHEMA,
        measured_at=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        device=MeasuredDevice(**vars(board), target=targets.of_device(board).name),
        bundle=about(bundle),
        images=tuple(_image(image, bundle.labels) for image in images),
        variants=(),
    )


def about(bundle: Bundle) -> About:
    """The description of the bundle in a result."""
    manifest = bundle.manifest
    return About(
        path=str(bundle.folder),
        family=manifest.family,
        weights=manifest.weights,
        target=manifest.target,
        notice=manifest.notice,
        figures_absent=manifest.figures_absent,
        unchecked=manifest.unchecked,
        problem=manifest.problem,
        assumed=manifest.assumed,
        created_by=manifest.created_by,
        baseline=manifest.variants[0].id if len(manifest.variants) > 1 else None,
        output=manifest.output,
        top1_absent=TOP1_ABSENT.get(manifest.output),
        network=manifest.network,
    )


def _image(image: Shown, labels: Sequence[str]) -> Image:
    return Image(str(image.path), None if image.label is None else labels[image.label], image.fitted)


def finish(
    begun: Result, rows: Sequence[Row], bundle: Bundle, images: Sequence[Shown], root: Path = Path("/")
) -> Result:
    """The result with these rows: compared with the baseline, with class names, a recommendation and
    explanations."""
    manifest = bundle.manifest
    result = dataclasses.replace(begun, variants=tuple(_named(row, bundle.labels) for row in rows))
    sound = result.baseline if result.baseline and result.baseline.error is None else None
    related = tuple(_related(row, sound, images, bundle) for row in result.variants)
    # read again: measuring may have made the board hot
    board = dataclasses.replace(begun.device, **device.state(root))
    result = dataclasses.replace(result, variants=related, device=board)
    # the problem itself is long and already in the notice above the table
    problem = (
        manifest.problem and "the checkpoint does not understand its pictures; the notice says what was found"
    )
    why_not = problem or _near_chance(result.baseline, images, bundle.labels)
    pick = recommend(
        related,
        result.bundle.baseline,
        manifest.max_drop,
        why_not,
        manifest.output,
        manifest.searched,
        sure=manifest.sure,
    )
    result = dataclasses.replace(result, recommended=pick)
    return dataclasses.replace(result, explanations=tuple(remedies.explanations(result)))


def _near_chance(baseline: Row | None, images: Sequence[Shown], labels: Sequence[str]) -> str | None:
    """The reason why nothing is recommended when the baseline is not clearly better than chance on the
    pictures shown here; None when it is, or when fewer than LEAST_LABELLED have labels."""
    known = [image.label for image in images if image.label is not None and not image.fitted]
    if baseline is None or baseline.error is not None or len(known) < LEAST_LABELLED:
        return None
    return near_chance(baseline.accuracy, chance(np.array(known), len(labels)), "pictures shown here")


def _related(row: Row, baseline: Row | None, images: Sequence[Shown], bundle: Bundle) -> Row:
    """The row with its speed relative to the baseline, its agreement with the baseline and its accuracy. Each
    is left out where there is nothing to compute it from, or where it would mean nothing."""
    if baseline and baseline.p50_ms and row.p50_ms:
        row = dataclasses.replace(row, speedup=baseline.p50_ms / row.p50_ms)
    said, output = row.predictions, bundle.manifest.output
    counted = [k for k, image in enumerate(images) if not image.fitted]
    if bundle.manifest.figures_absent or len(said) != len(images) or not counted:
        return row
    if baseline and len(baseline.predictions) == len(images):
        differing = sum(_differing(said[k], baseline.predictions[k], output) for k in counted)
        decisions = len(bundle.labels) if output == MULTI_LABEL else 1  # per picture
        same = len(counted) - differing / decisions
        row = dataclasses.replace(row, agreement=proportion(same, len(counted)))
    known = [k for k in counted if images[k].label is not None]
    if known and output not in TOP1_ABSENT:
        right = sum(said[k].classes[0] == images[k].label for k in known)
        row = dataclasses.replace(row, accuracy=proportion(right, len(known)))
    return row


def _differing(one: Prediction, other: Prediction, output: str) -> int:
    """The number of decisions on a picture that differ: 0 or 1 where it has one class."""
    chosen = [set(said.classes[: given(said.probabilities, output)]) for said in (one, other)]
    return len(chosen[0] ^ chosen[1]) if output == MULTI_LABEL else int(chosen[0] != chosen[1])


def _named(row: Row, labels: Sequence[str]) -> Row:
    """The row with the names of the classes in its predictions."""
    said = row.predictions if isinstance(row.predictions, Predictions) else Predictions(row.predictions)
    return dataclasses.replace(row, predictions=said.named(labels))
