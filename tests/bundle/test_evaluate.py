import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from divided import started

from vgg_export.bundle import evaluate
from vgg_export.core import cache, processes
from vgg_export.core.errors import DataError
from vgg_export.core.progress import Quiet
from vgg_export.data import splits
from vgg_runtime.bundle import manifest, outputs
from vgg_runtime.bundle.input_spec import for_input
from vgg_runtime.bundle.metrics import loss_error_points, wilson_interval
from vgg_runtime.bundle.preprocess import load
from vgg_runtime.result import Proportion


def test_figures_by_hand() -> None:
    baseline = np.array(
        [[3, 0, 0, 0, 0, 0], [0, 3, 0, 0, 0, 0], [0, 0, 3, 0, 0, 0], [0, 0, 0, 3, 0, 0]], np.float32
    )
    other = baseline.copy()
    other[3] = [0, 0, 0, 0, 3, 2.9]
    found = evaluate.figures(other, baseline, np.array([0, 1, 5, -1]))
    assert found.n == 4
    assert found.agreement == Proportion(0.75, 4, wilson_interval(3, 4))
    assert found.top1 == Proportion(2 / 3, 3, wilson_interval(2, 3))
    # of the three known: right and right, right and right, wrong and wrong
    # none lost of three: not yet never
    assert found.loss_error_points == pytest.approx(100 * np.sqrt(0.2 * 0.8 / 3))
    # and one that the baseline alone has right
    lost = evaluate.figures(other, baseline, np.array([0, 1, 5, 3]))
    assert lost.loss_error_points == pytest.approx(100 * np.std([0, 0, 0, 1]) / 2)
    assert loss_error_points(0, 0, 900) == pytest.approx(0.11, abs=0.01)
    # lost, won, lost, kept
    both_ways = evaluate.figures(other[[3, 0, 3, 0]], baseline[[3, 1, 3, 0]], np.array([3, 0, 3, 0]))
    assert both_ways.loss_error_points == pytest.approx(100 * np.std([1, -1, 1, 0]) / 2)
    unlabelled = evaluate.figures(other, baseline, np.full(4, -1))  # one of four disagrees
    assert unlabelled.loss_error_points == pytest.approx(100 * np.sqrt(0.25 * 0.75 / 4))
    p, q = (np.exp(x) / np.exp(x).sum() for x in (baseline[3].astype(float), other[3].astype(float)))
    divergence = float((p * np.log(p / q)).sum())
    assert found.kl_mean == pytest.approx(divergence / 4)
    assert found.kl_p95 == pytest.approx(np.quantile([0, 0, 0, divergence], 0.95))


def test_without_labels_there_is_agreement_but_no_accuracy() -> None:
    logits = np.eye(6, dtype=np.float32)
    found = evaluate.figures(logits, logits, np.full(6, -1))
    assert (found.top1, found.top5) == (None, None)
    assert found.agreement.rate == 1.0


def test_top5_of_five_classes_is_absent() -> None:
    logits = np.eye(5, dtype=np.float32)
    assert evaluate.figures(logits, logits, np.arange(5)).top5 is None


def test_the_exported_files_are_what_is_evaluated(
    bundle_folder: Path, splits: splits.Splits, tmp_path: Path
) -> None:
    bundle = manifest.read(bundle_folder)
    subjects = [
        evaluate.Subject(v.id, cache.of(bundle_folder / v.build.model.path), v.preprocessing)
        for v in bundle.variants
    ]
    found = evaluate.evaluate(subjects, splits.test, tmp_path, Quiet())
    session = ort.InferenceSession(bundle_folder / "models" / "scaled.onnx")
    x = np.stack([load(i.path, for_input(160)) for i in splits.test])
    right = int((session.run(None, {"input": x})[0].argmax(1) == [i.label for i in splits.test]).sum())
    top1 = found["scaled"].top1
    assert top1 is not None
    assert top1.rate == right / len(splits.test)
    assert found["baseline"].agreement.rate == 1.0
    assert found["baseline"].kl_mean == 0.0
    assert (found["quantized"].kl_mean or 0) > 0
    assert bundle.variant("scaled").build.evaluation == found["scaled"]
    assert list(tmp_path.iterdir()) == []  # the prepared pictures are gone


