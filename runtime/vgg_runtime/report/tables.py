"""Shows a result as aligned text for a terminal."""

from collections.abc import Container, Iterator, Sequence
from pathlib import Path

from vgg_runtime.bundle.outputs import ACCURACY, AGREEMENT, MULTI_LABEL, SIGMOID, SOFTMAX, given
from vgg_runtime.result import (
    About,
    Device,
    Evaluation,
    Image,
    Prediction,
    Result,
    Row,
    StepLoss,
)
from vgg_runtime.text import (
    ABSENT,
    NO_LABEL,
    fitting,
    folded,
    in_bytes,
    in_percent,
    megabytes,
    number,
    printable,
    printed_width,
    table,
    widths,
)

MARK = "!"  # behind a figure that a line below the table explains


def whole(result: Result, width: int | None = None, *, top5: bool = False) -> str:
    """All that ``compare.py`` prints. What must not be missed stands in front and again at the end."""
    about = notice(result.bundle, width)
    parts = (
        verdict(result, width),
        about,
        header(result, width),
        comparison(result, width),
        explanations(result, width),
        predictions(result, top5=top5, width=width),
        built(result, width),
        losses(result, width),
        about,
    )
    return "\n\n".join(filter(None, parts))


def header(result: Result, width: int | None = None) -> str:
    """A few lines about the device and the bundle."""
    device, bundle = result.device, result.bundle
    ram = f"{device.ram_bytes / 2**30:.1f} GiB RAM" if device.ram_bytes else "RAM unknown"
    features = " ".join(device.features) or "no int8 instructions known"
    assumed = [f"Assumed  {'; '.join(bundle.assumed)}"] if bundle.assumed else []
    network = [f"Network  {described}"] if (described := _network(bundle)) else []
    lines = "\n".join(
        (
            f"Device   {device.board}, {device.cpu or device.machine}, {device.cores} cores,"
            f" {device.threads} threads used, {ram}",
            f"         {features}: the builds for {device.target};"
            f" {device.os}, Python {device.python}, onnxruntime {device.onnxruntime or 'missing'}",
            f"State    {state(device)}",
            f"Model    {bundle.family}, {bundle.weights.get('what', 'weights of unknown origin')};"
            f" int8 made for {bundle.target}",
            *network,
            *assumed,
        )
    )
    return folded(lines, width, " " * 9)


def _network(bundle: About) -> str:
    """The numbers of layers with weights and of classes, and the kind of output where it is not softmax;
    empty where none of it is known."""
    layers, classes = (bundle.network.get(name) for name in ("layers", "classes"))
    listed = layers if isinstance(layers, list | tuple) else ()
    types = [layer.get("type") for layer in listed if isinstance(layer, dict)]
    counts = {"convolutional": types.count("conv"), "fully connected": types.count("linear")}
    kinds = {SIGMOID: "one sigmoid unit for two classes", MULTI_LABEL: "multi-label: a sigmoid per label"}
    layered = " and ".join(f"{count} {name}" for name, count in counts.items() if count)
    parts = (
        f"{layered} layer{'s' * (sum(counts.values()) > 1)}" if layered else None,
        f"{classes} classes" if isinstance(classes, int) else None,
        kinds.get(bundle.output),
    )
    return ", ".join(filter(None, parts))


def state(device: Device) -> str:
    """Temperature, clock and throttling at the end of the measurement; a missing sensor is shown as
    unknown."""
    held = device.throttled
    throttling = (
        "throttling unknown" if held is None else f"HELD BACK: {', '.join(held)}" if held else "not throttled"
    )
    heat = "temperature unknown" if device.temperature_c is None else f"{device.temperature_c:.0f} °C"
    clock = "clock unknown" if device.clock_mhz is None else f"{device.clock_mhz:.0f} MHz"
    return f"{heat}, {clock}, {throttling}"


def explanations(result: Result, width: int | None = None) -> str:
    """Why rows are slower than expected, one paragraph per reason; empty if there is none."""
    return folded("\n".join(f"→ {sentence}." for sentence in result.explanations), width)


def notice(about: About, width: int | None = None) -> str:
    """The notices to show with every table, marked by !!; empty if there are none."""
    return folded("\n".join(f"!! {line}" for line in about.notices), width, "   ")


