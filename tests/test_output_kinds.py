"""The device's command line on networks with one sigmoid unit, with several labels, and with grey pictures.
Every figure is held against one computed by hand."""

import collections
import dataclasses
import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ask, first, reseal
from damage import rewrite
from drawn_bundles import MEAN, NAMES, STD, TESTED, Array, Drawn, colours, draw, paint, served
from launch import QUICK, compare

from vgg_calibration.chain import Layer
from vgg_calibration.observe import observe
from vgg_runtime.bundle import manifest, self_check
from vgg_runtime.bundle.metrics import wilson_interval
from vgg_runtime.bundle.outputs import MULTI_LABEL, OUTPUTS, SIGMOID, SOFTMAX

VARIANTS = ("baseline", "close", "far")


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Drawn]:
    """A bundle of each kind, and one of a grey network."""
    made = {kind: draw(tmp_path_factory.mktemp(kind) / "artifacts", kind) for kind in OUTPUTS}
    grey = draw(tmp_path_factory.mktemp("grey") / "artifacts", SOFTMAX, channels=1, resize="squash")
    return made | {"grey": grey}


def measured(bundle: Drawn, work: Path, *arguments: str | Path) -> tuple[dict[str, Any], str]:
    """The result of compare.py on a bundle, and what it printed."""
    done = compare("--bundle", bundle.folder, "--json", work / "r.json", *arguments, *QUICK)
    assert done.returncode == 0, done.stderr
    return json.loads((work / "r.json").read_text()), done.stdout


def sigmoid(z: Array) -> Array:
    found: Array = 1 / (1 + np.exp(-z))
    return found


def bernoulli_kl(p: Array, q: Array) -> Array:
    found: Array = p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))
    return found


def test_one_sigmoid_unit_tells_two_classes(drawn: dict[str, Drawn], tmp_path: Path) -> None:
    bundle, shown = drawn[SIGMOID], colours(30)
    labels = [k % 2 for k in range(30)]
    for k, colour in enumerate(shown):
        paint(tmp_path / f"in/{NAMES[SIGMOID][labels[k]]}/{k:02}.png", colour)
    result, printed = measured(bundle, tmp_path, "--images", tmp_path / "in")
    order = [int(Path(image["file"]).stem) for image in result["images"]]
    base = bundle.logits("baseline", *shown)[order, 0]
    for row in result["variants"]:
        z = bundle.logits(row["variant"], *shown)[order, 0]
        right = int(((z > 0) == np.array(labels)[order]).sum())
        same = int(((z > 0) == (base > 0)).sum())
        assert row["accuracy"]["rate"] == right / 30
        assert row["agreement"] == {"rate": same / 30, "n": 30, "interval95": [*wilson_interval(same, 30)]}
        for said, own in zip(row["predictions"], z, strict=True):
            yes = int(own > 0)
            assert said["classes"] == [yes, 1 - yes]
            assert said["labels"] == [NAMES[SIGMOID][yes], NAMES[SIGMOID][1 - yes]]
            assert said["probabilities"] == pytest.approx([sigmoid(abs(own)), sigmoid(-abs(own))], abs=1e-5)
    assert result["bundle"]["output"] == SIGMOID
    assert result["bundle"]["top1_absent"] is None
    assert len({row["agreement"]["rate"] for row in result["variants"]}) > 1
    assert "Network  1 fully connected layer, 2 classes, one sigmoid unit for two classes\n" in printed
    assert printed.count("accuracy %") == 2  # of two tables
    assert "accuracy at 0.5" in printed  # the note below the first


def test_the_figures_of_a_sigmoid_at_build_time(drawn: dict[str, Drawn]) -> None:
    bundle, shown = drawn[SIGMOID], colours(TESTED, seed=2)
    base = bundle.logits("baseline", *shown)[:, 0]
    truth = np.arange(TESTED) % 2
    for variant in manifest.read(bundle.folder).variants:
        z, built = bundle.logits(variant.id, *shown)[:, 0], variant.build.evaluation
        assert built is not None
        assert built.top1 is not None
        assert built.top1.rate == ((z > 0) == truth).mean()
        assert built.agreement.rate == ((z > 0) == (base > 0)).mean()
        divergence = bernoulli_kl(sigmoid(base), sigmoid(z))
        assert built.kl_mean == pytest.approx(divergence.mean(), rel=1e-3, abs=1e-7)
        assert built.kl_p95 == pytest.approx(np.quantile(divergence, 0.95), rel=1e-3, abs=1e-7)
        assert (built.top5, built.chance) == (None, 0.5)


