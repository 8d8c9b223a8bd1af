"""Static int8 quantization: QDQ nodes, per-channel weights, and ranges from calibration images that pass
through the device's own preprocessing.

The plain form (ranges from the smallest to the largest value seen) is enough for most networks. Where it is
not, others are tried on pictures that calibrate nothing, and the form closest to the float model is kept.
Where that is still too far away, the most sensitive layers stay float, and the log and the sidecar say what
that costs.
"""

import dataclasses
import logging
import math
from collections.abc import Mapping
from pathlib import Path

from vgg_calibration import choose
from vgg_export.core import cache
from vgg_export.core.files import scratch_folder
from vgg_export.core.losses import Loss
from vgg_export.core.progress import Progress
from vgg_export.data.splits import Splits, short_hash
from vgg_export.graphs import audit
from vgg_export.graphs.model_info import described
from vgg_export.options import AUTO_BITS, INT8_FORMS, QuantizeOptions, as_json
from vgg_runtime.board.targets import ARM, TARGETS, Target
from vgg_runtime.bundle.input_spec import InputSpec

from . import four_bits, qdq, split_gemm
from .candidates import Bench, Trial
from .measured import Choice, FloatLayer, FourBits, Quantized, Tried

log = logging.getLogger(__name__)

PLAIN = INT8_FORMS["minmax"]
# If the plain form is at least this close to the float model, no other is tried.
ENOUGH_KL, ENOUGH_AGREEMENT = 0.002, 0.995
# To be preferred to the plain form, another must lower the mean KL by this share and by this many standard
# errors of the difference.
MARGIN = 0.05
ERRORS = 2.0

STAGE = cache.Stage("quantize", __name__, Quantized)


def run(
    exported: cache.Artifact,
    splits: Splits,
    count: int,
    output: Path,
    options: QuantizeOptions,
    progress: Progress,
    seed: int = 0,
) -> cache.Artifact:
    """Quantize an exported model with at most ``count`` pictures of the fitting set; the selection set
    decides between forms.

    The sidecar holds under ``losses`` the agreement with the float model and the mean KL on the n held-out
    pictures that chose the form (nothing where there are none), and under ``int8`` the forms that were tried
    and the reason for the choice.
    """
    info = described(exported, "'vgg-export export'").model
    items = choose.limit(splits.fit, [i.source for i in splits.fit], count, seed)
    # Agreement with a network of random weights means nothing.
    wanted = splits.select if info.provenance.has_knowledge else []
    held = choose.limit(wanted, [i.source for i in wanted], options.held_images, seed)

    def make(path: Path) -> Quantized:
        with scratch_folder(path.parent) as scratch:
            # The audited graph is unsigned: on x86 onnxruntime rewrites signed activations pair by pair, and
            # the audit would find the operators that it adds.
            target = dataclasses.replace(TARGETS[options.target], signed_activations=False)
            bench = Bench(exported.path, target, info.preprocessing, scratch, progress, info.chain.output)
            bench.calibrate([i.path for i in items], [i.path for i in held])
            made, told = choose_form(bench, options)
            made, four = choose_bits(bench, made, options)
            whole = _in_halves(made.path, bench.preprocessing)
            with progress.task("auditing the int8 graph", None):
                floats = audit.staying_float(bench.layers)
                ops = audit.audit_quantized(
                    whole, bench.parts(made.kept), floats, four.layers if four else ()
                )
            _write_for(TARGETS[options.target], whole, path)
        log_float_ops(floats)
        losses = {"quantized": Loss.of(made.compared, "its float model")} if made.judged else {}
        seen = tuple(short_hash(i.sha256) for i in (*items, *held))
        return Quantized(
            ops,
            calibration_images=tuple(i.sha256 for i in items),
            target=options.target,
            losses=losses,
            int8=told,
            model=dataclasses.replace(info, precision="int8", calibrated_on=seen),
            float_ops=floats or None,
            four_bits=four,
        )

    used = {"seed": seed, "images": [i.sha256 for i in items], "held": [i.sha256 for i in held]}
    return cache.produce(STAGE, as_json(options) | used, {"model": exported}, output, make)


