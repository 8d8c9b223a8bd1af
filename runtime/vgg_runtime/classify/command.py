"""``classify.py``: classifies pictures with one variant, a line for each as it comes."""

import argparse
import collections
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from vgg_runtime import __version__, console, text
from vgg_runtime.bundle import images, manifest, outputs
from vgg_runtime.errors import ImageError, RuntimeInputError

from .classifier import TOP, Answer, Classifier

SCHEMA = 1  # of a JSON line
STANDARD_INPUT = "-"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code: 0 all pictures were classified, 1 the model failed, 2
    unusable input, also where others were classified, 130 interrupted."""
    return console.ended(lambda: _run(_parser().parse_args(arguments)))


def _parser() -> argparse.ArgumentParser:
    parser = console.Parser(
        prog="classify.py",
        description="Classify pictures with one variant of a bundle and print a line for each.",
        epilog="examples: python classify.py photos/ --top 3; python classify.py --json *.jpg | jq .file",
    )
    parser.add_argument(
        "pictures",
        nargs="*",
        type=console.named,
        metavar="IMAGE|DIR|-",
        help="pictures, folders of pictures at any depth, or - for one picture on standard input (default:"
        " the bundle's samples)",
    )
    console.add_bundle(parser)
    parser.add_argument(
        "--variant",
        metavar="NAME",
        help="the variant to use (default: the one that the bundle recommends for this core)",
    )
    parser.add_argument(
        "--top", type=console.count, metavar="N", help="labels per picture (default: 1, with --json 5)"
    )
    parser.add_argument(
        "--threads",
        type=console.positive,
        metavar="N",
        help="threads of onnxruntime (default: the cores that this process may use)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON Lines: one object per picture")
    parser.add_argument("--version", action="version", version=__version__)
    return parser


def _run(options: argparse.Namespace) -> int:
    folder = options.bundle or console.default_bundle()
    pictures = _pictures(options.pictures, folder)
    top = options.top or (TOP if options.json else 1)
    with Classifier(folder, options.variant, options.threads, options.memory) as classifier:
        if not options.variant:
            console.say_aside(f"variant {classifier.variant}, {classifier.input_px} px")
        for notice in classifier.notices:
            console.say_aside(f"!! {notice}")
        unread = 0
        sources = [sys.stdin.buffer.read() if name == STANDARD_INPUT else name for name in pictures]
        for name, answer in zip(pictures, classifier.answers(sources, top), strict=True):
            if isinstance(answer, ImageError):
                unread += 1
                whose = "standard input: " if name == STANDARD_INPUT else ""
                console.say_aside(f"Error: {whose}{console.in_one(str(answer))}")
            if options.json:
                console.say(json.dumps(_document(name, classifier.variant, answer)))
            elif not isinstance(answer, ImageError):
                console.say(_line(name, answer, classifier.output))
    if unread:
        console.say_aside(f"{unread} of {len(pictures)} pictures could not be read")
    return console.EXIT_INPUT if unread else console.EXIT_OK


def _pictures(named: Sequence[str], folder: Path) -> list[str]:
    """The pictures to classify, as paths, in the order in which they were named; without any, the samples,
    whose files are compared with the manifest.

    Raises:
        BundleError: a sample cannot be read or differs.
        RuntimeInputError: a folder holds none, or standard input is a terminal.
    """
    if not named:
        samples = [sample.file for sample in manifest.read(folder).samples]
        if not samples:
            raise RuntimeInputError(
                "this bundle has no samples; name pictures, folders, or - for standard input"
            )
        manifest.verify(folder, samples)
        return [str(folder / sample.path) for sample in samples]
    if STANDARD_INPUT in named and (sys.stdin is None or os.isatty(0)):
        raise RuntimeInputError("- expects a picture on standard input, which is a terminal here; pipe one")
    if list(named).count(STANDARD_INPUT) > 1:
        raise RuntimeInputError("- stands for one picture on standard input; name it once")
    return [picture for name in named for picture in _inside(name)]


def _inside(name: str) -> Iterator[str]:
    """A picture's path, or those of all pictures in a folder; what is left out there is said."""
    if name == STANDARD_INPUT or not Path(name).is_dir():
        yield name
        return
    found = images.look(Path(name))
    left_out = collections.Counter(images.unused(found, ()))
    if words := images.counted(len(found.all_pictures), left_out):
        console.say_aside(f"{name}: {words}")
    yield from map(str, found.all_pictures)


def _line(name: str, answer: Answer, output: str) -> str:
    """The labels of a picture as text: the most probable ones, or those above 0.5 of a multi-label
    network."""
    said = answer.predictions
    if output == outputs.MULTI_LABEL:
        said = said[: outputs.given([one.probability for one in said], output)]
    labels = ", ".join(f"{text.printable(one.label)} {100 * one.probability:.1f} %" for one in said)
    return f"{text.printable(name, len(name))}: {labels or text.NO_LABEL}"


def _document(name: str, variant: str, answer: Answer | ImageError) -> dict[str, Any]:
    """One JSON line (schema 1, described in the project's documentation)."""
    document = {"schema": SCHEMA, "file": name, "variant": variant}
    if isinstance(answer, ImageError):
        return {**document, "predictions": [], "prepare_ms": None, "model_ms": None, "error": str(answer)}
    said = [vars(prediction) for prediction in answer.predictions]
    times = {"prepare_ms": answer.prepare_ms, "model_ms": answer.model_ms}
    return {**document, "predictions": said, **times, "error": None}


if __name__ == "__main__":
    sys.exit(main())