def verdict(result: Result, width: int | None = None) -> str:
    """What is recommended, with its speed, size, memory and loss in one sentence; below, why, and what is not
    sure about it. Empty where an older result does not say."""
    pick = result.recommended
    if pick is None:
        return ""
    if pick.variant is None:
        return folded("\n".join((f"None is recommended: {pick.reason}.", *_alone(result))), width)
    row = next((row for row in result.variants if row.variant == pick.variant), None)
    gains = _gains(row, result.baseline) if row else ""
    sentence = "; ".join(filter(None, (gains, pick.unsure)))
    doubtful = [r.variant for r in (row, result.baseline) if r and r.marks]
    lines = [
        f"★ {pick.variant} is recommended{': ' if sentence else ''}{sentence}.",
        f"  It is {pick.reason}.",
    ]
    if doubtful:
        lines.append(
            f"{MARK} The times of {' and '.join(dict.fromkeys(doubtful))} are not reliable; the lines marked"
            f" {MARK} below the table say why."
        )
    return folded("\n".join(lines), width)


def _alone(result: Result) -> list[str]:
    """The figures of the only variant of a bundle."""
    if result.bundle.baseline is not None:
        return []
    return [f"{row.variant}: {gains}." for row in result.variants if (gains := _gains(row, None))]


def _gains(row: Row, reference: Row | None) -> str:
    """What a variant takes, and how many times less that is than what the baseline takes."""
    base = reference if reference is not row else None
    size, peak = (in_bytes(value) for value in (row.size_bytes, row.peak_rss_bytes))
    figures = (
        (number(row.p50_ms, " ms a picture"), row.p50_ms, base.p50_ms if base else None, "faster"),
        (size, row.size_bytes, base.size_bytes if base else None, "smaller"),
        (f"peak memory {peak}", row.peak_rss_bytes, base.peak_rss_bytes if base else None, "less"),
    )
    return ", ".join(
        words + (f" ({_times(before / now)} {how})" if before and before / now >= 1.05 else "")
        for words, now, before, how in figures
        if now
    )


def _times(ratio: float) -> str:
    return f"{ratio:.1f}x" if ratio < 9.95 else f"{ratio:.0f}x"


COLUMNS = (
    "variant",
    "px",
    "params M",
    "GMACs",
    "file MB",
    "load ms",
    "first ms",
    "P50 ms",
    "P90 ms",
    "prepare",
    "total ms",
    "speed",
    "peak MB",
    "anon MB",
    "agrees %",
    "top-1 %",
)
# By importance: as many as fit are shown. Of the last two of the first line, top-1 where there are labels.
FIRST = ("variant", "px", "P50 ms", "speed", "file MB", "peak MB")
THEN = ("P90 ms", "load ms", "GMACs", "params M", "total ms", "anon MB", "first ms", "prepare")


def comparison(result: Result, width: int | None = None) -> str:
    """One row per variant, in the columns that fit into ``width`` characters; None: in all columns."""
    labelled = any(row.accuracy for row in result.variants)
    right = ("top-1 %", "agrees %") if labelled else ("agrees %", "top-1 %")
    order = [COLUMNS.index(name) for name in (*FIRST, *right, *THEN)]
    cells = [_cells(row) for row in result.variants]
    names = headings(COLUMNS, result.bundle.output)
    text = table(names, cells, width=width, order=order)
    shown = {COLUMNS[k] for k in fitting(widths(names, cells), order, width)}
    notes = []
    for row in result.variants:
        notes += [f"{MARK} {row.variant}: {mark}" for mark in row.marks]
        notes += [f"✗ {row.variant}: {row.error}"] if row.error else []
    notes += [f"→ {line}" for line in _builds(result)]
    text += "".join(f"\n{folded(line, width)}" for line in notes)
    return "\n".join(filter(None, (text + _threads(result), folded(_footnote(result, shown), width))))


