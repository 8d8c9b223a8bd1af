"""Contenders of bench/peers.py that make the network smaller: their goal, the ratio and the fine-tuning; and
the tools themselves, where they are installed."""

import dataclasses
import importlib.util
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import CLASSES

import peers
import peers_compressed
import peers_goal
import peers_measure
from peers_compressed import FASTAI, FinetunePictures, Recipe, Targets
from peers_contenders import COMPRESSED, of_bundle
from peers_engines import Compression, NotPossibleError, Sources
from peers_measure import Options, Pictures
from vgg_export.core.errors import DataError
from vgg_export.data.splits import Splits
from vgg_export.network import checkpoint as checkpoints
from vgg_export.network import input_size
from vgg_export.network.chain import Chain, vgg_layers
from vgg_export.network.modules import build
from vgg_export.network.provenance import Provenance
from vgg_export.options import DataOptions
from vgg_runtime.bundle import manifest
from vgg_runtime.bundle.input_spec import for_input
from vgg_runtime.bundle.preprocess import load

SPEC = for_input(64)
TOOLS = ("torch_pruning", "fasterai")


@pytest.fixture(scope="module")
def checkpoint() -> checkpoints.Checkpoint:
    """A VGG of one convolution per stage with widths that change at different ratios, so that the steps of
    its arithmetic are small."""
    torch.manual_seed(0)
    chain = Chain(for_input(224), vgg_layers([(48,), (80,), (96, 104), (112,), (120,)], (72, 56, 7)))
    tensors = dict(build(chain).state_dict())
    return checkpoints.Checkpoint(chain, tensors, CLASSES, Provenance("file", "a small VGG"))


@pytest.fixture
def saved(checkpoint: checkpoints.Checkpoint, tmp_path: Path) -> Path:
    checkpoints.save(checkpoint, tmp_path / "c.safetensors")
    return tmp_path / "c.safetensors"


@pytest.fixture
def pictures(splits: Splits) -> FinetunePictures:
    return FinetunePictures(SPEC, splits.fit[:14], splits.select[:7])


def sources(saved: Path, compression: Compression | None = None) -> Sources:
    return Sources(Path(), saved, Path(), SPEC.px, 1, compression)


def test_the_arithmetic_is_counted_as_the_bundle_counts_it(
    checkpoint: checkpoints.Checkpoint, saved: Path
) -> None:
    network = peers_compressed.original(sources(saved), SPEC)
    folded = input_size.fold(checkpoint, 64).chain.macs()
    assert peers_compressed.multiply_accumulates(network, SPEC.shape) == folded
    whole = peers_compressed.original(sources(saved), checkpoint.chain.input)
    assert peers_compressed.multiply_accumulates(whole, (3, 224, 224)) == checkpoint.chain.macs()


