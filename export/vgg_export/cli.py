"""The command line: reads options, calls one function, and says what it wrote. It holds no other logic.

Exit codes: 0 done, 1 a stage or its check failed, 2 unusable input or options, 130 interrupted.
"""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from . import __version__, options, terminal
from .command_options import (
    build,
    built_for,
    ensure_output,
    factorise_options,
    given,
    prune_options,
    quantize_options,
    recipe_options,
)
from .core.errors import OptionsError
from .options import default_targets
from .terminal import TerminalProgress

COMPARE_BUDGET_S = 3.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code. Users see a sentence instead of a traceback."""
    try:
        return int(cli.main(arguments, prog_name="vgg-export", standalone_mode=False) or 0)
    except (Exception, KeyboardInterrupt) as error:
        if terminal.is_a_surprise(error) and os.environ.get("VGG_EXPORT_TRACEBACK"):
            raise
        return terminal.explain(error)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="vgg-export")
def cli() -> None:
    """Make a big VGG usable on a small board: prune, fine-tune, quantize, shrink the input, compare.

    Example: vgg-export all --weights my_vgg16.pth --data photos/ --output artifacts
    """
    terminal.show_what_matters()


_FILE = click.Path(path_type=Path, dir_okay=False)
_FOLDER = click.Path(path_type=Path, file_okay=False)
_weights = given(options.WeightsOptions, "spec", "labels")
_data = given(options.DataOptions, "spec")
_calibration = given(options.DataOptions, "calibration_images")
_test = given(options.DataOptions, "test_images")
_seed = given(options.DataOptions, "seed")
_prune = given(
    options.PruneOptions, "ratio", "first_block", "criterion", "multiple", "allocation", "repair", "images"
)
_repair_images = given(options.FactoriseOptions, "images")
_finetune = given(options.FinetuneOptions, "epochs", "images", "rate", "train_from")
_factorise = given(options.FactoriseOptions, "conv_share", "fc_ranks")
_distil = given(options.DistilOptions, "up_to")
_target_here = given(
    options.QuantizeOptions, "target", default=lambda: default_targets()[0], show_default="this machine"
)
_quantize = given(options.QuantizeOptions, "method", "min_agreement")
_scaled = given(options.RecipeOptions, "scaled_px")
_accept = given(options.RecipeOptions, "accept_accuracy")
_work_folder = given(options.RunOptions, "work")
_bundle_output = given(options.RunOptions, "output")


@cli.command("all")
@_bundle_output
@_work_folder
@_weights
@_data
@_calibration
@_test
@_prune
@_finetune
@_factorise
@_distil
@given(options.Budget)
@given(options.RecipeOptions, "targets")
@_quantize
@_scaled
@given(options.RecipeOptions, "variants")
@_accept
@_seed
@click.option("--no-compare", is_flag=True, help="Do not measure the variants on this machine at the end.")
def all_(no_compare: bool, **chosen: Any) -> int:
    """Run all stages: make a bundle from a checkpoint, then compare its variants on this machine (also as
    report.html in the bundle).

    Example: vgg-export all --weights my_vgg16.pth --data photos/ --target pi4
    """
    wanted, how = recipe_options(chosen), build(options.RunOptions, chosen, progress=TerminalProgress())
    from vgg_runtime.bundle.manifest import REPORT_NAME

    from . import pipeline

    pipeline.run(wanted, how)
    click.echo(
        f"\nThe bundle is in {how.output}; copy that folder to the board and run runtime/compare.py there.\n",
        err=True,
    )
    if no_compare:
        return 0
    launcher, report = how.output / "runtime" / "compare.py", how.output / REPORT_NAME
    command = [sys.executable, str(launcher), "--budget", str(COMPARE_BUDGET_S), "--html", str(report)]
    return subprocess.run(command, check=False).returncode


@cli.command()
@_weights
@_data
@_calibration
@_test
@given(options.SweepOptions)
@_repair_images
@_distil
@_target_here
@_quantize
@_scaled
@_accept
@_seed
@_work_folder
@click.option(
    "--output", type=_FOLDER, required=True, help="Folder for front.json, front.csv, front.svg and front.png."
)
def sweep(**chosen: Any) -> None:
    """Draw the whole trade-off: compact variants of every strength, and simpler methods to compare them with.

    Example: vgg-export sweep --weights my_vgg16.pth --data photos/ --output front
    """
    asked = build(options.SweepOptions, chosen)
    wanted = recipe_options(chosen, targets=built_for(chosen))
    how = build(options.RunOptions, chosen, progress=TerminalProgress())
    from . import pipeline

    found = pipeline.run_sweep(wanted, asked, how)
    click.echo(found.reason)
    click.echo(f"wrote {how.output}/front.json, .csv, .svg and .png: {len(found.points)} points")


@cli.command()
@_weights
@_data
@_prune
@click.option("--no-pictures", is_flag=True, help="Use noise instead of pictures; --data is not used.")
@_accept
@_seed
@click.option("--output", type=_FILE, required=True, help="The smaller checkpoint (.safetensors).")
def prune(output: Path, no_pictures: bool, **chosen: Any) -> None:
    """Remove whole filters, and repair the remaining layers in closed form.

    Example: vgg-export prune --weights my_vgg16.pth --data photos/ --prune-ratio 0.2 --output
    pruned.safetensors
    """
    wanted, pictures = prune_options(chosen), build(options.DataOptions, chosen)
    if no_pictures and (chosen["data"] or not wanted.sees_pictures):
        raise OptionsError(
            "--no-pictures cannot be used with --data, nor with --no-repair unless --criterion is obs; leave"
            " one of them out"
        )
    ensure_output(output, ".safetensors", chosen["weights"])
    from . import by_hand

    weights, accept = build(options.WeightsOptions, chosen), chosen["accept_accuracy"]
    by_hand.run_prune(
        weights, None if no_pictures else pictures, wanted, output, TerminalProgress(), accept=accept
    )
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
    """Replace each heavy layer by two thin ones, fitted in closed form on a few hundred pictures without
    labels.

    Example: vgg-export factorise --weights my_vgg16.pth --data photos/ --conv-share 0.4 --output
    compact.safetensors
    """
    wanted, pictures = factorise_options(chosen), build(options.DataOptions, chosen)
    ensure_output(output, ".safetensors", chosen["weights"])
    from . import by_hand

    weights, accept = build(options.WeightsOptions, chosen), chosen["accept_accuracy"]
    by_hand.run_factorise(weights, pictures, wanted, output, TerminalProgress(), accept=accept)
    click.echo(f"wrote {output}")


@cli.command()
@_weights
@_data
@_finetune
@_accept
@_seed
@click.option(
    "--teacher",
    required=True,
    metavar="FILE|demo|imagenet",
    help="The checkpoint whose answers the student learns.",
)
@click.option("--output", type=_FILE, required=True, help="The tuned checkpoint (.safetensors).")
def finetune(output: Path, teacher: str, **chosen: Any) -> None:
    """Distil a pruned checkpoint from the original; labels are used too where there are any.

    Example: vgg-export finetune --weights pruned.safetensors --teacher my_vgg16.pth --data photos/ --output
    tuned.safetensors

    On several cores or machines: torchrun --standalone --nproc-per-node 2 -m vgg_export finetune ...
    """
    wanted, pictures = build(options.FinetuneOptions, chosen), build(options.DataOptions, chosen)
    ensure_output(output, ".safetensors", chosen["weights"], teacher)
    from . import by_hand

    weights, accept = build(options.WeightsOptions, chosen), chosen["accept_accuracy"]
    by = options.WeightsOptions(teacher, chosen["labels"])
    if by_hand.run_finetune(weights, by, pictures, wanted, output, TerminalProgress(), accept=accept):
        click.echo(f"wrote {output}")


@cli.command()
@_weights
@click.option(
    "--input-px",
    type=click.IntRange(32, 1024),
    default=224,
    show_default=True,
    help="Side of the input in pixels; a side other than 224 folds the pool into fc1.",
)
@click.option("--output", type=_FILE, required=True, help="The float model (.onnx).")
def export(output: Path, input_px: int, **chosen: Any) -> None:
    """Export a checkpoint to ONNX, audit the graph and compare it with torch.

    Example: vgg-export export --weights tuned.safetensors --input-px 160 --output tuned-160.onnx
    """
    ensure_output(output, ".onnx", chosen["weights"])
    from . import by_hand

    by_hand.run_export(build(options.WeightsOptions, chosen), input_px, output, TerminalProgress())
    click.echo(f"wrote {output}")


@cli.command()
@click.option(
    "--model", "source", type=_FILE, required=True, help="A float model that 'vgg-export export' wrote."
)
@_data
@_calibration
@given(options.QuantizeOptions, "target")
@_quantize
@_seed
@click.option("--output", type=_FILE, required=True, help="The int8 model (.onnx).")
def quantize(source: Path, output: Path, **chosen: Any) -> None:
    """Quantize a model to static int8, calibrated on pictures. Where the plain form is not close to the float
    model, others are tried on held-out pictures.

    Example: vgg-export quantize --model tuned.onnx --data photos/ --target pi4 --output tuned-int8.onnx
    """
    wanted, pictures = quantize_options(chosen), build(options.DataOptions, chosen)
    ensure_output(output, ".onnx", source)
    from . import by_hand

    by_hand.run_quantize(source, pictures, wanted, output, TerminalProgress())
    click.echo(f"wrote {output}")


@cli.command()
@click.argument("models", nargs=-1, required=True, type=_FILE)
@_data
@_seed
@_bundle_output
def bundle(models: tuple[Path, ...], output: Path, **chosen: Any) -> None:
    """Put exported models into a folder for the board. The first is the baseline; each is named after its
    file.

    Example: vgg-export bundle baseline.onnx tuned-int8.onnx --data photos/ --output artifacts
    """
    pictures = build(options.DataOptions, chosen)
    from . import pipeline

    pipeline.bundle_files(models, pictures, output, TerminalProgress())
    click.echo(f"wrote {output}")


@cli.command()
@click.option(
    "--bundle", type=_FOLDER, default=Path("artifacts"), show_default=True, help="Bundle to evaluate."
)
@_data
@_test
@_accept
@click.option("--record", is_flag=True, help="Write the figures into the bundle's manifest.")
@click.option("--json", "json_file", type=_FILE, help="Write the figures to a file.")
def evaluate(bundle: Path, record: bool, json_file: Path | None, **chosen: Any) -> None:
    """Measure accuracy and agreement of a bundle's variants on pictures that were not used to make it.

    Example: vgg-export evaluate --bundle artifacts --data photos/test
    """
    pictures = build(options.DataOptions, chosen)
    from vgg_runtime import text
    from vgg_runtime.report import tables

    from . import pipeline
    from .core.files import write_json

    figures, n, notices = pipeline.evaluate_bundle(
        bundle, pictures, TerminalProgress(), record=record, accept=chosen["accept_accuracy"]
    )
    for notice in notices:
        click.echo(f"!! {notice}")
    click.echo(f"{n} test images, none of them used for fitting or calibration")
    click.echo(
        text.table(
            ("variant", *tables.EVALUATION_COLUMNS),
            [[name, *tables.evaluation_cells(row)] for name, row in figures.items()],
        )
    )
    if json_file:
        write_json(json_file, {name: found.to_json() for name, found in figures.items()})


@cli.command()
@given(options.ServeOptions)
def serve(**chosen: Any) -> int:
    """Serve the device's page on this machine: drop in a picture, see a card per variant.

    Example: vgg-export serve --bundle artifacts --port 8000
    """
    wanted = build(options.ServeOptions, chosen)
    from vgg_runtime import compare

    host = ["--host", wanted.host] if wanted.host else []
    return compare.main(["--bundle", str(wanted.bundle), "--serve", "--port", str(wanted.port), *host])


@cli.command()
@click.argument("results", nargs=-1, required=True, type=_FILE)
def report(results: tuple[Path, ...]) -> None:
    """Show the results of several boards in one table, each board named.

    Example: vgg-export report pi4.json pi5.json
    """
    from vgg_runtime.report import diff

    click.echo(diff.boards([diff.read(path) for path in results]))


@cli.command()
@click.argument("host", metavar="USER@HOST")
@given(options.DeployOptions)
def deploy(host: str, **chosen: Any) -> int:
    """Bring a bundle to a board over ssh, run it there, and bring the results back.

    Example: vgg-export deploy pi@raspberrypi.local --bundle artifacts --wheels
    """
    wanted = build(options.DeployOptions, chosen, host=host)
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
    help="The new folder; train/CLASS, test/CLASS and, with --val, val/CLASS are made in it.",
)
@given(options.DrawOptions, "train", "val", "test", "size_px", "seed")
def draw_signs(output: Path, **chosen: Any) -> None:
    """Draw labelled road signs into class folders.

    Example: vgg-export draw-signs --output signs --train 1200 --val 300 --test 600
    """
    wanted = build(options.DrawOptions, chosen, output=output)
    from .data import drawn

    drawn.draw_signs(wanted, TerminalProgress())
    click.echo(f"wrote {output}")


@cli.command("demo-train")
@click.option(
    "--output",
    type=_FILE,
    required=True,
    help="The checkpoint (.safetensors); its model card lies beside it.",
)
@click.option("--images", type=int, default=24_000, show_default=True, help="Signs to draw for training.")
@click.option("--test-images", type=int, default=2_000, show_default=True, help="Signs to draw for the test.")
@_seed
def demo_train(output: Path, images: int, test_images: int, seed: int) -> None:
    """Train the embedded demo checkpoint anew (about an hour on two cores).

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
    "--test-images", type=click.IntRange(min=1), default=2_000, show_default=True, help="Signs to test on."
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