def headings(columns: Sequence[str], output: str) -> tuple[str, ...]:
    """The headings of columns, as the figures are called for this kind of output."""
    names = {"agrees": AGREEMENT[output], "top-1": ACCURACY[output]}
    # in per cent, and short enough for a narrow terminal
    names["agrees %"] = "per-label %" if output == MULTI_LABEL else "agrees %"
    names["top-1 %"] = "accuracy %" if output == SIGMOID else "top-1 %"
    return tuple(names.get(column, column) for column in columns)


def _cells(row: Row) -> list[str]:
    """The cells of one row of the comparison."""
    mark = MARK if row.marks else ""
    return [
        row.variant,
        f"{row.input_px}",
        f"{row.parameters / 1e6:.2f}",
        f"{row.macs / 1e9:.2f}",
        megabytes(row.size_bytes),
        number(row.load_ms, digits=0),
        number(row.first_ms),
        number(row.p50_ms, mark),
        number(row.p90_ms, mark),
        number(row.prepare_ms),
        number(row.end_to_end_ms),
        number(row.speedup, "x"),
        megabytes(row.peak_rss_bytes),
        megabytes(row.peak_anonymous_bytes),
        in_percent(row.agreement),
        in_percent(row.accuracy),
    ]


def _builds(result: Result) -> list[str]:
    """Lines on builds that were made for other cores, on forms of builds, and on lean sessions."""
    target, lines = result.device.target, []
    foreign: dict[tuple[str, bool], list[str]] = {}
    for row in result.variants:
        build = row.build
        if build.targets and target not in build.targets:
            foreign.setdefault((", ".join(build.targets), build.slower_kernels), []).append(row.variant)
    for (made_for, slower), names in foreign.items():
        why = ", with slower kernels, in which its 8-bit weights do not overflow" if slower else ""
        told = (
            f"the build for {made_for} was used{why}; 'vgg-export all --target {target}' makes one for this"
            " core"
        )
        lines.append(f"{', '.join(names)}: {told}.")
    forms = dict.fromkeys(row.build.form for row in result.variants if row.build.form)
    lines += [
        f"{', '.join(row.variant for row in result.variants if row.build.form == form)}: {form}."
        for form in forms
    ]
    if lean := [row.variant for row in result.variants if row.memory_mode == "lean"]:
        lines.append(
            f"{', '.join(lean)}: lean with memory; float weights stay in the file's pages, which the"
            " system can drop."
        )
    return lines


def _threads(result: Result) -> str:
    """A table of the latency with each number of threads; empty where none were tried."""
    swept = [row for row in result.variants if row.thread_sweep]
    if not swept:
        return ""
    counts = sorted({tried.threads for row in swept for tried in row.thread_sweep})
    rows = []
    for row in swept:
        figures = {tried.threads: tried.p90_ms or tried.p50_ms for tried in row.thread_sweep}
        rows.append([row.variant, *(number(figures.get(n)) for n in counts), str(row.threads)])
    return "\n\nMilliseconds (P90; P50 where fewer than 64 runs were made) by threads\n" + table(
        ("variant", *(f"{n} thread{'s' if n > 1 else ''}" for n in counts), "used"), rows
    )


def _footnote(result: Result, shown: Container[str]) -> str:
    """What the figures in the columns that are ``shown`` count."""
    counted = [image for image in result.images if not image.fitted]
    n, known = len(counted), sum(image.label is not None for image in counted)
    left_out = len(result.images) - n
    lines = []
    if left_out:
        lines.append(
            f"{left_out} of the pictures were used to calibrate or fit the models and count for no figure."
        )
    told = [name for name in ("agrees %", *(("top-1 %",) if known else ())) if name in shown]
    told = [] if not n or result.bundle.figures_absent or result.bundle.baseline is None else told
    if told:
        lines.append(_figures_explained(result.bundle, n, known, told))
    if "P90 ms" in shown and any(row.p90_ms is None for row in result.variants):
        lines.append(
            f"{ABSENT} in P90: there were fewer than the 64 runs that it needs; --budget gives more."
        )
    figures = "this figure" if result.bundle.top1_absent or len(told) == 1 else "these two figures"
    if told and n < 100 and any(row.built for row in result.variants):
        lines.append(f"{n} pictures are too few for {figures}; the table below was measured at build time.")
    return "\n".join(lines)