def test_several_labels_are_compared_one_by_one(drawn: dict[str, Drawn], tmp_path: Path) -> None:
    bundle, shown = drawn[MULTI_LABEL], [(127, 127, 127), *colours(29)]  # grey is given no label
    for k, colour in enumerate(shown):
        paint(tmp_path / f"in/{k:02}.png", colour)
    result, printed = measured(bundle, tmp_path, "--images", tmp_path / "in")
    base = bundle.logits("baseline", *shown) > 0
    counts = set()
    for row in result["variants"]:
        z = bundle.logits(row["variant"], *shown)
        same = float(((z > 0) == base).mean())
        assert row["agreement"]["rate"] == pytest.approx(same)
        assert row["agreement"]["interval95"] == pytest.approx(wilson_interval(30 * same, 30))
        assert row["accuracy"] is None
        for said, own in zip(row["predictions"], z, strict=True):
            count = max(5, int((own > 0).sum()))
            counts.add(count)
            order = np.argsort(-own)[:count]
            assert said["classes"] == order.tolist()
            assert said["labels"] == [NAMES[MULTI_LABEL][k] for k in order]
            assert said["probabilities"] == pytest.approx(sigmoid(own[order]), abs=1e-5)
    assert {5, 6} <= counts  # labels above 0.5 are never cut off
    assert len({row["agreement"]["rate"] for row in result["variants"]}) == 3
    reason = "a multi-label network has no top-1: one folder per class names one label per picture"
    assert result["bundle"]["top1_absent"] == reason
    assert reason in printed
    assert "Labels above 0.5, most probable first" in printed
    assert "per-label agreement" in printed
    assert "agrees" not in printed.replace("it agrees with", "")
    check_printed_labels(bundle, shown, printed)


def check_printed_labels(bundle: Drawn, shown: list[tuple[int, int, int]], printed: str) -> None:
    """The first column names the labels above 0.5 of twelve pictures, four at most."""
    lines = {line[:6]: line for line in printed.splitlines() if line[2:6] == ".png"}
    assert len(lines) == 12
    empty = 0
    for k in range(12):
        z = bundle.logits("baseline", shown[k])[0]
        order = [int(label) for label in np.argsort(-z) if z[label] > 0]
        named = [f"{NAMES[MULTI_LABEL][label]} {100 * float(sigmoid(z[label])):.0f} %" for label in order]
        words = [*named[:4], *([f"{len(named) - 4} more"] if len(named) > 4 else [])]
        assert lines[f"{k:02}.png"][6:].strip().startswith(", ".join(words) or "(none)")
        empty += not named
        others = (bundle.logits(variant, shown[k])[0] for variant in ("close", "far"))
        same = sum(bool(((other > 0) == (z > 0)).all()) for other in others)
        assert lines[f"{k:02}.png"].endswith(f" {same} of 2")
    assert empty


@pytest.mark.release
def test_the_figures_of_several_labels_at_build_time(drawn: dict[str, Drawn], tmp_path: Path) -> None:
    bundle, shown = drawn[MULTI_LABEL], colours(TESTED, seed=2)
    base = bundle.logits("baseline", *shown)
    lost = {}
    for variant in manifest.read(bundle.folder).variants:
        z, built = bundle.logits(variant.id, *shown), variant.build.evaluation
        assert built is not None
        same = (z > 0) == (base > 0)
        assert built.agreement.rate == pytest.approx(same.mean())
        assert built.agreement.n == built.n == TESTED
        divergence = bernoulli_kl(sigmoid(base), sigmoid(z)).mean(axis=1)
        assert built.kl_mean == pytest.approx(divergence.mean(), rel=1e-3, abs=1e-7)
        assert built.kl_p95 == pytest.approx(np.quantile(divergence, 0.95), rel=1e-3, abs=1e-7)
        assert (built.top1, built.top5, built.chance) == (None, None, None)
        least = 1 / (TESTED + 2)
        spread = max((1 - same.mean(axis=1)).var(), least * (1 - least))
        assert built.loss_error_points == pytest.approx(100 * math.sqrt(spread / TESTED))
        lost[variant.id] = 100 * (1 - same.mean()) + built.loss_error_points
    assert lost["close"] < 3 < lost["far"]
    reseal(bundle.folder, max_drop=3.0)
    try:
        result, printed = measured(bundle, tmp_path)
        strict, _ = measured(bundle, tmp_path, "--sure")
    finally:
        reseal(bundle.folder, max_drop=None)
    assert (result["recommended"]["sure"], strict["recommended"]["sure"]) == (False, True)
    assert "at most 3 points, error included: " in strict["recommended"]["reason"]
    chosen = result["recommended"]
    assert chosen["variant"] in ("baseline", "close")
    assert f"% of the decisions per label on {TESTED} test images" in chosen["reason"]
    assert "per-label %" in printed.split("Measured at build time")[1]


