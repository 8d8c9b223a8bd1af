"""Shows a result as aligned text for a terminal."""

from collections.abc import Sequence
from pathlib import Path

from vgg_runtime.bundle.outputs import ACCURACY, AGREEMENT, MULTI_LABEL, SIGMOID, SOFTMAX, given
from vgg_runtime.result import About, Device, Evaluation, Prediction, Proportion, Result, Row, StepLoss
from vgg_runtime.text import ABSENT, NO_LABEL, megabytes, number, percent, printable, table

MARK = "!"  # behind a figure that a line below the table explains


def header(result: Result) -> str:
    """A few lines about the device and the bundle."""
    device, bundle = result.device, result.bundle
    ram = f"{device.ram_bytes / 2**30:.1f} GiB RAM" if device.ram_bytes else "RAM unknown"
    features = " ".join(device.features) or "no int8 instructions known"
    assumed = [f"Assumed  {'; '.join(bundle.assumed)}"] if bundle.assumed else []
    network = [f"Network  {described}"] if (described := _network(bundle)) else []
    return "\n".join(
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


def _network(bundle: About) -> str:
    """The numbers of layers with weights and of classes, and the kind of output where it is not softmax;
    empty where none of it is known."""
    layers, classes = (bundle.network.get(name) for name in ("layers", "classes"))
    types = [layer.get("type") for layer in layers or () if isinstance(layer, dict)]
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


def explanations(result: Result) -> str:
    """Why rows are slower than expected, one paragraph per reason; empty if there is none."""
    return "\n".join(f"→ {sentence}." for sentence in result.explanations)


def notice(about: About) -> str:
    """The notices to show with every table, marked by !!; empty if there are none."""
    return "\n".join(f"!! {line}" for line in about.notices)


COLUMNS = (
    "variant",
    "input",
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
    "agrees",
    "top-1",
)


def comparison(result: Result) -> str:
    """One row per variant."""
    text = table(headings(COLUMNS, result.bundle.output), [_cells(row) for row in result.variants])
    text += "".join(f"\n{line}" for line in star(result))
    for row in result.variants:
        text += "".join(f"\n{MARK} {row.variant}: {mark}" for mark in row.marks)
        if row.error:
            text += f"\n✗ {row.variant}: {row.error}"
    text += "".join(f"\n→ {line}" for line in _builds(result))
    text += _threads(result)
    return text + "\n" + _footnote(result)


def star(result: Result) -> list[str]:
    """What is recommended and why, and what is not sure about it; no line where an older result does not
    say."""
    pick = result.recommended
    if pick is None:
        return []
    if pick.variant is None:
        return [f"None is recommended: {pick.reason}"]
    return [f"★ {pick.variant} is recommended: {pick.reason}", *([f"  {pick.unsure}"] if pick.unsure else [])]


def headings(columns: Sequence[str], output: str) -> tuple[str, ...]:
    """The headings of columns, as the figures are called for this kind of output."""
    names = {"agrees": AGREEMENT[output], "top-1": ACCURACY[output]}
    return tuple(names.get(column, column) for column in columns)


def _cells(row: Row) -> list[str]:
    """The cells of one row of the comparison."""
    mark = MARK if row.marks else ""
    return [
        row.variant,
        f"{row.input_px} px",
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
        percent(row.agreement, interval=True),
        percent(row.accuracy, interval=True),
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
    counts = [tried.threads for tried in swept[0].thread_sweep]
    rows = []
    for row in swept:
        figures = [tried.p90_ms or tried.p50_ms for tried in row.thread_sweep]
        rows.append([row.variant, *(number(ms) for ms in figures), str(row.threads)])
    return "\n\nMilliseconds (P90; P50 where fewer than 64 runs were made) by threads\n" + table(
        ("variant", *(f"{n} thread{'s' if n > 1 else ''}" for n in counts), "used"), rows
    )


def _footnote(result: Result) -> str:
    counted = [image for image in result.images if not image.fitted]
    n, known = len(counted), sum(image.label is not None for image in counted)
    left_out = len(result.images) - n
    lines = []
    if left_out:
        lines.append(
            f"{left_out} of the pictures were used to calibrate or fit the models and count for no figure."
        )
    if n and not result.bundle.figures_absent:
        lines.append(_figures_explained(result.bundle, n, known))
    if any(row.p90_ms is None for row in result.variants):
        lines.append(
            f"{ABSENT} in P90: there were fewer than the 64 runs that it needs; --budget gives more."
        )
    figures = "this figure" if result.bundle.top1_absent else "these two figures"
    if n and n < 100 and not result.bundle.figures_absent and any(row.built for row in result.variants):
        lines.append(f"{n} pictures are too few for {figures}; the table below was measured at build time.")
    return "\n".join(lines)


def _figures_explained(bundle: About, n: int, known: int) -> str:
    """What the figures of the comparison count on ``n`` pictures, ``known`` of them with their class."""
    if bundle.top1_absent:
        return (
            f"{AGREEMENT[bundle.output]}: the share of decisions at 0.5, one per label, that are the"
            f" baseline's on these {n} pictures; {bundle.top1_absent}."
        )
    same = "top-1" if bundle.output == SOFTMAX else "class"
    return (
        f"agrees: same {same} as the baseline on these {n} pictures; {ACCURACY[bundle.output]}: right on the"
        f" {known} of them with a known class."
    )


def built(result: Result) -> str:
    """A table of the figures on test images from when the bundle was made; empty if there are none."""
    evaluated = [(row.variant, row.built) for row in result.variants if row.built]
    if not evaluated:
        return ""
    cells = [[name, *evaluation_cells(figures)] for name, figures in evaluated]
    n = evaluated[0][1].n
    return (
        f"Measured at build time on {n} test images (none of them used for fitting or calibration)\n"
        + table(("variant", *headings(EVALUATION_COLUMNS, result.bundle.output)), cells)
    )


LOSS_COLUMNS = ("removed", "repaired", "tuned", "quantized")


def losses(result: Result) -> str:
    """A table of the loss of each step in making the variants; empty if none was measured."""
    rows = [[row.variant, *loss_cells(row.losses)] for row in result.variants if row.losses]
    if not rows:
        return ""
    agreement = "Per-label agreement" if result.bundle.output == MULTI_LABEL else "Agreement"
    return (
        f"{agreement} and mean KL after each step, on held-out pictures: removed and repaired against the"
        " checkpoint at the variant's input size, tuned against the checkpoint, quantized against its own"
        " float model\n" + table(("variant", *LOSS_COLUMNS), rows)
    )


def loss_cells(steps: Sequence[StepLoss]) -> list[str]:
    """The losses of one variant by step as text, with a dash for each step that it lacks."""
    found = {step.step: f"{100 * step.agreement:.1f} % {step.kl:.4f} (n={step.n})" for step in steps}
    return [found.get(name, ABSENT) for name in LOSS_COLUMNS]


EVALUATION_COLUMNS = ("top-1", "95 % interval", "top-5", "agrees", "95 % interval", "KL mean", "KL p95")


def evaluation_cells(evaluation: Evaluation) -> list[str]:
    """The build-time figures of one variant as text, with a dash for each that is absent."""
    top1, top5, agreement = evaluation.top1, evaluation.top5, evaluation.agreement
    return [
        percent(top1),
        _interval(top1),
        percent(top5),
        percent(agreement),
        _interval(agreement),
        number(evaluation.kl_mean, digits=4),
        number(evaluation.kl_p95, digits=4),
    ]


def _interval(proportion: Proportion | None) -> str:
    if proportion is None:
        return ABSENT
    low, high = proportion.interval95
    return f"{100 * low:.1f} to {100 * high:.1f}"


def predictions(result: Result, *, top5: bool, limit: int = 12) -> str:
    """A table of the class that each variant gives each picture, or of the labels above 0.5. The baseline's
    are named; the others show = where they agree with it, else their own."""
    shown = [row for row in result.variants if row.predictions]
    if not shown or result.bundle.figures_absent:  # predictions of random weights mean nothing
        return ""
    images = result.images[:limit]
    if top5:
        return "\n\n".join(_top5(result, shown, k) for k in range(len(images)))
    reference = shown[0]
    rows = []
    for k, image in enumerate(images):
        mark = "" if image.label is None else f" ({printable(image.label, 16)})"
        cells = [printable(Path(image.file).name, 28) + mark]
        for row in shown:
            if k >= len(row.predictions):
                cells.append(ABSENT)
                continue
            of = None if row is reference else reference.predictions[k]
            cells.append(_said(row.predictions[k], of, result.bundle.output))
        rows.append(cells)
    more = len(result.images) - len(images)
    text = table(("picture", *(row.variant for row in shown)), rows)
    if result.bundle.output == MULTI_LABEL:
        text = f"Labels above 0.5, most probable first\n{text}"
    return text + (f"\n… and {more} more pictures (all of them with --json)" if more > 0 else "")


MOST_NAMED = 4  # labels of a picture in one cell


def _said(said: Prediction, of: Prediction | None, output: str) -> str:
    """The labels that a picture is given, with their probabilities in percent; = where they are those
    ``of`` the baseline."""
    count = given(said.probabilities, output)
    shares = [f"{100 * share:.0f} %" for share in said.probabilities[: min(count, MOST_NAMED)]]
    more = [f"{count - MOST_NAMED} more"] if count > MOST_NAMED else []
    if of and set(said.classes[:count]) == set(of.classes[: given(of.probabilities, output)]):
        return f"= {', '.join([*shares, *more]) or NO_LABEL}"
    named = [f"{printable(label, 18)} {share}" for label, share in zip(said.labels, shares, strict=False)]
    return ", ".join([*named, *more]) or NO_LABEL


def _top5(result: Result, shown: Sequence[Row], k: int) -> str:
    rows = []
    for row in shown:
        if k < len(row.predictions):
            said = row.predictions[k]
            named = zip(said.labels[:5], said.probabilities[:5], strict=True)
            words = (f"{printable(label, 20)} {100 * share:.1f} %" for label, share in named)
            rows.append([row.variant, *words])
    ranks = max(len(row) for row in rows) - 1
    return f"{printable(result.images[k].file, 80)}\n" + table(
        ("variant", *(f"{r}." for r in range(1, ranks + 1))), rows, left=ranks + 1
    )