def _figures_explained(bundle: About, n: int, known: int, told: Sequence[str]) -> str:
    """What the figures of the columns ``told`` count on ``n`` pictures, ``known`` of them with their
    class."""
    if bundle.top1_absent:
        return (
            f"{AGREEMENT[bundle.output]}: the share of decisions at 0.5, one per label, that are the"
            f" baseline's on these {n:,} pictures; {bundle.top1_absent}."
        )
    same = "top-1" if bundle.output == SOFTMAX else "class"
    agrees = f"agrees: same {same} as the baseline on these {n:,} pictures"
    right = f"{ACCURACY[bundle.output]}: right on "
    if told == ["top-1 %"]:
        return f"{right}{known:,} of these {n:,} pictures, whose class is known."
    if told == ["agrees %"]:
        return f"{agrees}."
    return f"{agrees}; {right}the {known:,} of them with a known class."


BUILT_COLUMNS = ("variant", "top-1 %", "top-5 %", "agrees %", "KL mean", "KL p95")
BUILT_ORDER = (0, 1, 3, 4, 2, 5)


def built(result: Result, width: int | None = None) -> str:
    """A table of the figures on test images from when the bundle was made; empty if there are none."""
    evaluated = [(row.variant, row.built) for row in result.variants if row.built]
    if not evaluated:
        return ""
    n = evaluated[0][1].n
    said = f"Measured at build time on {n:,} test images (none of them used for fitting or calibration)"
    return folded(said, width) + "\n" + figures(evaluated, result.bundle.output, width)


def figures(evaluated: Sequence[tuple[str, Evaluation]], output: str, width: int | None = None) -> str:
    """A table of figures on test images by variant."""
    cells = [
        [
            name,
            in_percent(found.top1, 1),
            in_percent(found.top5, 1),
            in_percent(found.agreement, 1),
            number(found.kl_mean, digits=4),
            number(found.kl_p95, digits=4),
        ]
        for name, found in evaluated
    ]
    return table(headings(BUILT_COLUMNS, output), cells, width=width, order=BUILT_ORDER)


LOSS_COLUMNS = ("removed", "repaired", "tuned", "quantized")


def losses(result: Result, width: int | None = None) -> str:
    """A table of the loss of each step in making the variants; empty if none was measured."""
    steps = [(row.variant, row.losses) for row in result.variants if row.losses]
    if not steps:
        return ""
    agreement = "Per-label agreement" if result.bundle.output == MULTI_LABEL else "Agreement"
    counts: dict[int, list[str]] = {}
    for step in sorted({(one.step, one.n) for _, lost in steps for one in lost}, key=_place):
        counts.setdefault(step[1], []).append(step[0])
    pictures = "; ".join(f"{n:,} for {', '.join(names)}" for n, names in counts.items())
    said = (
        f"{agreement} in % and mean KL after each step, on held-out pictures ({pictures}): removed and"
        " repaired against the checkpoint at the variant's input size, tuned against the checkpoint,"
        " quantized against its own float model"
    )
    rows = [[name, *loss_cells(lost)] for name, lost in steps]
    return folded(said, width) + "\n" + table(("variant", *LOSS_COLUMNS), rows, width=width)


def _place(step: tuple[str, int]) -> tuple[int, int]:
    return (LOSS_COLUMNS.index(step[0]) if step[0] in LOSS_COLUMNS else len(LOSS_COLUMNS), step[1])


def loss_cells(steps: Sequence[StepLoss]) -> list[str]:
    """The losses of one variant by step, agreement in per cent and mean KL, with a dash for each step that it
    lacks."""
    found = {step.step: f"{100 * step.agreement:.1f} {step.kl:.4f}" for step in steps}
    return [found.get(name, ABSENT) for name in LOSS_COLUMNS]