def _in_halves(path: Path, spec: InputSpec) -> Path:
    """The int8 graph with its large fully connected layers in halves; the same file if no layer is large."""
    import onnx

    model = onnx.load(path)
    if not split_gemm.halve(model):
        return path
    halved = path.with_name("halved.onnx")
    onnx.save(model, halved)
    del model
    split_gemm.ensure_equal(path, halved, spec)
    return halved


def _write_for(target: Target, unsigned: Path, path: Path) -> None:
    import onnx

    model = onnx.load(unsigned)
    if target.signed_activations:
        qdq.retype(model, signed=True)
    onnx.save(model, path)


def choose_form(bench: Bench, options: QuantizeOptions) -> tuple[Trial, Choice]:
    """The int8 graph to keep, and the record of the choice."""
    trials = [bench.make(INT8_FORMS.get(options.method, PLAIN))]
    why = reason_for_one(trials[0], options)
    if why is None:
        forms = [form for form in INT8_FORMS.values() if form != PLAIN and not form.rounded]
        trials += [bench.make(form) for form in forms if not form.equalized]
        if options.every_form or not meets(closest(trials), options.min_agreement):
            trials += [bench.make(form) for form in forms if form.equalized]
            trials.append(bench.make(INT8_FORMS[f"{closest(trials).form.base}-rounded"]))
    best = closest(trials)
    if why is None:
        changed = best is not trials[0]
        why = (
            "closest to the float model of the forms tried"
            if changed
            else "no other form is closer by more than chance"
        )
    kept, told = keep_layers(bench, best, options)
    log.info("int8: %s; %s", in_words(best), why)
    log_float_layers(best, kept, told, options)
    return kept, Choice(best.form.name, why, tuple(_tried(t) for t in trials), tuple(told))


def choose_bits(bench: Bench, best: Trial, options: QuantizeOptions) -> tuple[Trial, FourBits | None]:
    """The candidate with its large fully connected layers in 4 bits, and what that saves and costs; the
    candidate itself where 4 bits are not wanted, no layer is large, or "auto" finds that the core is slow
    with them, that they lose too much, or no held-out pictures to see it on."""
    automatic = options.fc_bits == AUTO_BITS
    if options.fc_bits == "8" or (automatic and not (best.judged and TARGETS[options.target].dot_product)):
        return best, None
    found, layers = bench.in_four_bits(best)
    if not layers:
        return best, None
    names, now = ", ".join(layers), in_words(found)
    if automatic and not costs_little(found, best, options):
        log.info("%s stay in 8 bits: in 4 bits the model %s", names, now)
        return best, None
    saved = best.path.stat().st_size - found.path.stat().st_size
    log.info("%s in 4 bits: the file is %.1f MB smaller; %s", names, saved / 1e6, now)
    if TARGETS[options.target].machine == ARM and not TARGETS[options.target].dot_product:
        log.warning(
            "%s has no fast kernel for weights of 4 bits: %s take several times as many instructions as with"
            " --fc-bits 8",
            options.target,
            names,
        )
    warn_of_disagreement(found, options)
    before = Loss.of(best.compared, "its float model") if best.judged else None
    return found, FourBits(layers, four_bits.BLOCK, saved, before)


def costs_little(four: Trial, eight: Trial, options: QuantizeOptions) -> bool:
    """Whether 4 bits lose so little on the held-out pictures that nobody need be asked: the agreement is what
    was asked for, or as with 8 bits, and the KL grows by no more than would be enough for a whole model."""
    asked = min(options.min_agreement, eight.compared.agreement)
    return meets(four, asked) and four.compared.kl - eight.compared.kl <= ENOUGH_KL


def _tried(trial: Trial) -> Tried:
    if not trial.judged:
        return Tried(trial.form.name)
    found = trial.compared
    return Tried(trial.form.name, found.agreement, found.kl, found.n)


def reason_for_one(first: Trial, options: QuantizeOptions) -> str | None:
    """The reason why only the first form is tried, or None."""
    found = first.compared
    if options.method != "auto":
        return "asked for"
    if not first.judged:
        return "there are no held-out pictures to compare forms on"
    if found.kl <= ENOUGH_KL and found.agreement >= ENOUGH_AGREEMENT:
        return f"enough: mean KL at most {ENOUGH_KL} and agreement at least {100 * ENOUGH_AGREEMENT:g} %"
    return None