def test_the_network_of_another_size_answers_as_with_its_adaptive_pool(
    checkpoint: checkpoints.Checkpoint, saved: Path
) -> None:
    pooled = build(checkpoint.chain.at(64)).eval()
    pooled.load_state_dict(checkpoint.tensors)
    x = torch.randn(2, *SPEC.shape, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        torch.testing.assert_close(peers_compressed.original(sources(saved), SPEC)(x), pooled(x))


@pytest.mark.parametrize("wanted", [15_000, 90_000, 400_000, 970_000])
def test_bisection_meets_the_arithmetic(wanted: int) -> None:
    asked = []

    def remaining(ratio: float) -> int:
        asked.append(ratio)
        return math.ceil((1 - ratio) ** 2 * 1_000_000)

    ratio, found = peers_compressed.ratio_for(wanted, 1_000_000, remaining)
    assert abs(found - wanted) <= 0.02 * wanted
    assert found == math.ceil((1 - ratio) ** 2 * 1_000_000)
    assert len(asked) <= 20


def test_an_arithmetic_that_cannot_be_met_is_a_sentence() -> None:
    with pytest.raises(NotPossibleError, match="there is nothing to remove; name a smaller variant"):
        peers_compressed.ratio_for(1000, 1000, lambda ratio: 1000)
    with pytest.raises(
        NotPossibleError, match=r"no ratio gives 5e-07 GMACs within 2%; the nearest is .* with 1e-08"
    ):
        peers_compressed.ratio_for(500, 1000, lambda ratio: 1000 if ratio < 0.9 else 10)


def test_the_pictures_survive_their_file_and_none_is_a_sentence(
    pictures: FinetunePictures, tmp_path: Path
) -> None:
    path = peers_compressed.write_pictures(pictures, tmp_path / "p.json")
    assert peers_compressed.read_pictures(path) == pictures
    none = dataclasses.replace(pictures, selection=())
    with pytest.raises(NotPossibleError, match="no selection pictures"):
        peers_compressed.read_pictures(peers_compressed.write_pictures(none, path))


def test_a_label_is_the_target_and_else_the_checkpoints_answer(
    pictures: FinetunePictures, saved: Path
) -> None:
    network = peers_compressed.original(sources(saved), SPEC)
    first = dataclasses.replace(pictures.fitting[0], label=None)
    some = dataclasses.replace(pictures, fitting=(first, *pictures.fitting[1:]))
    targets = Targets.of(network, some)
    torch.testing.assert_close(targets.fitting.sum(1), torch.ones(14))
    assert 0.05 < float(targets.fitting[0].max()) < 0.9
    assert [int(row.argmax()) for row in targets.fitting[1:]] == [item.label for item in some.fitting[1:]]
    assert {value for row in targets.fitting[1:].tolist() for value in row} == {0.0, 1.0}
    assert targets.selection[0].shape == (7, 3, 64, 64)


@pytest.mark.release
@pytest.mark.parametrize("recipe", [peers_compressed.TORCH_PRUNING, FASTAI])
def test_fine_tuning_ends_in_time_and_never_worse(
    recipe: Recipe, pictures: FinetunePictures, saved: Path
) -> None:
    network = peers_compressed.original(sources(saved), SPEC)
    targets = Targets.of(network, pictures)
    before = peers_compressed._loss(network, targets)
    words = peers_compressed.fine_tune(network, targets, recipe, Compression(1, 0.05, Path()))
    after = peers_compressed._loss(network, targets)
    assert after <= before
    assert f"selection loss {after:.2f}" in words
    assert "fine-tuned for 0.1 minutes" in words
    assert "on 14 pictures, 14 with labels" in words


def test_a_rate_that_destroys_the_network_is_rolled_back(pictures: FinetunePictures, saved: Path) -> None:
    network = peers_compressed.original(sources(saved), SPEC)
    targets = Targets.of(network, pictures)
    before = peers_compressed._loss(network, targets)
    wild = dataclasses.replace(peers_compressed.TORCH_PRUNING, rate=1e9)
    assert peers_compressed._train(network, targets, wild, 1.0, 3.0)[0] == before
    assert peers_compressed._loss(network, targets) == pytest.approx(before)


def test_the_schedules_are_those_of_the_tools() -> None:
    assert [peers_compressed.steps(t) for t in (0, 0.59, 0.6, 0.79, 0.8, 1)] == [1, 1, 0.1, 0.1, 0.01, 0.01]
    cycle = [peers_compressed.one_cycle(t) for t in (0, 0.25, 0.625, 1)]
    assert cycle == pytest.approx([1 / 25, 1, 0.5, 1e-5], abs=1e-5)


# The goal


def sidecar(work: Path, name: str, seconds: float, *inputs: str, **fields: Any) -> None:
    document = {
        "stage": "export",
        "options": {},
        "seconds": seconds,
        "inputs": {f"input{k}": one for k, one in enumerate(inputs)},
        "output": {"sha256": name},
        "measured": {},
    }
    path = work / "points" / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document | fields))


def test_the_minutes_are_those_of_every_step_to_the_variant(bundle_folder: Path, tmp_path: Path) -> None:
    bundle = manifest.read(bundle_folder)
    scaled = bundle.variant("scaled")
    model = {"macs": scaled.macs, "parameters": scaled.parameters, "precision": scaled.precision}
    sidecar(tmp_path, "original", 6)
    sidecar(tmp_path, "factorised", 120, "original", "not there")
    tuned = {"stage": "finetune", "options": {"images": 321}}
    sidecar(tmp_path, "tuned", 300, "factorised", "original", **tuned)
    sidecar(tmp_path, "model", 54, "tuned", measured={"model": model})
    sidecar(tmp_path, "quicker", 1, "original", measured={"model": model})
    sidecar(tmp_path, "other", 9000, "tuned", measured={"model": model | {"macs": 1}})
    sidecar(tmp_path, "point", 9, "model", measured={"model": "of a search, by its hash"})
    (tmp_path / "broken.json").write_text("{")
    assert peers_goal.history(tmp_path, scaled) == (8.0, 321)
    assert peers_goal.history(tmp_path, bundle.variants[0]) is None
    found = peers_goal.goal(bundle, tmp_path, None, None)  # scaled has the fewest multiply-accumulates
    assert (found.variant.id, found.minutes, found.images) == ("scaled", 8.0, 321)
    assert peers_goal.goal(bundle, tmp_path, bundle.variants[0], 2.5).minutes == 2.5


def test_what_is_not_known_of_the_goal_is_a_sentence(bundle_folder: Path, tmp_path: Path) -> None:
    bundle = manifest.read(bundle_folder)
    with pytest.raises(DataError, match=r"not known how long the variant scaled took.*--finetune-minutes N"):
        peers_goal.goal(bundle, tmp_path, None, None)
    with pytest.raises(DataError, match="one class per picture; found a network with multi-label outputs"):
        peers_goal.goal(dataclasses.replace(bundle, output="multi-label"), tmp_path, None, 1)


