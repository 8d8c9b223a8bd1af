"""Describes what a checkpoint file holds, as a record and as text."""

import dataclasses
import math
import textwrap
from collections.abc import Iterator

from vgg_runtime.bundle import input_spec
from vgg_runtime.bundle.input_spec import InputSpec
from vgg_runtime.records import Record
from vgg_runtime.text import printable

from . import specify, weights
from .chain import Chain, Conv, Linear, Placed, Scale, Shape
from .provenance import ASSUMED, CONVENTION, FILE, PICTURES, TOLD, Origins

MOST_LABELS = 12  # shown as text; the JSON has all
MOST_COLUMNS = 100
ORIGIN_WORDS = {
    FILE: "file",
    CONVENTION: "convention",
    ASSUMED: "assumed",
    TOLD: "you",
    PICTURES: "pictures",
}


@dataclasses.dataclass(frozen=True)
class LayerLine(Record):
    """A layer. ``name``: as this program calls it; ``in_file``: as the file does; empty for a layer without
    weights. ``gives``: the shape of its output for one picture."""

    name: str
    in_file: str
    what: str
    activation: str
    gives: tuple[int, ...]
    parameters: int
    macs: int


@dataclasses.dataclass(frozen=True)
class Inspection(Record):
    """What a file holds. ``origins``: how each part is known. ``labels_from``: where the class names come
    from, in words; None: there are none. ``assumed`` and ``remarks``: sentences."""

    container: str
    family: str
    classes: int
    parameters: int
    macs: int
    input: InputSpec
    output: str
    origins: Origins
    layers: tuple[LayerLine, ...]
    labels: tuple[str, ...]
    labels_from: str | None
    assumed: tuple[str, ...]
    remarks: tuple[str, ...]


def inspect(found: weights.Resolved) -> Inspection:
    """Describe a checkpoint."""
    checkpoint = found.checkpoint
    chain, source = checkpoint.chain, checkpoint.provenance
    named = {"checkpoint": "the file", "labels": "--labels"}.get(source.names_from or "")
    return Inspection(
        found.container,
        chain.family,
        chain.classes,
        chain.parameters(),
        chain.macs(),
        chain.input,
        chain.output,
        source.origins or Origins(*(FILE,) * len(dataclasses.fields(Origins))),
        tuple(_lines(chain, found.names)),
        checkpoint.labels,
        named or ("ImageNet" if source.wordnet else "the file" if source.origins is None else None),
        source.assumed,
        found.remarks,
    )


def _lines(chain: Chain, names: dict[str, str]) -> Iterator[LayerLine]:
    sites = {site.name: site for site in chain.sites}
    for placed in chain.placed:
        layer = placed.layer
        if isinstance(layer, Conv | Linear):
            parts = sites[layer.name].parts()
            made = (sum(part.parameters() for part in parts), sum(part.macs() for part in parts))
            yield LayerLine(
                layer.name,
                names.get(layer.name, layer.name),
                _what(placed),
                layer.activation,
                placed.outputs,
                *made,
            )
        elif isinstance(layer, Scale):
            size = 2 * placed.inputs[0], math.prod(placed.inputs)
            in_file = names.get(layer.name, layer.name)
            yield LayerLine(layer.name, in_file, "scale and shift per channel", "", placed.outputs, *size)
        else:
            yield LayerLine("", "", layer.in_words(), "", placed.outputs, 0, 0)


def _what(placed: Placed) -> str:
    layer = placed.layer
    if isinstance(layer, Conv):
        height, width = layer.kernel
        stride = "" if layer.stride == (1, 1) else f", stride {layer.stride[0]}"
        words = f"{height}x{width} convolution{stride}"
    else:
        words = "fully connected"
    factor = layer.factor if isinstance(layer, Conv | Linear) else None
    return f"{words}, in two ({factor.kind}, {factor.rank})" if factor else words


def text(file: str, found: Inspection) -> Iterator[str]:
    """The lines that a person reads."""
    yield f"{file} is {found.container}."
    size = 4 * found.parameters / 1e6
    weight = f"{size:.1f} MB" if size >= 1 else f"{1000 * size:.0f} kB"
    work = f"{found.macs / 1e9:.2f} GMACs" if found.macs >= 1e8 else f"{found.macs / 1e6:.1f} MMACs"
    yield (
        f"It is a {found.family} with {found.classes} classes, {found.parameters:,} parameters ({weight} as"
        f" float32) and {work}."
    )
    yield ""
    yield from _table(
        (
            ("Input", "", "known from", "option"),
            *(
                (f"  {part}", value, ORIGIN_WORDS[origin], flag if origin != FILE else "")
                for part, value, origin, flag in _parts(found)
            ),
        )
    )
    yield ""
    heads = ("Layers", "in the file", "what", "activation", "gives", "parameters", "MMACs")
    yield from _table((heads, *(_cells(line) for line in found.layers)), right=(5, 6))
    yield ""
    shown = ", ".join(printable(label) for label in found.labels[:MOST_LABELS])
    more = len(found.labels) - MOST_LABELS
    shown += f" and {more} more" if more > 0 else ""
    yield (
        f"Labels  {shown} (from {found.labels_from})"
        if found.labels_from
        else (
            "Labels  none in the file: the class folders in alphabetical order, or --labels, name the classes"
        )
    )
    for words in found.assumed:
        if not any(f"(else {flag})" in words for flag in specify.FLAGS.values()):  # else the table says it
            yield from _paragraph(f"Assumed: {words}")
    for words in found.remarks:
        yield from _paragraph(f"Note: {words}")


def _paragraph(words: str) -> list[str]:
    return textwrap.wrap(words, MOST_COLUMNS, subsequent_indent="  ", break_long_words=False)


def _parts(found: Inspection) -> Iterator[tuple[str, str, str, str]]:
    spec, origins = found.input, found.origins
    yield "size", f"{spec.px} x {spec.px} px", origins.px, "--input-px"
    yield "channels", str(spec.channels), origins.channels, "--channels"
    yield "values", input_spec.normalization_in_words(spec), origins.normalize, "--normalize, --bgr"
    yield "resized", input_spec.resize_in_words(spec), origins.resize, "--resize"
    yield "activations", "see below", origins.activations, "--activation"
    yield "output", specify.OUTPUT_WORDS[found.output], origins.output, "--output-kind"


def _cells(line: LayerLine) -> tuple[str, ...]:
    counts = (f"{line.parameters:,}", f"{line.macs / 1e6:,.1f}") if line.name else ("", "")
    return (
        f"  {line.name}",
        printable(line.in_file),
        line.what,
        line.activation,
        _shape(line.gives),
        *counts,
    )


def _shape(shape: Shape) -> str:
    return " x ".join(map(str, shape))


def _table(rows: tuple[tuple[str, ...], ...], right: tuple[int, ...] = ()) -> Iterator[str]:
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    for row in rows:
        cells = (
            cell.rjust(width) if k in right else cell.ljust(width)
            for k, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        yield "  ".join(cells).rstrip()
