"""Which build a core gets, what a build is made of, and how much memory a session may take."""

import dataclasses
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from conftest import reseal, small_checkpoint
from launch import compare
from rows import DEVICE, a_result, a_row

from vgg_export import builds as core_builds
from vgg_export import options, recipes
from vgg_export.bundle import writer as bundling
from vgg_export.core import cache
from vgg_export.core.errors import CheckFailedError, OptionsError
from vgg_export.core.progress import Quiet
from vgg_export.data import splits
from vgg_export.graphs import export, external_data
from vgg_export.int8 import activation_signedness, qdq, quantize
from vgg_export.options import QuantizeOptions, RecipeOptions
from vgg_runtime.board import device, memory, targets
from vgg_runtime.board.targets import TARGETS
from vgg_runtime.bundle import builds, manifest, self_check
from vgg_runtime.bundle.manifest import SessionSettings
from vgg_runtime.bundle.opened import Bundle
from vgg_runtime.bundle.session import EXACT, Model, exact
from vgg_runtime.errors import BundleError
from vgg_runtime.measure import running, tuning
from vgg_runtime.report import tables
from vgg_runtime.result import BuildUsed, Device


def described(**known: Any) -> Device:
    return dataclasses.replace(device.describe(1), **known)


@pytest.mark.parametrize(
    ("board", "cpu", "machine", "features", "target"),
    [
        ("Raspberry Pi 5 Model B Rev 1.0", "Cortex-A76", "aarch64", ("asimd", "asimddp"), "pi5"),
        ("Raspberry Pi 4 Model B Rev 1.4", "Cortex-A72", "aarch64", ("asimd",), "pi4"),
        ("Raspberry Pi 3 Model B Plus Rev 1.3", "Cortex-A53", "aarch64", ("asimd",), "pi3"),
        ("Raspberry Pi Zero 2 W Rev 1.0", "Cortex-A53", "aarch64", ("asimd",), "zero2"),
        ("Raspberry Pi Zero 2 W Rev 1.0", None, "aarch64", ("asimd",), "zero2"),
        ("OrangePi Zero 2", "Cortex-A53", "aarch64", ("asimd",), "zero2"),
        ("Radxa ZERO 2", "Cortex-A73", "aarch64", ("asimd",), "pi4"),
        ("another Zero 2", "Cortex-A76", "aarch64", ("asimd", "asimddp"), "pi5"),
        ("another board", "ARM part 0xd40", "aarch64", ("asimd", "asimddp"), "pi5"),
        ("another board", None, "aarch64", ("asimd",), "pi4"),
        ("a PC", "a processor", "x86_64", ("avx2", "avx512_vnni"), "x86-vnni"),
        ("a PC", "a processor", "x86_64", ("avx2",), "x86-avx2"),
        ("a PC", None, "x86_64", (), "x86-avx2"),  # nothing is known of it: what is right everywhere
    ],
)
def test_what_a_device_is(
    board: str, cpu: str | None, machine: str, features: tuple[str, ...], target: str
) -> None:
    assert (
        targets.of_device(described(board=board, cpu=cpu, machine=machine, features=features)).name == target
    )


@pytest.mark.parametrize(
    ("core", "made_for", "best"),
    [
        ("pi4", [("pi5",), ("pi4", "pi3")], 1),
        ("pi4", [("x86-vnni",), ("pi5",)], 1),  # the same machine
        ("zero2", [("pi5",), ("pi4",)], 1),  # no dot product either
        ("x86-avx2", [("x86-vnni",), ("pi5",), ("x86-avx2",)], 2),
        ("x86-vnni", [("x86-avx2",), ("pi5",)], 0),
        ("pi4", [(), ("pi5",)], 0),  # one for any core before one for another
        ("pi4", [(), ("pi4",)], 1),
        ("pi5", [("unknown",), ("pi4",)], 1),
    ],
)
def test_the_nearest_build(core: str, made_for: list[tuple[str, ...]], best: int) -> None:
    assert targets.nearest(TARGETS[core], made_for) == best


