"""The commands about the drawn signs and the embedded demo; ``cli`` adds them to its own."""

import json
from pathlib import Path
from typing import Any

import click

from . import options
from .command_options import build, given
from .terminal import TerminalProgress

_FILE = click.Path(path_type=Path, dir_okay=False)
_FOLDER = click.Path(path_type=Path, file_okay=False)
_seed = given(options.DataOptions, "seed")


@click.command("draw-signs")
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


@click.command("demo-train")
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


@click.command("demo-test")
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


COMMANDS = (draw_signs, demo_train, demo_test)