def predictions(result: Result, *, top5: bool, width: int | None = None, limit: int = 12) -> str:
    """The class that each variant gives each picture, or its labels above 0.5: those of the baseline, and
    those of the variants that differ. Without a ``width`` one column per variant."""
    shown = [row for row in result.variants if row.predictions]
    if not shown or result.bundle.figures_absent:  # predictions of random weights mean nothing
        return ""
    images = result.images[:limit]
    if top5:
        return "\n\n".join(_top5(result, shown, k, width) for k in range(len(images)))
    titles = [_title(image) for image in images]
    said = [[_label(row, shown[0], k, result.bundle.output) for row in shown] for k in range(len(images))]
    if width is None:
        text = _side_by_side(titles, shown, said)
    else:
        text = "\n".join(_in_turn(titles, shown, said, width))
    if result.bundle.output == MULTI_LABEL:
        text = f"Labels above 0.5, most probable first\n{text}"
    more = len(result.images) - len(images)
    return text + (f"\n… and {more} more pictures (all of them with --json)" if more > 0 else "")


def _title(image: Image) -> str:
    """A picture's name, with its class where that is known."""
    mark = "" if image.label is None else f" ({printable(image.label, 16)})"
    return printable(Path(image.file).name, 28) + mark


def _label(row: Row, reference: Row, k: int, output: str) -> str:
    """What a variant says about picture ``k``; = where that is what the baseline says."""
    if k >= len(row.predictions):
        return ABSENT
    told = row is not reference and k < len(reference.predictions)  # it may have died before
    return _said(row.predictions[k], reference.predictions[k] if told else None, output)


def _side_by_side(titles: Sequence[str], shown: Sequence[Row], said: Sequence[Sequence[str]]) -> str:
    rows = [[title, *cells] for title, cells in zip(titles, said, strict=True)]
    return table(("picture", *(row.variant for row in shown)), rows)


def _in_turn(
    titles: Sequence[str], shown: Sequence[Row], said: Sequence[Sequence[str]], width: int
) -> Iterator[str]:
    """A table of what the baseline says and how many others say the same, and lines with what the others
    say."""
    rows, others = [], []
    for title, (own, *rest) in zip(titles, said, strict=True):
        same = [cell for cell in rest if cell.startswith("= ")]
        rows.append([title, own, f"{len(same)} of {len(rest)}"])
        different = [
            f"{row.variant} {cell}"
            for row, cell in zip(shown[1:], rest, strict=True)
            if not cell.startswith("= ") and cell != ABSENT
        ]
        others += [f"  {title}: {'; '.join(different)}"] if different else []
    columns = ("picture", shown[0].variant, "others agree")
    count = len(columns) if len(shown) > 1 else 2
    yield table(columns[:count], [row[:count] for row in rows], left=2, width=width)
    yield from (folded(line, width, "    ") for line in others)


MOST_NAMED = 4  # labels of a picture in one cell


def _said(said: Prediction, of: Prediction | None, output: str) -> str:
    """The labels that a picture is given, with their probabilities in percent; = where they are those
    ``of`` the baseline."""
    count = given(said.probabilities, output)
    shares = [f"{100 * share:.0f} %" for share in said.probabilities[: min(count, MOST_NAMED)]]
    more = [f"{count - MOST_NAMED} more"] if count > MOST_NAMED else []
    if of and set(said.classes[:count]) == set(of.classes[: given(of.probabilities, output)]):
        return f"= {', '.join([*shares, *more]) or NO_LABEL}"
    named = [f"{printable(label, 18)} {share}" for label, share in zip(said.names, shares, strict=False)]
    return ", ".join([*named, *more]) or NO_LABEL


def _top5(result: Result, shown: Sequence[Row], k: int, width: int | None) -> str:
    rows = []
    for row in shown:
        if k < len(row.predictions):
            said = row.predictions[k]
            named = zip(said.names[:5], said.probabilities[:5], strict=True)
            words = (f"{printable(label, 20)} {100 * share:.1f} %" for label, share in named)
            rows.append([row.variant, *words])
    title = printable(result.images[k].file, 80)
    if not rows:
        return f"{title}\n  no variant lived to classify it"
    ranks = max(len(row) for row in rows) - 1
    shown_as = table(("variant", *(f"{r}." for r in range(1, ranks + 1))), rows, left=ranks + 1)
    if width is not None and any(printed_width(line) > width for line in shown_as.split("\n")):
        lines = (f"  {name}: {', '.join(words)}" for name, *words in rows)
        shown_as = "\n".join(folded(line, width, "    ") for line in lines)
    return f"{title}\n{shown_as}"
