"""The command line: options -> options.py -> a stage. No logic; the only place that prints.

Exit codes: 0 done, 1 a stage or its check failed, 2 unusable input or options, 130 interrupted.
"""

import contextlib
import functools
import json
import logging
import os
import re
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import click

from vgg_runtime.board.targets import TARGETS

from . import __version__, options
from .core.errors import OptionsError, VggExportError

EXIT_INTERRUPTED = 130
SECONDS_BETWEEN_LINES = 10.0
COMPARE_BUDGET_S = 3.0

Command = Callable[..., Any]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code; no traceback reaches a user."""
    from vgg_runtime.errors import RuntimeInputError

    try:
        result = cli.main(arguments, prog_name="vgg-export", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return 2
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except VggExportError as error:
        click.secho(f"Error: {error}", fg="red", err=True)
        return error.exit_code
    except RuntimeInputError as error:
        click.secho(f"Error: {error}", fg="red", err=True)
        return 2
    except (KeyboardInterrupt, click.Abort):
        click.echo(
            "\nInterrupted; what was finished is kept and the same command goes on from there.", err=True
        )
        return EXIT_INTERRUPTED
    except MemoryError:
        click.secho(
            "Error: this computer ran out of memory; close other programs or use a machine with more",
            fg="red",
            err=True,
        )
        return 1
    except Exception as error:
        if os.environ.get("VGG_EXPORT_TRACEBACK"):
            raise
        text = " ".join(str(error).split())[:300]
        click.secho(
            f"Error: unexpected {type(error).__name__}: {text} (VGG_EXPORT_TRACEBACK=1 shows where; please"
            " report it)",
            fg="red",
            err=True,
        )
        return 1
    return int(result or 0)


class TerminalProgress:
    """Bars with remaining time on a terminal, a line now and then elsewhere."""

    @contextlib.contextmanager
    def task(self, label: str, total: int | None) -> Iterator["_Line | _Bar"]:
        if total and sys.stderr.isatty():
            with click.progressbar(
                length=total, label=f"  {label:<42}", file=sys.stderr, show_eta=True, show_pos=True
            ) as bar:
                yield _Bar(bar)
            return
        line = _Line(label, total)
        yield line
        line.done()


class _Bar:
    def __init__(self, bar: Any) -> None:
        self._bar = bar

    def advance(self, steps: int = 1) -> None:
        self._bar.update(steps)


class _Line:
    """Says what is being done at once where it cannot be counted, and how long it took when it took long."""

    def __init__(self, label: str, total: int | None) -> None:
        self._label, self._total, self._done = label, total, 0
        self._start = self._shown = time.monotonic()
        if sys.stderr.isatty():
            click.echo(f"  {label} ...", err=True, nl=False)

    def advance(self, steps: int = 1) -> None:
        self._done += steps
        now = time.monotonic()
        if self._total and now - self._shown >= SECONDS_BETWEEN_LINES:
            left = (now - self._start) / self._done * (self._total - self._done)
            click.echo(f"  {self._label}: {self._done} of {self._total}, {left:.0f} s left", err=True)
            self._shown = now

    def done(self) -> None:
        seconds = time.monotonic() - self._start
        if sys.stderr.isatty():
            click.echo(f"\r  {self._label:<42} {seconds:.1f} s", err=True)
        elif seconds >= 1:
            click.echo(f"  {self._label}: done in {seconds:.1f} s", err=True)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="vgg-export")
def cli() -> None:
    """Make a big VGG usable on a small board: prune, fine-tune, quantize, shrink the input, compare.

    Example: vgg-export all --weights my_vgg16.pth --data photos/ --output artifacts
    """
    logging.basicConfig(format="%(message)s", stream=sys.stderr, force=True)
    for name in ("vgg_export", "vgg_calibration"):
        logging.getLogger(name).setLevel(logging.INFO)
    for name in ("torch", "onnxscript", "onnx_ir", "onnxruntime"):
        logging.getLogger(name).setLevel(logging.ERROR)
    logging.getLogger().setLevel(logging.ERROR)
    # the libraries' remarks to programmers; what a user must know is an error or logged
    warnings.simplefilter("ignore")


def _grouped(*decorators: Command) -> Command:
    def apply(function: Command) -> Command:
        for decorator in reversed(decorators):
            function = decorator(function)
        return function

    return apply


_FILE = click.Path(path_type=Path, dir_okay=False)
_FOLDER = click.Path(path_type=Path, file_okay=False)
_weights = _grouped(
    click.option(
        "--weights",
        default="auto",
        show_default=True,
        metavar="auto|imagenet|demo|random|FILE",
        help="Where the checkpoint comes from.",
    ),
    click.option(
        "--labels",
        type=_FILE,
        help='Class names in the order of the classes, one a line, or JSON (a list, {"0": name} or {name:'
        " 0}).",
    ),
)
_data = click.option("--data", metavar="imagenette|DIR|none", help="Pictures; the default fits the weights.")
_calibration = click.option(
    "--calibration-images",
    type=int,
    default=options.DataOptions.calibration_images,
    show_default=True,
    help="At most so many calibrate int8.",
)
_test = click.option(
    "--test-images",
    type=int,
    default=options.DataOptions.test_images,
    show_default=True,
    help="At most so many are evaluated.",
)
_seed = click.option(
    "--seed",
    type=click.IntRange(0, 99),
    default=0,
    show_default=True,
    help="Of everything that is drawn or split at random.",
)
_accept = click.option(
    "--accept-accuracy",
    is_flag=True,
    help="Go on with a checkpoint that is near chance on the labelled pictures, or has its classes in"
    " another order.",
)
_prune = _grouped(
    click.option(
        "--prune-ratio",
        type=float,
        default=options.PruneOptions.ratio,
        show_default=True,
        help="Share of the filters to remove.",
    ),
    click.option(
        "--prune-from",
        type=click.Choice(options.BLOCK_NAMES),
        default=options.PruneOptions.first_block,
        show_default=True,
        help="First block to prune.",
    ),
    click.option(
        "--criterion",
        type=click.Choice(options.CRITERIA),
        default=options.PruneOptions.criterion,
        show_default=True,
        help="What makes a filter important.",
    ),
    click.option(
        "--width-multiple",
        type=int,
        help="Widths land on a multiple of this  [default: what the target's int8 kernels want, 8 or 16]",
    ),
    click.option(
        "--prune-widths",
        type=click.Choice(options.ALLOCATIONS),
        default=options.PruneOptions.allocation,
        show_default=True,
        help="The same ratio everywhere, or more where filters are missed less (needs obs).",
    ),
)
_no_repair = click.option(
    "--no-repair", is_flag=True, help="Prune without the closed-form repair, to see what it buys."
)
_repair_images = click.option(
    "--repair-images",
    type=int,
    default=options.REPAIR_IMAGES,
    show_default=True,
    help="At most so many to fit layers on.",
)
_factorise = _grouped(
    click.option(
        "--conv-share",
        type=float,
        default=options.FactoriseOptions.conv_share,
        show_default=True,
        help="What is left of the convolutions' arithmetic.",
    ),
    click.option(
        "--fc-ranks",
        metavar="A,B",
        help="Ranks of fc1 and fc2  [default: by their width and the number of classes]",
    ),
)
_finetune = _grouped(
    click.option(
        "--finetune-epochs",
        "epochs",
        type=int,
        default=options.FinetuneOptions.epochs,
        show_default=True,
        help="0 to leave it out. Compact variants have levels of their own: --distil-up-to.",
    ),
    click.option(
        "--finetune-images",
        "images",
        type=int,
        default=options.FinetuneOptions.images,
        show_default=True,
        help="At most so many an epoch.",
    ),
    click.option(
        "--learning-rate",
        "rate",
        type=float,
        default=options.FinetuneOptions.rate,
        show_default=True,
        help="Of the first epoch, relative to the size of each tensor; halved in each one after.",
    ),
    click.option(
        "--train-from",
        type=click.Choice(options.TRAINABLE),
        default=options.FinetuneOptions.train_from,
        show_default=True,
        help="First layers whose weights move; fc1: only the classifier.",
    ),
)
_one_target = functools.partial(
    click.option, "--target", type=click.Choice(tuple(TARGETS)), help="The core that int8 is made for."
)
_target = _one_target(default=options.QuantizeOptions.target, show_default=True)
_target_here = _one_target(default=lambda: options.default_targets()[0], show_default="this machine")
_targets = click.option(
    "--target",
    "targets",
    type=click.Choice(tuple(TARGETS)),
    multiple=True,
    help="The core to build for; may be repeated, and then only what is worth it on one of them is made"
    "  [default: this machine and pi5, every variant]",
)
_quantize = _grouped(
    click.option(
        "--int8-method",
        type=click.Choice(("auto", *options.INT8_FORMS)),
        default=options.QuantizeOptions.method,
        show_default=True,
        help="How int8 is made; auto: the plain minmax, or what is closer to the float model where that is"
        " not close enough.",
    ),
    click.option(
        "--min-agreement",
        type=float,
        default=options.QuantizeOptions.min_agreement,
        show_default=True,
        help="With the float model; below it the most sensitive layers stay float (not of compact variants"
        " under --max-drop). 0: none.",
    ),
)


_scaled = click.option(
    "--scaled-px",
    type=int,
    default=options.AllOptions.scaled_px,
    show_default=True,
    help="Side of the smaller input.",
)
_budget = _grouped(
    click.option(
        "--max-drop",
        type=float,
        metavar="POINTS",
        help="Search the compact variants: lose at most so many points of top-1, standard error included.",
    ),
    click.option("--target-size", metavar="SIZE", help="Search: a file of at most so much, e.g. 20MB."),
    click.option(
        "--target-speedup",
        type=float,
        metavar="X",
        help="Search: at least so many times the baseline's speed, here.",
    ),
)
_distil = click.option(
    "--distil-up-to",
    type=click.Choice(options.DISTIL_CHOICES),
    default=options.DistilOptions.up_to,
    show_default=True,
    help="Of the compact variants: what is trained again. auto: the classifier; for a budget the deeper"
    " blocks, too, if needed.",
)


def _work(output: Path) -> Path:
    """Where a single stage keeps what it converts on the way."""
    return output.parent / f".{output.stem}.work"


def _weights_options(chosen: dict[str, Any]) -> options.WeightsOptions:
    return options.WeightsOptions(chosen["weights"], chosen["labels"], chosen.get("seed", 0))


def _data_options(chosen: dict[str, Any]) -> options.DataOptions:
    default = options.DataOptions()
    calibration = chosen.get("calibration_images", default.calibration_images)
    return options.DataOptions(
        chosen["data"], chosen.get("seed", 0), calibration, chosen.get("test_images", default.test_images)
    )


def _ensure_output(output: Path, suffix: str, *inputs: Path | str) -> None:
    """An output of the right kind that is none of the inputs."""
    if output.suffix != suffix:
        raise OptionsError(f"--output {output} must end in {suffix}")
    for given in inputs:
        if Path(given).exists() and output.exists() and Path(given).samefile(output):
            raise OptionsError(
                f"--output {output} is also an input and would be overwritten; name another file"
            )


def _quantize_options(chosen: dict[str, Any]) -> options.QuantizeOptions:
    return options.QuantizeOptions(_built_for(chosen)[0], chosen["int8_method"], chosen["min_agreement"])


def _built_for(chosen: dict[str, Any]) -> tuple[str, ...]:
    """The cores that a command builds for."""
    return (chosen["target"],) if "target" in chosen else chosen.get("targets") or options.default_targets()


def _prune_options(chosen: dict[str, Any]) -> options.PruneOptions:
    return options.PruneOptions(
        chosen["prune_ratio"],
        chosen["prune_from"],
        chosen["criterion"],
        options.width_multiple(_built_for(chosen))
        if chosen["width_multiple"] is None
        else chosen["width_multiple"],
        chosen["seed"],
        repair=not chosen["no_repair"],
        images=chosen["repair_images"],
        allocation=chosen["prune_widths"],
    )


def _factorise_options(chosen: dict[str, Any]) -> options.FactoriseOptions:
    ranks = None
    if chosen["fc_ranks"]:
        try:
            first, second = (int(part) for part in chosen["fc_ranks"].split(","))
        except ValueError as error:
            raise OptionsError(
                f"--fc-ranks takes two whole numbers such as 256,128, found {chosen['fc_ranks']!r}"
            ) from error
        ranks = (first, second)
    multiple = options.width_multiple(_built_for(chosen))
    return options.FactoriseOptions(
        chosen["conv_share"], ranks, multiple, chosen["repair_images"], seed=chosen["seed"]
    )


def _budget_options(chosen: dict[str, Any]) -> options.Budget:
    budget = options.Budget(chosen["max_drop"], _bytes(chosen["target_size"]), chosen["target_speedup"])
    given = (
        click.get_current_context().get_parameter_source("conv_share")
        is not click.core.ParameterSource.DEFAULT
    )
    if budget.asked and (chosen["fc_ranks"] or given):
        raise OptionsError(
            "a budget searches for the ranks, --conv-share and --fc-ranks set them: give one or the other"
        )
    return budget


def _bytes(text: str | None) -> int | None:
    """ "20MB", "500 kB" or "20000000" in bytes."""
    if text is None:
        return None
    found = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([kKmMgG]?)[bB]?\s*", text)
    if not found:
        raise OptionsError(f"--target-size takes a size such as 20MB, found {text!r}")
    return round(float(found[1]) * {"": 1, "k": 1e3, "m": 1e6, "g": 1e9}[found[2].lower()])


def _finetune_options(chosen: dict[str, Any]) -> options.FinetuneOptions:
    return options.FinetuneOptions(
        chosen["epochs"],
        chosen["rate"],
        train_from=chosen["train_from"],
        images=chosen["images"],
        seed=chosen["seed"],
    )


@cli.command("all")
@click.option(
    "--output",
    type=_FOLDER,
    default=Path("artifacts"),
    show_default=True,
    help="The bundle; replaced as a whole.",
)
@click.option("--work", type=_FOLDER, help="Intermediate files  [default: .OUTPUT.work beside the output]")
@_weights
@_data
@_calibration
@_test
@_prune
@_no_repair
@_repair_images
@_finetune
@_factorise
@_distil
@_budget
@_targets
@_quantize
@_scaled
@click.option("--variants", metavar="A,B", help="Only these and the baseline  [default: all]")
@_accept
@_seed
@click.option("--no-compare", is_flag=True, help="Do not measure the variants on this machine at the end.")
def all_(no_compare: bool, **chosen: Any) -> int:
    """Everything: from a checkpoint to a bundle, then the comparison on this machine, also as report.html in
    the bundle.

    Example: vgg-export all --weights my_vgg16.pth --data photos/ --target pi4
    """
    wanted = options.AllOptions(
        output=chosen["output"],
        work=chosen["work"],
        weights=_weights_options(chosen),
        data=_data_options(chosen),
        prune=_prune_options(chosen),
        finetune=_finetune_options(chosen),
        factorise=_factorise_options(chosen),
        distil=options.DistilOptions(chosen["distil_up_to"], chosen["images"], chosen["seed"]),
        quantize=_quantize_options(chosen),
        budget=_budget_options(chosen),
        scaled_px=chosen["scaled_px"],
        variants=tuple(name.strip() for name in chosen["variants"].split(","))
        if chosen["variants"]
        else None,
        targets=chosen["targets"] or None,
        accept_accuracy=chosen["accept_accuracy"],
    )
    from vgg_runtime.bundle.manifest import REPORT_NAME

    from . import pipeline

    pipeline.run(wanted, TerminalProgress())
    click.echo(
        f"\nThe bundle is in {wanted.output}; copy that folder to the board and run runtime/compare.py"
        " there.\n",
        err=True,
    )
    if no_compare:
        return 0
    launcher, report = wanted.output / "runtime" / "compare.py", wanted.output / REPORT_NAME
    command = [sys.executable, str(launcher), "--budget", str(COMPARE_BUDGET_S), "--html", str(report)]
    return subprocess.run(command, check=False).returncode


@cli.command()
@_weights
@_data
@_calibration
@_test
@click.option(
    "--ratios",
    metavar="A,B",
    default=",".join(map(str, options.SWEEP_RATIOS)),
    show_default=True,
    help="Of filters to remove.",
)
@click.option(
    "--max-drop",
    type=float,
    default=options.SweepOptions.max_drop,
    show_default=True,
    metavar="POINTS",
    help="Of the recommended point.",
)
@_repair_images
@_distil
@_target_here
@_quantize
@_scaled
@_accept
@_seed
@click.option("--work", type=_FOLDER, help="Intermediate files  [default: .OUTPUT.work beside the output]")
@click.option(
    "--output", type=_FOLDER, required=True, help="Folder for front.json, front.csv, front.svg and front.png."
)
def sweep(ratios: str, max_drop: float, **chosen: Any) -> None:
    """The whole trade-off: compact variants of every strength, and what keeps them honest beside them.

    Example: vgg-export sweep --weights my_vgg16.pth --data photos/ --output front
    """
    try:
        asked = options.SweepOptions(tuple(float(part) for part in ratios.split(",")), max_drop)
    except ValueError as error:
        raise OptionsError(f"--ratios takes numbers such as 0.1,0.3, found {ratios!r}") from error
    multiple = options.width_multiple(_built_for(chosen))
    wanted = options.AllOptions(
        output=chosen["output"],
        work=chosen["work"],
        weights=_weights_options(chosen),
        data=_data_options(chosen),
        prune=options.PruneOptions(multiple=multiple, images=chosen["repair_images"], seed=chosen["seed"]),
        factorise=options.FactoriseOptions(
            multiple=multiple, images=chosen["repair_images"], seed=chosen["seed"]
        ),
        distil=options.DistilOptions(chosen["distil_up_to"], seed=chosen["seed"]),
        quantize=_quantize_options(chosen),
        budget=options.Budget(max_drop),
        scaled_px=chosen["scaled_px"],
        targets=(chosen["target"],),
        accept_accuracy=chosen["accept_accuracy"],
    )
    from . import pipeline

    found = pipeline.run_sweep(wanted, asked, TerminalProgress())
    click.echo(found.reason)
    click.echo(f"wrote {wanted.output}/front.json, .csv, .svg and .png: {len(found.points)} points")


@cli.command()
@_weights
@_data
@_prune
@_no_repair
@_repair_images
@click.option("--no-pictures", is_flag=True, help="Noise instead of pictures; --data is not used.")
@_accept
@_seed
@click.option("--output", type=_FILE, required=True, help="The smaller checkpoint (.safetensors).")
def prune(output: Path, no_pictures: bool, **chosen: Any) -> None:
    """Remove filters, so that the tensors get smaller, and repair what is left in closed form.

    Example: vgg-export prune --weights my_vgg16.pth --data photos/ --prune-ratio 0.2 --output
    pruned.safetensors
    """
    wanted, pictures = _prune_options(chosen), _data_options(chosen)
    if no_pictures and (chosen["data"] or not wanted.sees_pictures):
        raise OptionsError(
            "--no-pictures goes neither with --data nor, unless --criterion is obs, with --no-repair"
        )
    _ensure_output(output, ".safetensors", chosen["weights"])
    from . import pipeline
    from .compress import prune

    progress = TerminalProgress()
    checkpoint = pipeline.checkpoint_file(
        _weights_options(chosen), pictures if chosen["data"] else None, _work(output), progress
    )
    needed = wanted.sees_pictures and not no_pictures
    splits = (
        pipeline.splits_for(checkpoint, pictures, _work(output), progress)
        if needed or chosen["data"]
        else None
    )
    if splits:
        pipeline.ensure_understood(
            checkpoint, splits, _work(output), progress, accept=chosen["accept_accuracy"]
        )
    prune.run(checkpoint, splits if needed else None, output, wanted, progress)
    click.echo(f"wrote {output}")


@cli.command()
@_weights
@_data
@_factorise
@_repair_images
@_accept
@_seed
@click.option("--output", type=_FILE, required=True, help="The factorised checkpoint (.safetensors).")
def factorise(output: Path, **chosen: Any) -> None:
    """Make each heavy layer out of two thin ones, fitted in closed form on a few hundred pictures without
    labels.

    Example: vgg-export factorise --weights my_vgg16.pth --data photos/ --conv-share 0.4 --output
    compact.safetensors
    """
    wanted, pictures = _factorise_options(chosen), _data_options(chosen)
    _ensure_output(output, ".safetensors", chosen["weights"])
    from . import pipeline
    from .compress import factorise

    progress = TerminalProgress()
    checkpoint = pipeline.checkpoint_file(_weights_options(chosen), pictures, _work(output), progress)
    splits = pipeline.splits_for(checkpoint, pictures, _work(output), progress)
    pipeline.ensure_understood(checkpoint, splits, _work(output), progress, accept=chosen["accept_accuracy"])
    factorise.run(checkpoint, splits, output, wanted, progress, _work(output))
    click.echo(f"wrote {output}")


@cli.command()
@_weights
@_data
@_finetune
@_accept
@_seed
@click.option(
    "--teacher", required=True, metavar="FILE|demo|imagenet", help="The checkpoint whose answers are learned."
)
@click.option("--output", type=_FILE, required=True, help="The tuned checkpoint (.safetensors).")
def finetune(output: Path, teacher: str, **chosen: Any) -> None:
    """Distil a pruned checkpoint from the original; labels join where there are any.

    Example: vgg-export finetune --weights pruned.safetensors --teacher my_vgg16.pth --data photos/ --output
    tuned.safetensors

    On several cores or machines: torchrun --standalone --nproc-per-node 2 -m vgg_export finetune ...
    """
    wanted, pictures = _finetune_options(chosen), _data_options(chosen)
    _ensure_output(output, ".safetensors", chosen["weights"], teacher)
    from . import pipeline
    from .compress import distil
    from .core import files

    progress = TerminalProgress()
    # under torchrun the first process prepares, the others find it done
    with files.exclusive(_work(output)):
        student = pipeline.checkpoint_file(_weights_options(chosen), pictures, _work(output), progress)
        taught_by = pipeline.checkpoint_file(
            options.WeightsOptions(teacher, chosen["labels"]), pictures, _work(output), progress, "teacher"
        )
        splits = pipeline.splits_for(student, pictures, _work(output), progress)
        # the teacher, since what is to be tuned may well be damaged
        pipeline.ensure_understood(
            taught_by, splits, _work(output), progress, accept=chosen["accept_accuracy"]
        )
    made = distil.run(student, taught_by, splits, output, wanted, progress)
    if made.path == output:
        click.echo(f"wrote {output}")


@cli.command()
@_weights
@click.option(
    "--input-px",
    type=click.IntRange(32, 1024),
    default=224,
    show_default=True,
    help="Side; other than 224 folds the pool into fc1.",
)
@click.option("--output", type=_FILE, required=True, help="The float model (.onnx).")
def export(output: Path, input_px: int, **chosen: Any) -> None:
    """Export a checkpoint to ONNX, audited and compared with torch.

    Example: vgg-export export --weights tuned.safetensors --input-px 160 --output tuned-160.onnx
    """
    _ensure_output(output, ".onnx", chosen["weights"])
    from . import pipeline
    from .graphs.export import run

    progress = TerminalProgress()
    checkpoint = pipeline.checkpoint_file(_weights_options(chosen), None, _work(output), progress)
    scaled = pipeline.at_input_px(checkpoint, input_px, _work(output), progress)
    run(scaled, output, progress)
    click.echo(f"wrote {output}")


@cli.command()
@click.option(
    "--model", "source", type=_FILE, required=True, help="A float model that 'vgg-export export' wrote."
)
@_data
@_calibration
@_target
@_quantize
@_seed
@click.option("--output", type=_FILE, required=True, help="The int8 model (.onnx).")
def quantize(source: Path, output: Path, **chosen: Any) -> None:
    """Static int8, calibrated on pictures; where the plain way is not close to the float model, others are
    tried on held-out ones.

    Example: vgg-export quantize --model tuned.onnx --data photos/ --target pi4 --output tuned-int8.onnx
    """
    wanted, pictures = _quantize_options(chosen), _data_options(chosen)
    _ensure_output(output, ".onnx", source)
    from . import pipeline
    from .int8 import quantize

    progress = TerminalProgress()
    exported = pipeline.model_file(source)
    splits = pipeline.splits_for(exported, pictures, _work(output), progress)
    quantize.run(exported, splits, pictures.calibration_images, output, wanted, progress, pictures.seed)
    click.echo(f"wrote {output}")


@cli.command()
@click.argument("models", nargs=-1, required=True, type=_FILE)
@_data
@_seed
@click.option(
    "--output",
    type=_FOLDER,
    default=Path("artifacts"),
    show_default=True,
    help="The bundle; replaced as a whole.",
)
def bundle(models: tuple[Path, ...], output: Path, **chosen: Any) -> None:
    """Put exported models into a folder for the board; the first is the baseline, each is named after its
    file.

    Example: vgg-export bundle baseline.onnx tuned-int8.onnx --data photos/ --output artifacts
    """
    pictures = _data_options(chosen)
    from . import pipeline

    pipeline.bundle_files(models, pictures, output, TerminalProgress())
    click.echo(f"wrote {output}")


@cli.command()
@click.option(
    "--bundle", "folder", type=_FOLDER, default=Path("artifacts"), show_default=True, help="What to evaluate."
)
@_data
@_test
@_accept
@click.option("--record", is_flag=True, help="Write the figures into the bundle's manifest.")
@click.option("--json", "json_file", type=_FILE, help="Write the figures to a file.")
def evaluate(
    folder: Path, record: bool, accept_accuracy: bool, json_file: Path | None, **chosen: Any
) -> None:
    """Accuracy and agreement of a bundle's variants on pictures that were not used to make it.

    Example: vgg-export evaluate --bundle artifacts --data photos/test
    """
    pictures = _data_options(chosen)
    from vgg_runtime import text
    from vgg_runtime.report import tables

    from . import pipeline
    from .core.files import write_json

    figures, n, notices = pipeline.evaluate_bundle(
        folder, pictures, TerminalProgress(), record=record, accept=accept_accuracy
    )
    for notice in notices:
        click.echo(f"!! {notice}")
    click.echo(f"{n} test images, none of them used for fitting or calibration")
    click.echo(
        text.table(
            ("variant", *tables.EVALUATION_COLUMNS),
            [[name, *tables.evaluation_cells(row.to_json())] for name, row in figures.items()],
        )
    )
    if json_file:
        write_json(json_file, {name: found.to_json() for name, found in figures.items()})


@cli.command()
@click.option(
    "--bundle", "folder", type=_FOLDER, default=Path("artifacts"), show_default=True, help="What to compare."
)
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8000,
    show_default=True,
    help="Of the page; 0 for any free one.",
)
@click.option(
    "--host",
    metavar="ADDRESS",
    help="Open the page to the network, e.g. 0.0.0.0  [default: this machine only]",
)
def serve(folder: Path, port: int, host: str | None) -> int:
    """The device's page on this machine: drop in a picture, see a card per variant.

    Example: vgg-export serve --bundle artifacts --port 8000
    """
    from vgg_runtime import compare

    return compare.main(
        ["--bundle", str(folder), "--serve", "--port", str(port), *(["--host", host] if host else [])]
    )


@cli.command()
@click.argument("results", nargs=-1, required=True, type=_FILE)
def report(results: tuple[Path, ...]) -> None:
    """Results of several boards in one table, each board named.

    Example: vgg-export report pi4.json pi5.json
    """
    from vgg_runtime.report import diff

    click.echo(diff.boards([diff.read(path) for path in results]))


@cli.command()
@click.argument("host", metavar="USER@HOST")
@click.option(
    "--bundle",
    type=_FOLDER,
    default=options.DeployOptions.bundle,
    show_default=True,
    help="What to bring there.",
)
@click.option("--output", type=_FOLDER, help="Where the results go  [default: results/HOST]")
@click.option(
    "--port", type=click.IntRange(1, 65535), help="Of the ssh server  [default: what ssh says, most often 22]"
)
@click.option(
    "--identity", type=_FILE, metavar="FILE", help="The private key to log in with  [default: what ssh finds]"
)
@click.option(
    "--path",
    default=options.DeployOptions.path,
    show_default=True,
    help="Folder on the board, from the home folder on.",
)
@click.option("--variants", metavar="A,B", help="Bring and run only these and the baseline  [default: all]")
@click.option("--wheels", is_flag=True, help="Bring the Python packages along: the board needs no internet.")
@click.option("--web", is_flag=True, help="Install what the page (compare.py --serve) needs, too.")
@click.option(
    "--budget",
    "budget_s",
    type=float,
    metavar="SECONDS",
    help="Of timed runs per variant  [default: compare.py's own]",
)
@click.option("--no-run", is_flag=True, help="Copy and install, but run nothing.")
def deploy(no_run: bool, **chosen: Any) -> int:
    """Bring a bundle to a board over ssh, run it there, and bring the results back.

    Example: vgg-export deploy pi@raspberrypi.local --bundle artifacts --wheels
    """
    wanted = options.DeployOptions(run=not no_run, **chosen)
    from .deploy import deploy

    done = deploy.run(wanted, click.echo, TerminalProgress())
    for path in done.written:
        click.echo(f"wrote {path}", err=True)
    click.echo(f"The bundle is in {done.root} on {wanted.name}.", err=True)
    return done.code


@cli.command("draw-signs")
@click.option(
    "--output",
    type=_FOLDER,
    required=True,
    help="A new folder; train/CLASS, test/CLASS and, with --val, val/CLASS are made in it.",
)
@click.option("--train", type=int, default=1200, show_default=True, help="Pictures to draw for training.")
@click.option(
    "--val", type=int, default=0, show_default=True, help="Pictures to draw for selecting, from other seeds."
)
@click.option(
    "--test", type=int, default=600, show_default=True, help="Pictures to draw for testing, from other seeds."
)
@click.option("--size-px", type=int, default=256, show_default=True, help="Side of the square pictures.")
@_seed
def draw_signs(output: Path, train: int, val: int, test: int, size_px: int, seed: int) -> None:
    """Draw labelled road signs into class folders.

    Example: vgg-export draw-signs --output signs --train 1200 --val 300 --test 600
    """
    from .data import drawn

    drawn.draw_signs(drawn.DrawOptions(output, train, test, size_px, seed, val), TerminalProgress())
    click.echo(f"wrote {output}")


@cli.command("demo-train")
@click.option(
    "--output",
    type=_FILE,
    required=True,
    help="The checkpoint (.safetensors); its model card is written beside it.",
)
@click.option("--images", type=int, default=24_000, show_default=True, help="Signs to draw for training.")
@click.option(
    "--test-images", type=int, default=2_000, show_default=True, help="Signs to draw for the accuracy."
)
@_seed
def demo_train(output: Path, images: int, test_images: int, seed: int) -> None:
    """Train the embedded default anew (about an hour on two cores).

    Example: vgg-export demo-train --output demo_vgg19.safetensors
    """
    from .data import demo_training

    card = demo_training.run(
        demo_training.DemoTrainOptions(output, images, test_images, seed), TerminalProgress()
    )
    click.echo(json.dumps(card["accuracy"]))


@cli.command("demo-test")
@click.option("--weights", type=_FILE, help="A demo checkpoint  [default: the embedded one]")
@click.option(
    "--test-images", type=click.IntRange(min=1), default=2_000, show_default=True, help="Signs to draw."
)
def demo_test(weights: Path | None, test_images: int) -> None:
    """Reproduce the accuracy on the embedded demo's model card.

    Example: vgg-export demo-test
    """
    from vgg_runtime.bundle.metrics import wilson_interval

    from .data import demo_training
    from .network.weights import demo_path

    right, n = demo_training.test_accuracy(weights or demo_path(), test_images, TerminalProgress())
    low, high = wilson_interval(right, n)
    click.echo(
        f"top-1 at 224 px: {100 * right / n:.2f} % of {n} signs (95 % interval {100 * low:.2f} to"
        f" {100 * high:.2f} %)"
    )


if __name__ == "__main__":
    sys.exit(main())
