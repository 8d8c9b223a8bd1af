"""Runs one stage by hand: reads and checks its inputs, then calls it."""

from pathlib import Path

from . import inputs
from .compress import distil, factorise, prune
from .core.progress import Progress
from .data.splits import ensure_there
from .graphs import export
from .int8 import quantize
from .options import (
    DataOptions,
    FactoriseOptions,
    FinetuneOptions,
    PruneOptions,
    QuantizeOptions,
    WeightsOptions,
)


def _work(output: Path) -> Path:
    """The folder where a single stage keeps converted files."""
    return output.parent / f".{output.stem}.work"


def run_prune(
    weights: WeightsOptions,
    pictures: DataOptions | None,
    options: PruneOptions,
    output: Path,
    progress: Progress,
    *,
    accept: bool,
) -> None:
    """Prune a checkpoint; without ``pictures`` on noise. Named pictures that the pruning does not need only
    check whether the checkpoint understands them.

    Raises:
        AccuracyError: it does not understand the pictures, unless that is to be accepted.
    """
    work = _work(output)
    named = pictures if pictures and pictures.spec else None
    shown = pictures if named or options.sees_pictures else None
    if not shown:
        inputs.ensure_no_auto(weights)
    checkpoint = inputs.checkpoint_file(weights, named, work, progress)
    splits = None
    if shown:
        splits = inputs.splits_for(checkpoint, shown, work, progress)
        checked = inputs.ensure_understood(
            checkpoint, splits, work, progress, accept=accept, told=weights.input
        )
        checkpoint = inputs.with_chosen_input(checkpoint, checked, work)
    prune.run(checkpoint, splits if options.sees_pictures else None, output, options, progress)


def run_factorise(
    weights: WeightsOptions,
    pictures: DataOptions,
    options: FactoriseOptions,
    output: Path,
    progress: Progress,
    *,
    accept: bool,
) -> None:
    """Factorise a checkpoint.

    Raises:
        AccuracyError: it does not understand the pictures, unless that is to be accepted.
    """
    work = _work(output)
    checkpoint = inputs.checkpoint_file(weights, pictures, work, progress)
    splits = inputs.splits_for(checkpoint, pictures, work, progress)
    checked = inputs.ensure_understood(checkpoint, splits, work, progress, accept=accept, told=weights.input)
    checkpoint = inputs.with_chosen_input(checkpoint, checked, work)
    factorise.run(checkpoint, splits, output, options, progress, work)


def run_finetune(
    weights: WeightsOptions,
    teacher: WeightsOptions,
    pictures: DataOptions,
    options: FinetuneOptions,
    output: Path,
    progress: Progress,
    *,
    accept: bool,
) -> bool:
    """Fine-tune a checkpoint; returns whether there was anything to do.

    Raises:
        AccuracyError: the teacher does not understand the pictures, unless that is to be accepted.
    """
    work = _work(output)
    student = inputs.checkpoint_file(weights, pictures, work, progress)
    taught_by = inputs.checkpoint_file(teacher, pictures, work, progress, "teacher")
    splits = inputs.splits_for(student, pictures, work, progress)
    # the teacher is asked, since the student may be damaged by pruning
    checked = inputs.ensure_understood(taught_by, splits, work, progress, accept=accept, told=teacher.input)
    student, taught_by = (inputs.with_chosen_input(one, checked, work) for one in (student, taught_by))
    return distil.run(student, taught_by, splits, output, options, progress).path == output


def run_export(weights: WeightsOptions, output: Path, progress: Progress) -> None:
    """Export a checkpoint."""
    inputs.ensure_no_auto(weights)
    export.run(inputs.checkpoint_file(weights, None, _work(output), progress), output, progress)


def run_quantize(
    model: Path, pictures: DataOptions, options: QuantizeOptions, output: Path, progress: Progress
) -> None:
    """Quantize an exported model."""
    ensure_there(pictures)
    exported = inputs.model_file(model)
    splits = inputs.splits_for(exported, pictures, _work(output), progress)
    quantize.run(exported, splits, pictures.calibration_images, output, options, progress, pictures.seed)