def test_only_seven_bits_do_not_saturate_without_vnni() -> None:
    assert targets.saturates(TARGETS["x86-avx2"], ("x86-vnni", "pi5"))
    assert not targets.saturates(TARGETS["x86-avx2"], ("x86-avx2",))
    assert not targets.saturates(TARGETS["x86-avx2"], ())
    assert not targets.saturates(TARGETS["pi4"], ("x86-vnni",))


def test_targets_as_options() -> None:
    assert RecipeOptions().built_for == (targets.of_device(device.describe(1)).name, "pi5")
    assert options.width_multiple(("pi4", "zero2")) == 8
    assert options.width_multiple(("pi4", "pi5")) == 16
    with pytest.raises(OptionsError, match=r"--target must be one of pi5, .* found 'pi6'"):
        RecipeOptions(targets=("pi6",))
    with pytest.raises(OptionsError, match="int8 target must be the first of the targets, pi4, found pi5"):
        RecipeOptions(targets=("pi4", "pi5"), quantize=QuantizeOptions("pi5"))


@pytest.fixture(scope="module")
def exported(splits: splits.Splits, tmp_path_factory: pytest.TempPathFactory) -> cache.Artifact:
    from conftest import small_checkpoint

    from vgg_export.network import checkpoint as checkpoints

    folder = tmp_path_factory.mktemp("exported")
    checkpoints.save(small_checkpoint(), folder / "c.safetensors")
    return export.run(cache.of(folder / "c.safetensors"), folder / "float.onnx", Quiet())


@pytest.fixture(scope="module")
def unsigned(exported: cache.Artifact, splits: splits.Splits) -> cache.Artifact:
    wanted = QuantizeOptions("x86-vnni", "minmax")
    return quantize.run(exported, splits, 12, exported.path.with_name("unsigned.onnx"), wanted, Quiet())


def zero_point_types(path: Path) -> set[int]:
    graph = onnx.load(path, load_external_data=False).graph
    kinds = {t.name: t.data_type for t in graph.initializer}
    return {kinds[node.input[2]] for node in graph.node if node.op_type == "QuantizeLinear"}


def test_signed_activations_are_the_same_function(unsigned: cache.Artifact, tmp_path: Path) -> None:
    """Quantizing anew for the other type gives the same weights, biases, scales and logits."""
    made = activation_signedness.run(unsigned, "pi4", tmp_path / "signed.onnx", Quiet())
    assert zero_point_types(unsigned.path) == {onnx.TensorProto.UINT8}
    assert zero_point_types(made.path) == {onnx.TensorProto.INT8}
    assert made.measured["target"] == "pi4"
    assert made.measured["model"] == unsigned.measured["model"]
    before, after = (
        {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(a.path).graph.initializer}
        for a in (unsigned, made)
    )
    assert before.keys() == after.keys()
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    assert changed
    for name in changed:
        assert int(after[name]) == int(before[name]) - 128
    x = np.random.default_rng(1).standard_normal((2, 3, 224, 224), np.float32)
    one, two = (Model(a.path, SessionSettings(), 2)(x) for a in (unsigned, made))
    np.testing.assert_allclose(two, one, atol=0.01 * float(one.max() - one.min()))
    back = activation_signedness.run(made, "x86-vnni", tmp_path / "back.onnx", Quiet())
    assert {
        t.name: onnx.numpy_helper.to_array(t).tolist() for t in onnx.load(back.path).graph.initializer
    } == {name: value.tolist() for name, value in before.items()}


def test_what_cannot_be_retyped_is_said(
    exported: cache.Artifact, unsigned: cache.Artifact, tmp_path: Path
) -> None:
    with pytest.raises(CheckFailedError, match="has no QuantizeLinear"):
        qdq.retype(onnx.load(exported.path), signed=True)
    with pytest.raises(CheckFailedError, match="is uint8; expected int8"):
        qdq.retype(onnx.load(unsigned.path), signed=False)
    model = onnx.load(unsigned.path)
    scale = next(
        t for t in model.graph.initializer if t.name.startswith("input") and t.name.endswith("_scale")
    )
    scale.CopyFrom(onnx.numpy_helper.from_array(2 * onnx.numpy_helper.to_array(scale), scale.name))
    onnx.save(model, tmp_path / "wrong.onnx")
    with pytest.raises(CheckFailedError, match=r"logits differ by .* of their spread, at most 0.02 allowed"):
        activation_signedness.ensure_same(unsigned, tmp_path / "wrong.onnx")