def test_softmax_says_what_it_said(drawn: dict[str, Drawn], tmp_path: Path) -> None:
    bundle, shown = drawn[SOFTMAX], colours(12)
    for k, colour in enumerate(shown):
        paint(tmp_path / f"in/{k:02}.png", colour)
    result, printed = measured(bundle, tmp_path, "--images", tmp_path / "in")
    base = bundle.logits("baseline", *shown).argmax(1)
    for row in result["variants"]:
        z = bundle.logits(row["variant"], *shown)
        assert row["agreement"]["rate"] == (z.argmax(1) == base).mean()
        shares = np.exp(z) / np.exp(z).sum(1, keepdims=True)
        for said, own in zip(row["predictions"], shares, strict=True):
            assert said["classes"] == np.argsort(-own).tolist()
            assert said["probabilities"] == pytest.approx(np.sort(own)[::-1], abs=1e-5)
    assert result["bundle"]["output"] == SOFTMAX
    heading = next(line for line in printed.splitlines() if line.startswith("variant  ") and "GMACs" in line)
    assert heading.split()[-4:] == ["agrees", "%", "top-1", "%"]
    assert "agrees: same top-1 as the baseline on these 12 pictures." in printed  # no class of them is known


def test_a_stream_counts_every_label_of_a_frame(drawn: dict[str, Drawn], tmp_path: Path) -> None:
    bundle, shown = drawn[MULTI_LABEL], colours(9)
    for k, colour in enumerate(shown):
        paint(tmp_path / f"in/{k}.png", colour)
    asked = ("--source", tmp_path / "in", "--fps", "20", "--frames", "9", "--json", tmp_path / "l.json")
    done = compare("--bundle", bundle.folder, "--live", "baseline", *asked, "--every", "0.2")
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "l.json").read_text())["live"]
    assert found["frames"]["dropped"] == 0
    z = bundle.logits("baseline", *shown)
    expected = collections.Counter(
        NAMES[MULTI_LABEL][label] for row in z > 0 for label in np.flatnonzero(row)
    )
    assert {one["label"]: one["n"] for one in found["said"]} == expected
    order = np.argsort(-z[-1])
    above = [label for label in order if z[-1, label] > 0]
    assert [one["label"] for one in found["last_labels"]] == [NAMES[MULTI_LABEL][label] for label in above]
    assert [one["probability"] for one in found["last_labels"]] == pytest.approx(
        sigmoid(z[-1, above]), abs=1e-5
    )
    assert found["last"]["label"] == NAMES[MULTI_LABEL][order[0]]
    lines = [line for line in done.stdout.splitlines() if "frames/s" in line and "received" in line]
    assert all("labels above 0.5: " in line for line in lines if "0 received" not in line)


def test_a_stream_is_told_apart_by_one_sigmoid_unit(drawn: dict[str, Drawn], tmp_path: Path) -> None:
    bundle = drawn[SIGMOID]
    colour = next(c for c in colours(30) if bundle.logits("baseline", c)[0, 0] > 0)
    paint(tmp_path / "in/0.png", colour)
    asked = ("--source", tmp_path / "in", "--frames", "3", "--json", tmp_path / "l.json")
    assert compare("--bundle", bundle.folder, "--live", "baseline", *asked).returncode == 0
    found = json.loads((tmp_path / "l.json").read_text())["live"]
    assert found["said"] == [{"label": "night", "n": 3}]
    expected = float(sigmoid(bundle.logits("baseline", colour))[0, 0])
    assert found["last"] == {"label": "night", "probability": pytest.approx(expected, abs=1e-5)}
    assert found["last_labels"] == [found["last"]]


