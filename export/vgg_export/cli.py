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
    Command,
    build,
    built_for,
    ensure_output,
    factorise_options,
    given,
    like,
    prune_options,
    quantize_options,
    recipe_options,
    typed,
    weights_options,
)
from .core import devices, memory, processes
from .core.errors import OptionsError
from .demo_commands import COMMANDS as DEMO_COMMANDS
from .options import default_targets
from .terminal import TerminalProgress

COMPARE_BUDGET_S = 3.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code. Users see a sentence instead of a traceback."""
    memory.keep_freed()  # in every process, also those that only help the first one
    try:
        return processes.led(
            lambda: int(cli.main(arguments, prog_name="vgg-export", standalone_mode=False) or 0)
        )
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
_labels = given(options.WeightsOptions, "labels")
_told = given(options.InputOptions)
_data = given(options.DataOptions, "spec")
_calibration = given(options.DataOptions, "calibration_images")
_test = given(options.DataOptions, "test_images")
_seed = given(options.DataOptions, "seed")
_prune = given(
    options.PruneOptions, "ratio", "first_stage", "criterion", "multiple", "allocation", "repair", "images"
)
_repair_images = given(options.FactoriseOptions, "images")
_finetune = given(options.FinetuneOptions, "epochs", "images", "rate", "train_from")
_factorise = given(options.FactoriseOptions, "conv_share", "fc_ranks")
_distil = given(options.DistilOptions, "up_to")
_target_here = given(
    options.QuantizeOptions, "target", default=lambda: default_targets()[0], show_default="this machine"
)
_quantize = given(options.QuantizeOptions, "method", "min_agreement", "fc_bits")
_scaled = given(options.RecipeOptions, "scaled_px")
_accept = given(options.RecipeOptions, "accept_accuracy")
_device = click.option(
    "--device",
    type=click.Choice(devices.DEVICES),
    default=devices.AUTO,
    show_default=True,
    expose_value=False,
    callback=lambda _context, _option, name: devices.use(name),
    help="Where torch computes; auto: on a CUDA device if there is one. onnxruntime runs on the CPU.",
)
_work_folder = given(options.RunOptions, "work")
_bundle_output = given(options.RunOptions, "output")


def _weights(command: Command) -> Command:
    """The options that every command with a checkpoint has."""
    return given(options.WeightsOptions, "spec")(_labels(_told(command)))


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
@given(options.SearchOptions)
@given(options.RecipeOptions, "targets")
@_quantize
@_scaled
@given(options.RecipeOptions, "variants")
@_accept
@_seed
@_device
@click.option("--no-compare", is_flag=True, help="Do not measure the variants on this machine at the end.")
@click.option(
    "--like",
    "manifest_file",
    type=click.Path(path_type=Path),
    help="Repeat the run that wrote this manifest.json with its options; name the same --weights, --data.",
)
def all_(no_compare: bool, manifest_file: Path | None, **chosen: Any) -> int:
    """Run all stages: make a bundle from a checkpoint, then compare its variants on this machine (also as
    report.html in the bundle).

    Example: vgg-export all --weights my_vgg16.pth --data photos/ --target pi4
    """
    chosen, made = like(chosen, manifest_file) if manifest_file else (chosen, None)
    wanted = recipe_options(chosen)
    how = build(options.RunOptions, chosen, progress=TerminalProgress(), typed=typed(chosen), like=made)
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
@_device
@_work_folder
@click.option(
    "--output", type=_FOLDER, required=True, help="Folder for front.html, .json, .csv, .svg and .png."
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
    click.echo(f"wrote {how.output}/front.html, .json, .csv, .svg and .png: {len(found.points)} points")


@cli.command()
@click.argument("file", metavar="FILE|imagenet|demo")
@_labels
@_told
@click.option("--json", "as_json", is_flag=True, help="Print all of it as JSON.")
def inspect(file: str, as_json: bool, **chosen: Any) -> None:
    """Say what a checkpoint file holds: its layers, its input and how each part of that is known, its labels.

    Example: vgg-export inspect my_vgg16.pth
    """
    from . import inputs
    from .network import inspection, weights

    wanted = weights_options(chosen, spec=file)
    inputs.ensure_no_auto(wanted)
    found = inspection.inspect(weights.find(wanted))
    lines = [json.dumps(found.to_json(), indent=1)] if as_json else inspection.text(file, found)
    click.echo("\n".join(lines))


@cli.command()
@_weights
@_data
@_prune
@click.option("--no-pictures", is_flag=True, help="Use noise instead of pictures; --data is not used.")
@_accept
@_seed
@_device
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

    weights, accept = weights_options(chosen), chosen["accept_accuracy"]
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
@_device
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

    weights, accept = weights_options(chosen), chosen["accept_accuracy"]
    by_hand.run_factorise(weights, pictures, wanted, output, TerminalProgress(), accept=accept)
    click.echo(f"wrote {output}")


@cli.command()
@_weights
@_data
@_finetune
@_accept
@_seed
@_device
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

    On several cores or machines: torchrun --standalone --nproc-per-node 2 -m vgg_export finetune ... (all,
    sweep, factorise, prune and evaluate, too)
    """
    wanted, pictures = build(options.FinetuneOptions, chosen), build(options.DataOptions, chosen)
    ensure_output(output, ".safetensors", chosen["weights"], teacher)
    from . import by_hand

    weights, accept = weights_options(chosen), chosen["accept_accuracy"]
    by = weights_options(chosen, spec=teacher)
    if by_hand.run_finetune(weights, by, pictures, wanted, output, TerminalProgress(), accept=accept):
        click.echo(f"wrote {output}")