def test_an_interrupted_evaluation_goes_on(
    bundle_folder: Path, splits: splits.Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = manifest.read(bundle_folder)
    subjects = [
        evaluate.Subject(v.id, cache.of(bundle_folder / v.build.model.path), v.preprocessing)
        for v in bundle.variants
    ]
    items = splits.test[:7]
    whole = evaluate.evaluate(subjects, items, tmp_path, Quiet())
    monkeypatch.setattr(evaluate, "CHUNK", 3)
    assert evaluate.evaluate(subjects, items, tmp_path, Quiet()) == whole
    asked: list[str] = []
    ask = evaluate.infer

    def counted(subject: evaluate.Subject, *given: Any) -> Any:
        asked.append(subject.id)
        if len(asked) == len(subjects) + 2:  # within the second part of the pictures
            raise KeyboardInterrupt
        return ask(subject, *given)

    monkeypatch.setattr(evaluate, "infer", counted)
    with pytest.raises(KeyboardInterrupt):
        evaluate.evaluate(subjects, items, tmp_path, Quiet())
    assert [path.suffix for path in tmp_path.iterdir()] == [".parts"]
    left = next(tmp_path.iterdir())
    lost = left / "1.npy"
    kept = lost.read_bytes()
    lost.write_bytes(kept[:100])  # as a full disk leaves it
    assert evaluate._Asked(left, len(items), ["a", "b"]).done == 0
    lost.write_bytes(kept)
    asked.clear()
    before = len(subjects) + 2
    monkeypatch.setattr(evaluate, "infer", counted)
    asked += [""] * before  # the interruption is behind it
    assert evaluate.evaluate(subjects, items, tmp_path, Quiet()) == whole
    assert len(asked) - before == 2 * len(subjects)  # not the first part
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("output", outputs.OUTPUTS)
def test_figures_are_the_same_in_blocks(output: str, monkeypatch: pytest.MonkeyPatch) -> None:
    chance = np.random.default_rng(0)
    shape = (60, 1 if output == outputs.SIGMOID else 6)
    baseline = chance.normal(size=shape).astype(np.float32)
    logits = (baseline + chance.normal(size=shape) / 3).astype(np.float32)
    labels = np.where(chance.random(60) < 0.9, chance.integers(0, 2, 60), -1)
    whole = evaluate.figures(logits, baseline, labels, output)
    monkeypatch.setattr(outputs, "BLOCK_NUMBERS", 42)  # seven rows of six
    assert len(outputs.in_blocks(np.arange(60), 6)) == 9
    found = evaluate.figures(logits, baseline, labels, output)
    assert (found.top1, found.top5, found.agreement) == (whole.top1, whole.top5, whole.agreement)
    assert (found.kl_mean, found.kl_p95) == pytest.approx((whole.kl_mean, whole.kl_p95))
    assert found.loss is not None
    assert whole.loss is not None
    assert found.loss.points == pytest.approx(whole.loss.points)
    assert found.loss.error_points == pytest.approx(whole.loss.error_points)


def test_nothing_to_evaluate_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no test pictures"):
        evaluate.evaluate([], [], tmp_path, Quiet())


@pytest.mark.release
def test_two_processes_find_the_figures_of_one(
    bundle_folder: Path, signs_folder: Path, tmp_path: Path
) -> None:
    found = []
    for count in (1, 2):
        output = tmp_path / f"{count}.json"
        told = ("--data", signs_folder / "test", "--accept-accuracy", "--json", output)
        done = started(["evaluate", "--bundle", bundle_folder, *told], processes=count)
        assert done.returncode == 0, done.stderr
        found.append(json.loads(output.read_text()))
    one, both = found
    assert one.keys() == both.keys()
    for name, figures in one.items():
        assert both[name]["n"] == figures["n"] > 30
        assert both[name]["agreement"] == figures["agreement"]
        assert both[name]["kl_mean"] == pytest.approx(figures["kl_mean"], rel=1e-3, abs=1e-6)


def test_on_a_machine_without_the_files_pictures_are_prepared_again_and_the_model_is_sent(
    bundle_folder: Path, splits: splits.Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    items, spec = splits.test[:5], for_input(224)
    kept = evaluate.prepared(items, spec, tmp_path, Quiet())
    lost = dataclasses.replace(kept, path=tmp_path / "elsewhere.npy")
    for there, again in zip(kept.of(range(1, 4)), lost.of(range(1, 4)), strict=True):
        assert there.shape == (1, 3, 224, 224)
        assert np.array_equal(there, again)
    path = bundle_folder / "models" / "baseline.onnx"
    path = path if path.is_file() else next(bundle_folder.rglob("*.onnx"))
    content = path.read_bytes()
    subject = evaluate.Subject("it", cache.Artifact(tmp_path / "not_here.onnx", "0" * 64, {}), spec)
    monkeypatch.setattr(processes, "from_first", lambda _: content)  # another machine reads it
    with evaluate._model_here(subject) as sent:
        assert sent.read_bytes() == content
        assert sent != subject.model.path
    assert not sent.exists()