@pytest.mark.parametrize("kind", first(1, [SIGMOID, MULTI_LABEL, "grey"]))
def test_the_self_check_compares_raw_logits(kind: str, drawn: dict[str, Drawn], tmp_path: Path) -> None:
    """The recorded logits are moved by twice what is allowed."""
    copy = Path(shutil.copytree(drawn[kind].folder, tmp_path / "artifacts"))
    arrays = dict(np.load(copy / "expected.npz"))
    logits = arrays[self_check.logits_key("close")]
    assert logits.shape == (1, drawn[kind].layers["close"][0].shape[1])
    spread = max(float(np.ptp(logits)), 1e-12)
    arrays[self_check.logits_key("close")] = logits + np.float32(max(2e-3 * spread, 1e-5))
    np.savez(tmp_path / "expected.npz", **arrays)
    rewrite(copy, "expected.npz", (tmp_path / "expected.npz").read_bytes())
    done = compare("--bundle", copy, "--json", tmp_path / "r.json", *QUICK)
    assert done.returncode == 1
    assert "close: self-check failed" in done.stdout
    rows = json.loads((tmp_path / "r.json").read_text())["variants"]
    assert [row["error"] is None for row in rows] == [True, False, True]


@pytest.mark.parametrize("kind", [SIGMOID, MULTI_LABEL])
def test_evaluate_names_the_figures_of_the_kind(
    kind: str, drawn: dict[str, Drawn], tmp_path: Path, in_this_process: Any
) -> None:
    """Also the check whether the baseline understands the pictures reads the logits right."""
    bundle, shown = drawn[kind], colours(60, seed=7)
    copy = Path(shutil.copytree(bundle.folder, tmp_path / "artifacts"))
    z = {name: bundle.logits(name, *shown) for name in VARIANTS}
    truth = (z["baseline"][:, 0] > 0).astype(int) if kind == SIGMOID else np.zeros(60, int)
    for k, colour in enumerate(shown):
        paint(tmp_path / f"data/{NAMES[kind][truth[k]]}/{k:02}.png", colour)
    asked = ("--bundle", copy, "--data", tmp_path / "data", "--record", "--json", tmp_path / "e.json")
    done = in_this_process("evaluate", *asked)
    assert done.returncode == 0, done.stderr
    figures = json.loads((tmp_path / "e.json").read_text())
    for name, found in figures.items():
        same = ((z[name] > 0) == (z["baseline"] > 0)).mean()
        assert found["agreement"]["rate"] == pytest.approx(same)
        accuracy = found["top1"] and found["top1"]["rate"]
        assert accuracy == (same if kind == SIGMOID else None)  # the classes are what the baseline says
    assert ("accuracy %" in done.stdout) == (kind == SIGMOID)
    assert ("a multi-label network has no top-1" in done.stdout) == (kind == MULTI_LABEL)
    recorded = {v.id: v.build.evaluation for v in manifest.read(copy).variants}
    assert {name: built and built.to_json() for name, built in recorded.items()} == figures


# Grey pictures.


def test_a_grey_network_sees_one_channel(drawn: dict[str, Drawn], tmp_path: Path) -> None:
    """Also the doctor, --tune and the measurement's own inputs make tensors of one channel."""
    bundle, shown = drawn["grey"], [(200, 30, 90), (10, 240, 10), (128, 128, 128), (0, 0, 0)]
    asked: list[str | Path] = []
    for k, colour in enumerate(shown):
        asked += ["--image", paint(tmp_path / f"{k}.png", colour)]
    assert np.load(bundle.folder / "expected.npz")[self_check.input_key(12)].shape == (1, 1, 12, 12)
    result, _ = measured(bundle, tmp_path, *asked)
    for row in result["variants"]:
        z = bundle.logits(row["variant"], *shown)
        shares = np.exp(z) / np.exp(z).sum(1, keepdims=True)
        for said, own in zip(row["predictions"], shares, strict=True):
            assert said["classes"] == np.argsort(-own).tolist()
            assert said["probabilities"] == pytest.approx(np.sort(own)[::-1], abs=1e-5)
        assert row["runs"] >= 5


def test_the_doctor_runs_a_grey_network(drawn: dict[str, Drawn], tmp_path: Path) -> None:
    copy = Path(shutil.copytree(drawn["grey"].folder, tmp_path / "artifacts"))
    variants = json.loads((copy / "manifest.json").read_text())["variants"]
    variants[1]["precision"] = "int8"  # the doctor runs only these
    reseal(copy, variants=variants)
    assert compare("--doctor", "--bundle", copy, "--json", tmp_path / "d.json").returncode == 0
    checks = {one["check"]: one for one in json.loads((tmp_path / "d.json").read_text())["checks"]}
    assert checks["int8 of close"]["found"].startswith("0 layers run as int8, 1 in float as intended")