def test_weights_lie_beside_the_graph_and_are_shared(
    exported: cache.Artifact, unsigned: cache.Artifact, tmp_path: Path
) -> None:
    signed = activation_signedness.run(unsigned, "pi4", tmp_path / "work.onnx", Quiet())
    first = external_data.write(unsigned.path, tmp_path / "a.onnx")
    second = external_data.write(signed.path, tmp_path / "b.onnx", [first])
    other = external_data.write(exported.path, tmp_path / "c.onnx", [first])
    assert first.path == second.path == tmp_path / "a.data"
    assert other.path == tmp_path / "c.data"  # fp32 weights are not those
    # of any build before
    assert external_data.write(signed.path, tmp_path / "e.onnx", [other, first]).path == first.path
    assert (tmp_path / "a.onnx").stat().st_size < 0.2 * unsigned.path.stat().st_size
    assert all(offset % external_data.SMALLEST_BYTES == 0 for offset in first.offsets.values())
    x = np.random.default_rng(1).standard_normal((1, 3, 224, 224), np.float32)
    for whole, graph in ((unsigned, "a"), (signed, "b"), (exported, "c")):
        found = Model(tmp_path / f"{graph}.onnx", SessionSettings(), 1)(x)
        np.testing.assert_array_equal(found, Model(whole.path, SessionSettings(), 1)(x))
        onnx.checker.check_model(str(tmp_path / f"{graph}.onnx"))
    with pytest.raises(CheckFailedError, match="lies outside its model"):
        external_data.write(tmp_path / "a.onnx", tmp_path / "d.onnx")