def closest(trials: list[Trial]) -> Trial:
    """The form with the least mean KL of those that are clearly better than the first; the first if none
    is."""
    better = [t for t in trials[1:] if clearly_better(t, trials[0])]
    return min(better, key=lambda t: float(t.compared.divergence.mean()), default=trials[0])


def clearly_better(trial: Trial, plain: Trial) -> bool:
    """Whether the mean KL is lower by more than the margin and by more than the noise of the difference,
    which is measured picture by picture."""
    gain = plain.compared.divergence - trial.compared.divergence
    noise = ERRORS * float(gain.std(ddof=1)) / math.sqrt(len(gain)) if len(gain) > 1 else math.inf
    return float(gain.mean()) > max(MARGIN * plain.compared.kl, noise)


def keep_layers(bench: Bench, best: Trial, options: QuantizeOptions) -> tuple[Trial, list[FloatLayer]]:
    """Keep the most sensitive layers in float, one more at a time, until the agreement is what was asked for.

    Returns:
        The candidate that agrees most (``best`` where no float layer helps), and its float layers.
    """
    if meets(best, options.min_agreement) or not options.float_layers:
        return best, []
    cost = bench.sensitivity(best.form)
    trials = [best]
    for count in range(1, min(options.float_layers, len(cost)) + 1):
        trials.append(bench.make(best.form, tuple(cost)[:count]))
        if meets(trials[-1], options.min_agreement):
            break
    chosen = max(
        trials, key=lambda t: int(t.compared.same.sum())
    )  # of equal candidates the first, which keeps the fewest layers in float
    why = (
        f"agreement of {100 * best.compared.agreement:.1f} % on {judged_on(best)},"
        f" {100 * options.min_agreement:g} % asked for"
    )
    sizes = [t.path.stat().st_size for t in trials]
    told = [FloatLayer(name, cost[name], why, sizes[k + 1] - sizes[k]) for k, name in enumerate(chosen.kept)]
    return chosen, told


def meets(trial: Trial, agreement: float) -> bool:
    """Whether at most the allowed number of pictures disagree (of a multi-label network: of decisions per
    label). One is always allowed, since it is no evidence."""
    missed = int((~trial.compared.same).sum())
    return missed <= max(1, (1 - agreement) * trial.compared.same.size + 1e-9)


def in_words(trial: Trial) -> str:
    """A form, its agreement and its mean KL as a phrase."""
    if not trial.judged:
        return trial.form.name
    found = trial.compared
    return (
        f"{trial.form.name} agrees with the float model on {100 * found.agreement:.1f} % of"
        f" {judged_on(trial)}, mean KL {found.kl:.4f}"
    )


def judged_on(trial: Trial) -> str:
    """What the agreement is a share of."""
    found = trial.compared
    pictures = f"{found.n} held-out pictures"
    return pictures if found.same.ndim == 1 else f"the decisions per label on {pictures}"


def log_float_layers(before: Trial, after: Trial, told: list[FloatLayer], options: QuantizeOptions) -> None:
    """Log which layers stay float, why, and what that costs; warn if the agreement is still too low."""
    now = 100 * after.compared.agreement if after.judged else 100.0
    if told:
        added = (after.path.stat().st_size - before.path.stat().st_size) / 1e6
        names = ", ".join(entry.layer for entry in told)
        log.info(
            "%s in float, because of an %s: now %.1f %%, for %.2f MB more", names, told[0].why, now, added
        )
    warn_of_disagreement(after, options)


def warn_of_disagreement(trial: Trial, options: QuantizeOptions) -> None:
    """Warn if the agreement is lower than what was asked for."""
    if not meets(trial, options.min_agreement):
        log.warning(
            "the int8 model agrees with the float model on only %.1f %% of the held-out pictures, %g %%"
            " asked for",
            100 * trial.compared.agreement,
            100 * options.min_agreement,
        )


def log_float_ops(ops: Mapping[str, int]) -> None:
    """Log which activations are computed in float, and what that costs."""
    if ops:
        log.info(
            "int8: %s stay float: onnxruntime has no int8 kernel for them, so each dequantizes its input and"
            " quantizes its output again",
            ", ".join(f"{count} {op}" for op, count in ops.items()),
        )