def test_they_get_the_variants_size_pictures_and_minutes(
    bundle_copy: Path, signs_folder: Path, tmp_path: Path
) -> None:
    bundle = manifest.read(bundle_copy)
    scaled = bundle.variant("scaled")
    model = {"macs": scaled.macs, "parameters": scaled.parameters, "precision": scaled.precision}
    work = tmp_path / ".artifacts.work"
    sidecar(work, "tuned", 90, stage="finetune", options={"images": 5})
    sidecar(work, "model", 30, "tuned", measured={"model": model})
    wanted = peers._parser().parse_args(["--compress-to", "scaled"])
    sets = peers.gather(bundle_copy, bundle, DataOptions(str(signs_folder), 0, 3, 6), tmp_path)
    every = (of_bundle(bundle_copy, bundle)[0], *COMPRESSED)
    found, minutes = peers.with_goal(every, bundle_copy, bundle, sets, wanted, tmp_path)
    assert minutes == 2.0
    assert found[0] == every[0]
    for one in found[1:]:
        assert one.preprocessing == scaled.preprocessing
        assert one.sources["px"] == 160
        compression = one.sources["compression"]
        assert (compression["macs"], compression["minutes"]) == (scaled.macs, 2.0)
    assert np.load(found[1].sources["calibration"]).shape == (3, 3, 160, 160)
    pictures = peers_compressed.read_pictures(Path(found[1].sources["compression"]["pictures"]))
    assert len(pictures.fitting) == 5
    assert set(pictures.fitting) <= set(sets.fitting)
    assert len(sets.fitting) == 49
    assert set(pictures.selection) == set(sets.selection)
    assert not {item.sha256 for item in (*sets.fitting, *sets.selection)} & {i.sha256 for i in sets.test}
    given = peers._parser().parse_args(["--finetune-minutes", "0.5"])
    assert peers.with_goal(every, bundle_copy, bundle, sets, given, tmp_path)[1] == 0.5
    assert peers.with_goal(every[:1], bundle_copy, bundle, sets, given, tmp_path) == (every[:1], 0.0)


# The tools


def measured(
    saved: Path, pictures: FinetunePictures, macs: int, folder: Path, only: str = ""
) -> dict[str, dict[str, Any]]:
    """The rows of COMPRESSED, made and run by their own processes."""
    np.save(folder / "pictures.npy", np.stack([load(item.path, SPEC) for item in pictures.selection]))
    compression = {
        "macs": macs,
        "minutes": 0.05,
        "pictures": str(peers_compressed.write_pictures(pictures, folder / "p.json")),
    }
    given: dict[str, Any] = {"px": SPEC.px, "calibration": str(folder / "pictures.npy")}
    contenders = [
        dataclasses.replace(c, preprocessing=SPEC, sources=given | {"compression": compression})
        for c in COMPRESSED
        if only in c.name
    ]
    shared = {"onnx": "", "checkpoint": str(saved), "threads": 1}
    files = {SPEC: folder / "pictures.npy"}
    labels = tuple(item.label for item in pictures.selection)
    rows = peers_measure.measure(
        contenders, shared, Pictures(files, files, labels), folder / "work", Options(1, 1, 2), lambda _: None
    )
    return {row["contender"]: row for row in rows}


@pytest.mark.release
@pytest.mark.parametrize("tool", TOOLS)
def test_a_tool_that_is_not_installed_is_a_row_with_the_reason(
    tool: str, saved: Path, pictures: FinetunePictures, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = f"raise ModuleNotFoundError(\"No module named '{tool}'\")\n"
    (tmp_path / "first").mkdir()
    (tmp_path / "first" / f"{tool}.py").write_text(missing)  # where the tool is installed, too
    monkeypatch.syspath_prepend(tmp_path / "first")
    name = "Torch-Pruning" if tool == "torch_pruning" else "decomposition"
    rows = measured(saved, pictures, 1, tmp_path, name)
    assert len(rows) == 2
    for row in rows.values():
        assert row["error"] == f"not installed: No module named '{tool}'"
        assert row["p50_ms"] is row["parameters"] is row["top1"] is None


@pytest.mark.skipif(
    any(importlib.util.find_spec(tool) is None for tool in TOOLS),
    reason="torch-pruning and fasterai are not installed: pip install -r bench/requirements.txt",
)
def test_both_tools_make_a_small_network_of_the_arithmetic(
    checkpoint: checkpoints.Checkpoint, saved: Path, pictures: FinetunePictures, tmp_path: Path
) -> None:
    wanted = input_size.fold(checkpoint, 64).chain.macs() // 4
    rows = measured(saved, pictures, wanted, tmp_path)
    assert len(rows) == 6
    for name, row in rows.items():
        assert row["error"] is None, name
        assert abs(row["macs"] - wanted) <= 0.02 * wanted
        assert row["parameters"] < checkpoint.chain.parameters()
        assert row["input_px"] == 64
        assert row["top1"]["n"] == 7
        assert "removed in each layer; fine-tuned for 0.1 minutes" in row["made"]
        per_weight = row["size_bytes"] / row["parameters"]
        assert 4 <= per_weight < 4.5 if name.endswith("fp32") else 1 <= per_weight < 2
    for name in ("Torch-Pruning", "fasterai pruning", "fasterai decomposition"):
        assert rows[f"{name}, fp32"]["made"] == rows[f"{name}, int8"]["made"]
        assert rows[f"{name}, fp32"]["parameters"] == rows[f"{name}, int8"]["parameters"]