@pytest.fixture(scope="module")
def several(
    exported: cache.Artifact,
    unsigned: cache.Artifact,
    splits: splits.Splits,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A bundle with a build of its int8 variant for every form of int8."""
    folder = tmp_path_factory.mktemp("several")
    signed = activation_signedness.run(unsigned, "pi4", folder / "signed.onnx", Quiet())
    reduced = quantize.run(
        exported, splits, 12, folder / "reduced.onnx", QuantizeOptions("x86-avx2", "minmax"), Quiet()
    )
    others = (
        bundling.Build("quantized.pi4", "", ("pi5", "pi4"), signed, "quantized"),
        bundling.Build("quantized.x86-avx2", "", ("x86-avx2",), reduced, "quantized.x86-avx2"),
    )
    entries = (
        bundling.Entry("baseline", "Baseline", "for tests", (), exported),
        bundling.Entry("quantized", "Quantized", "for tests", (), unsigned, (), ("x86-vnni",), others),
    )
    bundling.run(bundling.Contents(entries, splits, None, None, "for tests"), folder / "artifacts", Quiet())
    return folder / "artifacts"


def test_a_bundle_of_several_builds(several: Path) -> None:
    found = manifest.read(several)
    manifest.verify(several, found.all_files())
    quantized = found.variant("quantized")
    assert [b.targets for b in quantized.builds] == [("x86-vnni",), ("pi5", "pi4"), ("x86-avx2",)]
    own, signed, reduced = quantized.builds
    assert own.weights == signed.weights != reduced.weights
    assert own.bytes == own.model.bytes + (own.weights.bytes if own.weights else 0)
    assert len(found.all_files()) == len({entry.path for entry in found.all_files()})
    for name in TARGETS:
        front = builds.for_core(found, TARGETS[name]).variant("quantized").build
        assert front == (reduced if name == "x86-avx2" else own if name == "x86-vnni" else signed)
    # measured to be faster
    assert builds.for_core(found, TARGETS["pi4"], {"quantized": own.id}).variant("quantized").build == own


def test_the_board_takes_the_build_for_its_core_and_says_which(several: Path, tmp_path: Path) -> None:
    done = compare("--budget", "0.1", "--rounds", "1", "--json", tmp_path / "own.json", bundle=several)
    assert done.returncode == 0, done.stdout
    document = json.loads((tmp_path / "own.json").read_text())
    own = targets.of_device(device.describe(1)).name
    assert document["device"]["target"] == own
    assert f": the builds for {own};" in done.stdout
    row = document["variants"][1]
    assert own in row["build"]["targets"]
    assert "makes one for this core" not in done.stdout
    done = compare(
        "--budget", "0.1", "--rounds", "1", "--target", "pi4", "--json", tmp_path / "pi4.json", bundle=several
    )
    assert done.returncode == 0, done.stdout
    assert json.loads((tmp_path / "pi4.json").read_text())["variants"][1]["build"]["id"] == "quantized.pi4"
    assert f"'vgg-export all --target {own}' makes one for this core" in done.stdout
    done = compare("--target", "pi6", bundle=several)
    assert (done.returncode, "there is no target 'pi6'; known are pi5" in done.stderr) == (2, True)


@pytest.mark.release
def test_tuning_is_remembered_for_this_board_and_these_models(several: Path, tmp_path: Path) -> None:
    found = manifest.read(several)
    done = compare("--tune", "--budget", "0.1", "--rounds", "1", bundle=several, XDG_CACHE_HOME=str(tmp_path))
    assert done.returncode == 0, done.stderr
    own = builds.for_core(found, targets.here()).variant("quantized").build.id
    assert re.search(rf"tuned quantized: {own} \d+\.\d ms, .* is used", done.stdout)
    remembered = json.loads((tmp_path / "vgg-export/tuned.json").read_text())
    (entry,) = remembered.values()
    assert entry["builds"].keys() == {"quantized"}  # the baseline has one build only
    assert entry["builds"]["quantized"] in {b.id for b in found.variant("quantized").builds}
    pretended = {key: entry | {"builds": {"quantized": "quantized.pi4"}} for key in remembered}
    (tmp_path / "vgg-export/tuned.json").write_text(json.dumps(pretended))
    arguments = ("--budget", "0.1", "--rounds", "1", "--json", tmp_path / "r.json")
    assert compare(*arguments, bundle=several, XDG_CACHE_HOME=str(tmp_path)).returncode == 0
    assert json.loads((tmp_path / "r.json").read_text())["variants"][1]["build"]["id"] == "quantized.pi4"
    (tmp_path / "vgg-export/tuned.json").write_text("{damaged")
    assert compare(*arguments, bundle=several, XDG_CACHE_HOME=str(tmp_path)).returncode == 0
    assert json.loads((tmp_path / "r.json").read_text())["variants"][1]["build"]["id"] != "quantized.pi4"
    (tmp_path / "file").write_text("")
    done = compare(
        "--tune", "--budget", "0.1", "--rounds", "1", bundle=several, XDG_CACHE_HOME=str(tmp_path / "file")
    )
    assert (done.returncode, "the fastest builds could not be saved (" in done.stdout) == (0, True)


def test_it_is_the_build_for_this_core_that_has_to_be_beaten_each_time(
    several: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    own, other = (
        builds.for_core(manifest.read(several), targets.here()).variant("quantized").build.id,
        "quantized.pi4",
    )
    for other_ms, wins in ((5.0, other), (9.9, own)):  # much faster; as fast as makes no difference
        times = {own: 10.0, other: other_ms}
        monkeypatch.setattr(
            tuning,
            "_timed",
            lambda *given, times=times: {build.id: times.get(build.id, 50.0) for build in given[2]},
        )
        bundle = Bundle(several, tuning.for_here(manifest.read(several), None))
        tuned = tuning.tune(bundle, bundle.manifest.variants, 1, Path("/"), lambda _: None)
        assert tuned.manifest.variant("quantized").build.id == wins


def test_tuning_is_not_mixed_with_what_it_does_not_go_with(several: Path, tmp_path: Path) -> None:
    assert compare("--tune", "--target", "pi4", bundle=several).returncode == 2
    result = tmp_path / "r.json"
    assert compare("--budget", "0.1", "--rounds", "1", "--json", result, bundle=several).returncode == 0
    for command in (("--doctor", "--memory", "lean"), ("--diff", result, result, "--tune")):
        assert compare(*command, bundle=several).returncode == 2


def test_the_fastest_build_is_one_that_ran() -> None:
    inf = float("inf")
    assert tuning._fastest({"a": 10.0, "b": 9.9}) == "a"  # about as fast
    assert tuning._fastest({"a": 10.0, "b": 5.0}) == "b"
    assert tuning._fastest({"a": inf, "b": 5.0}) == "b"
    assert tuning._fastest({"a": inf, "b": inf}) is None


def test_a_build_for_other_cores_that_runs_with_slower_kernels_is_said_to(several: Path) -> None:
    device = dataclasses.replace(DEVICE, target="x86-avx2")
    used = BuildUsed("q", "", ("pi5",), slower_kernels=True)
    (line,) = tables._builds(a_result(a_row("quantized", build=used), device=device))
    slower = "with slower kernels, in which its 8-bit weights do not overflow"
    assert line.startswith(f"quantized: the build for pi5 was used, {slower}; ")
    used = dataclasses.replace(used, slower_kernels=False)
    (line,) = tables._builds(a_result(a_row("quantized", build=used), device=device))
    assert line.startswith("quantized: the build for pi5 was used; ")
    variant = manifest.read(several).variant("quantized")
    found = {b.id: running.empty_row(variant.using(b)).build.slower_kernels for b in variant.builds}
    assert found["quantized.x86-avx2"] is False
    assert found["quantized.pi4"] is (targets.here().name == "x86-avx2")


def test_what_overflows_in_the_fast_kernels_is_run_with_others() -> None:
    settings = SessionSettings(arena=False, config={"a": "b"})
    assert exact(settings, TARGETS["x86-avx2"], ("pi5", "pi4")) == SessionSettings(
        arena=False, config={"a": "b", EXACT: "1"}
    )
    for core, made_for in (
        ("x86-avx2", ("x86-avx2",)),
        ("x86-avx2", ()),
        ("x86-vnni", ("pi5",)),
        ("pi4", ("x86-vnni",)),
    ):
        assert exact(settings, TARGETS[core], made_for) == settings


def test_the_logits_recorded_for_a_board_are_those_of_exact_sums(several: Path) -> None:
    """They do not depend on this PC's kernels: without optimization onnxruntime computes the int8 layers in
    float."""
    bundle = manifest.read(several)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    for build in bundle.variant("quantized").builds:
        x, expected = self_check.load_expected(several / bundle.expected.path, build.id, 224)
        session = ort.InferenceSession(several / build.model.path, options)
        found = np.concatenate([session.run(None, {"input": one[None]})[0] for one in x])
        assert self_check.deviation(found, expected) < 0.01, build.id
        settings = build.sessions["fast"]
        again = Model(
            several / build.model.path,
            dataclasses.replace(settings, config=settings.config | {EXACT: "1"}),
            1,
        )
        assert self_check.deviation(np.concatenate([again(one[None]) for one in x]), expected) < 0.01, (
            build.id
        )


def test_fast_where_there_is_room_lean_where_there_is_not(several: Path) -> None:
    build = manifest.read(several).variant("baseline").build
    needed = builds.ENGINE_BYTES + builds.PACKED_TWICE * build.bytes
    assert builds.mode(build, "auto", int(needed / builds.ROOM) + 1) == "fast"
    assert builds.mode(build, "auto", int(needed / builds.ROOM) - 1) == "lean"
    assert builds.mode(build, "auto", None) == "fast"
    assert builds.mode(build, "fast", 1) == "fast"
    assert builds.mode(build, "lean", 1 << 40) == "lean"
    assert build.sessions["lean"].config == {"session.disable_prepacking": "1"}


def test_lean_is_in_the_table_and_in_the_json(several: Path, tmp_path: Path) -> None:
    arguments = ("--budget", "0.1", "--rounds", "1", "--variants", "baseline", "--json", tmp_path / "r.json")
    done = compare("--memory", "lean", *arguments, bundle=several)
    assert done.returncode == 0, done.stderr
    (row,) = json.loads((tmp_path / "r.json").read_text())["variants"]
    assert row["memory_mode"] == "lean"
    assert "baseline: lean with memory" in done.stdout
    assert 0 < row["peak_anonymous_bytes"] < row["peak_rss_bytes"]
    assert 0 < row["peak_file_backed_bytes"] < row["peak_rss_bytes"]
    proc = tmp_path / "root/proc"
    proc.mkdir(parents=True)
    (proc / "meminfo").write_text("MemTotal: 500000 kB\nMemAvailable: 60000 kB\n")
    assert compare("--root", tmp_path / "root", *arguments, bundle=several).returncode == 0
    assert json.loads((tmp_path / "r.json").read_text())["variants"][0]["memory_mode"] == "lean"


def test_anonymous_and_file_backed_memory_are_told_apart(tmp_path: Path) -> None:
    """A process that allocates 60 MB and maps 40 MB of a file."""
    (tmp_path / "file").write_bytes(bytes(40_000_000))
    code = (
        "import mmap, sys, time; a = bytearray(60_000_000); f = open(sys.argv[1], 'rb');"
        "m = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ); sum(m[k] for k in range(0, len(m), 4096));"
        " print('ready', flush=True);"
        "sys.stdin.read()"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "file")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=os.environ,
    )
    with memory.Resident(child.pid) as seen:
        assert child.stdout
        child.stdout.readline()
        time.sleep(0.05)
    child.communicate()
    assert seen.anonymous_bytes == pytest.approx(66e6, abs=8e6)
    assert seen.file_bytes == pytest.approx(48e6, abs=10e6)
    gone = memory.Resident(child.pid)
    gone.sample()
    assert (gone.anonymous_bytes, gone.file_bytes) == (None, None)


def test_a_manifest_without_builds_is_damaged(several: Path, tmp_path: Path) -> None:
    import shutil

    copy = Path(shutil.copytree(several, tmp_path / "copy"))
    variants = json.loads((copy / "manifest.json").read_text())["variants"]
    del variants[0]["builds"]
    reseal(copy, variants=variants)
    with pytest.raises(BundleError, match="is damaged"):
        manifest.read(copy)


def entry_of(size: int, entry_id: str, precision: str, steps: tuple[str, ...], path: Path) -> bundling.Entry:
    with path.open("wb") as file:
        file.truncate(size)  # sparse
    model = dataclasses.replace(export.describe(small_checkpoint()), precision=precision)
    made = cache.Artifact(path, "", {"measured": {"model": model.to_json()}})
    return bundling.Entry(entry_id, "", "", steps, made)


def test_what_is_worth_shipping(tmp_path: Path) -> None:
    """Where int8 is faster its float twin is left out, and on a small board what is larger than half its
    memory; but never the baseline or what was asked for by name."""
    compact = entry_of(100, "compact-fp32", "fp32", ("factorise", "distil", "export"), tmp_path / "a")
    large = entry_of(373_000_000, "scaled", "fp32", ("fold", "export"), tmp_path / "b")
    baseline = entry_of(575_000_000, "baseline", "fp32", ("export",), tmp_path / "c")

    def reason(entry: bundling.Entry, *names: str, variants: tuple[str, ...] | None = None) -> str | None:
        wanted = QuantizeOptions(names[0] if names else options.default_targets()[0])
        (recipe,) = (recipe for recipe in recipes.RECIPES if recipe.id == entry.id)
        asked = RecipeOptions(targets=names or None, quantize=wanted, variants=variants)
        return recipes.not_worth_it(recipe, entry, asked)

    assert reason(compact, "pi5") == "int8 is smaller and faster on pi5"
    assert reason(compact, "pi5", "pi4") is None
    assert reason(compact) is None
    assert reason(compact, "pi5", variants=("compact-fp32",)) is None
    assert reason(large, "zero2") == "its weights alone are more than half the memory of zero2"
    assert reason(large, "pi4") is None
    assert reason(baseline, "zero2") is None


def test_measure_counts_no_memory_of_a_child_that_never_ran(several: Path) -> None:
    bundle = Bundle.read(several)
    broken = bundle.manifest.variant("baseline")
    wrong = dataclasses.replace(broken.build, model=manifest.FileEntry("models/none.onnx", "", 0))
    row = running.measure(
        bundle, broken.using(wrong), running.Pictures(), running.Options(1, 0.1), lambda _: None
    )
    assert row.error
    assert row.p50_ms is None


def test_transformed_weights_must_leave_a_board_room() -> None:
    assert core_builds.has_room(TARGETS["zero2"], 260_000_000)
    assert not core_builds.has_room(TARGETS["zero2"], 270_000_000)
    assert core_builds.has_room(TARGETS["pi4"], 500_000_000)
    assert core_builds.has_room(TARGETS["x86-vnni"], 10**12)