@cli.command()
@_weights
@click.option("--output", type=_FILE, required=True, help="The float model (.onnx).")
def export(output: Path, **chosen: Any) -> None:
    """Export a checkpoint to ONNX, audit the graph and compare it with torch. For another input size the
    adaptive pool is folded into the first fully connected layer.

    Example: vgg-export export --weights tuned.safetensors --input-px 160 --output tuned-160.onnx
    """
    ensure_output(output, ".onnx", chosen["weights"])
    from . import by_hand

    by_hand.run_export(weights_options(chosen), output, TerminalProgress())
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
    from vgg_runtime import console
    from vgg_runtime.bundle import outputs
    from vgg_runtime.report import tables

    from . import pipeline
    from .core.files import write_json

    figures, n, notices, output = pipeline.evaluate_bundle(
        bundle, pictures, TerminalProgress(), record=record, accept=chosen["accept_accuracy"]
    )
    for notice in notices:
        click.echo(console.harmless(f"!! {notice}"))
    click.echo(f"{n:,} test images, none of them used for fitting or calibration")
    click.echo(console.harmless(tables.figures(list(figures.items()), output, console.width())))
    if reason := outputs.TOP1_ABSENT.get(output):
        click.echo(f"{reason}.")
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
    from vgg_runtime import console
    from vgg_runtime.report import diff

    click.echo(diff.boards([diff.read(path) for path in results], console.width()))


@cli.command()
@click.argument("host", metavar="USER@HOST")
@given(options.DeployOptions)
def deploy(host: str, **chosen: Any) -> int:
    """Bring a bundle to a board over ssh, run it there, and bring the results back.

    Example: vgg-export deploy pi@raspberrypi.local --bundle artifacts --wheels
    """
    wanted = build(options.DeployOptions, chosen, host=host)
    from vgg_runtime import console

    from .deploy import deploy

    done = deploy.run(wanted, lambda line: click.echo(console.harmless(line)), TerminalProgress())
    for path in done.written:
        click.echo(f"wrote {path}", err=True)
    if not wanted.asked_of_service:
        click.echo(f"The bundle is in {done.root} on {wanted.name}.", err=True)
    return done.code


@cli.command()
@given(options.ShipOptions)
def ship(**chosen: Any) -> None:
    """Write a folder, or a zip file, that holds one variant and what classifies with it.

    Example: vgg-export ship --bundle artifacts --variant compact-scaled --target pi4 --output app
    """
    wanted = build(options.ShipOptions, chosen)
    from vgg_runtime.classify import ship as shipping

    from .deploy import ship

    click.echo(shipping.in_words(ship.run(wanted, TerminalProgress())))


for command in DEMO_COMMANDS:
    cli.add_command(command)


if __name__ == "__main__":
    sys.exit(main())