@pytest.mark.release
def test_grey_builds_are_timed(drawn: dict[str, Drawn], tmp_path: Path) -> None:
    copy = Path(shutil.copytree(drawn["grey"].folder, tmp_path / "artifacts"))
    variants = json.loads((copy / "manifest.json").read_text())["variants"]
    variants[1]["builds"].append(variants[1]["builds"][0] | {"form": "another"})
    reseal(copy, variants=variants)
    bundle = dataclasses.replace(drawn["grey"], folder=copy)
    _, printed = measured(bundle, tmp_path, "--tune", "--variants", "close")
    assert "close" in printed


def test_a_grey_stream(drawn: dict[str, Drawn], tmp_path: Path) -> None:
    bundle, colour = drawn["grey"], (10, 240, 10)
    paint(tmp_path / "in/0.png", colour)
    asked = ("--source", tmp_path / "in", "--frames", "2", "--json", tmp_path / "l.json")
    assert compare("--bundle", bundle.folder, "--live", "far", *asked).returncode == 0
    z = bundle.logits("far", colour)[0]
    last = json.loads((tmp_path / "l.json").read_text())["live"]["last"]
    assert last["label"] == NAMES[SOFTMAX][int(z.argmax())]
    assert last["probability"] == pytest.approx(float((np.exp(z) / np.exp(z).sum()).max()), abs=1e-5)


def test_calibration_observes_one_channel(drawn: dict[str, Drawn], tmp_path: Path) -> None:
    bundle, shown = drawn["grey"], [(200, 30, 90), (10, 240, 10), (255, 255, 255)]
    layer = Layer("fc1", "Gemm", "weight", "bias", "input", "logits", "gemm")
    pictures = [paint(tmp_path / f"{k}.png", colour) for k, colour in enumerate(shown)]
    model = bundle.folder / "models/far.onnx"
    seen = observe(model, [layer], pictures, bundle.spec, tmp_path, lambda: None)
    grey = (np.array([88, 145, 255]) / 255 - MEAN) / STD  # as Pillow's convert("L") has them
    assert seen["input"].mean.shape == (1, 12, 12)
    assert seen["input"].mean == pytest.approx(np.full((1, 12, 12), grey.mean()), rel=1e-5)
    assert (seen["input"].low[0], seen["input"].high[0]) == pytest.approx((grey.min(), grey.max()), rel=1e-5)
    z = bundle.logits("far", *shown)
    assert seen["logits"].mean == pytest.approx(z.mean(0), rel=1e-4)


@pytest.mark.release
@pytest.mark.parametrize("kind", ["grey", SIGMOID, MULTI_LABEL])
def test_the_page_answers_what_the_network_says(kind: str, drawn: dict[str, Drawn], tmp_path: Path) -> None:
    bundle, colour = drawn[kind], (200, 30, 90)
    content = paint(tmp_path / "p.png", colour).read_bytes()
    with served(bundle) as port:
        status, answer, _ = ask(port, "POST", "/api/compare?variants=far", content)
    assert status == 200
    said = json.loads(answer.splitlines()[-1])["result"]["variants"][0]["predictions"][0]
    z = bundle.logits("far", colour)[0]
    own = {
        SIGMOID: np.array([1 - sigmoid(z)[0], sigmoid(z)[0]]),
        MULTI_LABEL: sigmoid(z),
        "grey": np.exp(z) / np.exp(z).sum(),
    }[kind]
    assert said["classes"] == np.argsort(-own).tolist()[: len(said["classes"])]
    assert said["probabilities"] == pytest.approx(np.sort(own)[::-1][: len(said["classes"])], abs=1e-5)


def test_two_results_of_labels_are_set_side_by_side(drawn: dict[str, Drawn], tmp_path: Path) -> None:
    measured(drawn[MULTI_LABEL], tmp_path)
    done = compare("--diff", tmp_path / "r.json", tmp_path / "r.json")
    assert done.returncode == 0
    heading = next(line for line in done.stdout.splitlines() if line.startswith("variant"))
    assert heading.split()[-4:] == ["per-label", "agreement", "A", "B"]
