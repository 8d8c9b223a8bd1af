import dataclasses
import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, entries_of
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from vgg_export.bundle import evaluate, writer
from vgg_export.core import cache, files
from vgg_export.core.errors import DataError, OutputError
from vgg_export.core.progress import Quiet
from vgg_export.data import splits
from vgg_runtime.bundle import manifest, self_check
from vgg_runtime.errors import BundleError


@pytest.fixture
def contents(bundle_folder: Path, splits: splits.Splits) -> writer.Contents:
    """What the session's bundle was made of."""
    work = bundle_folder.parent
    entries = entries_of(
        *(cache.of(work / f"{name}.onnx") for name in ("baseline", "quantized", "scaled", "signed"))
    )
    figures = cache.of(work / "evaluation.json").read(evaluate.Evaluated).figures
    return writer.Contents(entries, splits, None, figures, None)


def test_it_holds_what_the_manifest_says_and_nothing_else(bundle_folder: Path) -> None:
    bundle_ = manifest.read(bundle_folder)
    manifest.verify(bundle_folder, bundle_.all_files())
    files = {
        p.relative_to(bundle_folder).as_posix()
        for p in bundle_folder.rglob("*")
        if p.is_file() and "__pycache__" not in p.parts
    }
    assert files == {e.path for e in bundle_.all_files()} | {"manifest.json"}
    assert {
        "README.md",
        "runtime/compare.py",
        "runtime/requirements.txt",
        "splits.json",
        "labels.txt",
    } <= files
    sources = {p.relative_to(ROOT).as_posix(): p for p in (ROOT / "runtime/vgg_runtime").rglob("*.py")}
    assert {name for name in files if name.startswith("runtime/vgg_runtime/")} == {
        *sources,
        "runtime/vgg_runtime/py.typed",
        "runtime/vgg_runtime/report/page.html",
    }
    for name, path in sources.items():
        assert (bundle_folder / name).read_bytes() == path.read_bytes()


def test_the_bill_of_materials_is_cyclonedx_and_names_what_is_there(bundle_folder: Path) -> None:
    text = (bundle_folder / "sbom.cdx.json").read_text()
    assert JsonStrictValidator(SchemaVersion.V1_5).validate_str(text) is None
    broken = json.loads(text) | {"bomFormat": "other"}
    assert JsonStrictValidator(SchemaVersion.V1_5).validate_str(json.dumps(broken)) is not None
    components = json.loads(text)["components"]
    packages = {c["name"]: c["version"] for c in components if c.get("purl")}
    locked = (ROOT / "runtime/requirements-locked.txt").read_text()
    assert {"numpy", "onnxruntime", "pillow"} <= packages.keys()
    assert all(f"{name}=={version} " in locked for name, version in packages.items())
    models = [c for c in components if c["type"] == "machine-learning-model"]
    assert [model["name"] for model in models] == [
        build.id for variant in manifest.read(bundle_folder).variants for build in variant.builds
    ]
    for model in models:
        graph = (bundle_folder / f"models/{model['name']}.onnx").read_bytes()
        assert model["hashes"] == [{"alg": "SHA-256", "content": hashlib.sha256(graph).hexdigest()}]
        for part in model["components"]:
            content = (bundle_folder / part["name"]).read_bytes()
            assert part["hashes"][0]["content"] == hashlib.sha256(content).hexdigest()


def test_the_variants_carry_their_facts(bundle_folder: Path) -> None:
    bundle_ = manifest.read(bundle_folder)
    baseline, quantized, scaled = bundle_.variants
    assert (baseline.precision, quantized.precision, scaled.preprocessing.px) == ("fp32", "int8", 160)
    assert quantized.build.bytes < baseline.build.bytes / 2
    assert scaled.parameters < baseline.parameters
    assert quantized.steps == ("quantized to int8",)
    assert len(bundle_.samples) == 8
    expected = np.load(bundle_folder / "expected.npz")
    assert expected[self_check.input_key(224)].shape == (2, 3, 224, 224)
    assert expected[self_check.logits_key("scaled")].shape == (2, 7)


def test_the_samples_are_test_pictures(bundle_folder: Path, splits: splits.Splits) -> None:
    fitted = {i.sha256 for i in (*splits.fit, *splits.select)}
    assert not {s.file.sha256 for s in manifest.read(bundle_folder).samples} & fitted
    recorded = json.loads((bundle_folder / "splits.json").read_text())
    assert {i["sha256"] for i in recorded["fit"]} | {i["sha256"] for i in recorded["select"]} == fitted


def test_the_same_contents_are_not_written_again(contents: writer.Contents, bundle_copy: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in bundle_copy.rglob("*") if p.is_file()}
    writer.run(contents, bundle_copy, Quiet())
    assert {p: p.stat().st_mtime_ns for p in bundle_copy.rglob("*") if p.is_file()} == before
    model = bundle_copy / "models/baseline.onnx"
    damaged = bytearray(model.read_bytes())
    damaged[-1] ^= 1
    model.write_bytes(damaged)
    writer.run(contents, bundle_copy, Quiet())
    manifest.verify(bundle_copy, manifest.read(bundle_copy).all_files())


@pytest.mark.parametrize(
    "problem", [KeyboardInterrupt(), OSError(28, "No space left on device"), RuntimeError("x")]
)
def test_whatever_interrupts_leaves_the_old_bundle_whole(
    problem: BaseException, contents: writer.Contents, bundle_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise problem

    changed = dataclasses.replace(contents, class_ids=("n1",) * 7)
    for module, where in ((writer, "_write_expected"), (files, "sync"), (writer, "_write_runtime")):
        with monkeypatch.context() as patch:
            patch.setattr(module, where, interrupt)
            with pytest.raises((type(problem), OutputError)):
                writer.run(changed, bundle_copy, Quiet())
        present = manifest.read(bundle_copy)
        assert present.class_ids is None
        manifest.verify(bundle_copy, present.all_files())
        assert [p.name for p in bundle_copy.parent.iterdir()] == [bundle_copy.name]
    writer.run(changed, bundle_copy, Quiet())
    assert manifest.read(bundle_copy).class_ids == ("n1",) * 7


def test_an_interrupted_swap_puts_the_old_bundle_back(
    contents: writer.Contents, bundle_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = Path.rename

    def fail_second(self: Path, target: Path) -> Path:
        if self.name.endswith(".partial"):
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail_second)
    monkeypatch.setattr(files, "_exchanged", lambda *_: False)  # as where the file system cannot
    with pytest.raises(KeyboardInterrupt):
        writer.run(dataclasses.replace(contents, class_ids=("n1",) * 7), bundle_copy, Quiet())
    manifest.verify(bundle_copy, manifest.read(bundle_copy).all_files())
    assert [p.name for p in bundle_copy.parent.iterdir()] == [bundle_copy.name]


def test_what_all_writes_beside_a_bundle_does_not_stand_in_the_way(
    contents: writer.Contents, bundle_copy: Path
) -> None:
    for name in (manifest.REPORT_NAME, *manifest.FRONT_NAMES):
        (bundle_copy / name).write_text("from an earlier run")
    writer.ensure_replaceable(bundle_copy)
    writer.run(dataclasses.replace(contents, max_drop=0.5), bundle_copy, Quiet())
    assert manifest.read(bundle_copy).max_drop == 0.5


def test_a_folder_with_other_things_is_not_replaced(
    contents: writer.Contents, bundle_copy: Path, tmp_path: Path
) -> None:
    (bundle_copy / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match=r"would be lost: notes\.txt"):
        writer.run(contents, bundle_copy, Quiet())
    assert (bundle_copy / "notes.txt").read_text() == "mine"
    holiday = tmp_path / "holiday"
    holiday.mkdir()
    (holiday / "photo.jpg").touch()
    with pytest.raises(OutputError, match="is not empty and not a readable bundle"):
        writer.run(contents, holiday, Quiet())
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="is a file; --output takes a folder"):
        writer.run(contents, tmp_path / "file", Quiet())


def read_error(folder: Path) -> str:
    with pytest.raises(BundleError) as error:
        manifest.read(folder)
    return str(error.value)


def test_damaged_manifests_are_refused(bundle_copy: Path, tmp_path: Path) -> None:
    path = bundle_copy / "manifest.json"
    good = json.loads(path.read_text())
    path.write_text(json.dumps(good | {"schema": manifest.SCHEMA + 1}))
    assert f"has schema {manifest.SCHEMA + 1}; this runtime reads up to {manifest.SCHEMA}" in read_error(
        bundle_copy
    )
    path.write_text(json.dumps(good | {"schema": 1}))
    assert "has schema 1; this runtime reads" in read_error(bundle_copy)
    path.write_text(json.dumps(manifest.seal({k: v for k, v in good.items() if k != "variants"})))
    assert "is damaged" in read_error(bundle_copy)
    path.write_text('{"format": ')
    assert "cannot be read" in read_error(bundle_copy)
    path.write_text('{"format": "other"}')
    assert "is not a vgg-export-bundle" in read_error(bundle_copy)
    assert "there is no bundle" in read_error(tmp_path / "nowhere")
    escaping = json.loads(json.dumps(good))
    escaping["labels"]["path"] = "../../etc/passwd"
    path.write_text(json.dumps(manifest.seal(escaping)))
    assert "not inside the bundle" in read_error(bundle_copy)


def test_any_flipped_bit_of_the_manifest_is_noticed(bundle_copy: Path) -> None:
    path = bundle_copy / "manifest.json"
    good = path.read_bytes()
    for k in range(3, len(good), len(good) // 200):
        flipped = bytearray(good)
        flipped[k] ^= 4
        path.write_bytes(flipped)
        if json.loads(good) != _parsed(bytes(flipped)):
            read_error(bundle_copy)


def _parsed(content: bytes) -> object:
    try:
        return json.loads(content)
    except ValueError:
        return None


def test_models_that_do_not_belong_together_are_refused(contents: writer.Contents) -> None:
    first = contents.entries[0]
    other = dataclasses.replace(
        first, id="other", model=_with_labels(first.model, [*reversed(first.info.labels)])
    )
    with pytest.raises(DataError, match="must have the same classes in the same order"):
        dataclasses.replace(contents, entries=(first, other))
    with pytest.raises(DataError, match="two models are called 'baseline'"):
        dataclasses.replace(contents, entries=(first, first))


def test_models_of_one_size_have_to_take_the_same_pictures(contents: writer.Contents) -> None:
    """The device prepares a picture once per size, and records one input for the self-check of each."""
    first, quantized, scaled = contents.entries
    half = quantized.preprocessing.to_json() | {"mean": [0.5] * 3, "std": [0.5] * 3}
    other = dataclasses.replace(quantized, model=_taking(quantized.model, half))
    with pytest.raises(DataError, match="quantized and baseline both take 224 px, but pictures are prepared"):
        dataclasses.replace(contents, entries=(first, other, scaled))
    small = scaled.preprocessing.to_json() | {"resize": "squash"}
    other = dataclasses.replace(scaled, model=_taking(scaled.model, small))
    assert dataclasses.replace(contents, entries=(first, other)).entries[1].preprocessing.resize == "squash"


def test_the_network_and_its_output_are_in_the_manifest(contents: writer.Contents, bundle_copy: Path) -> None:
    written, chain = manifest.read(bundle_copy), contents.entries[0].chain
    assert written.output == "softmax"
    assert written.network == {"family": "vgg11", "layers": chain.to_json()["layers"], "classes": 7}
    assert [layer["name"] for layer in written.network["layers"] if "name" in layer][:2] == [
        "conv1_1",
        "conv2_1",
    ]
    several = tuple(
        dataclasses.replace(e, model=_with(e.model, chain=e.chain.to_json() | {"output": "multi-label"}))
        for e in contents.entries
    )
    writer.run(dataclasses.replace(contents, entries=several), bundle_copy, Quiet())
    assert manifest.read(bundle_copy).output == "multi-label"
    with pytest.raises(
        DataError, match="the output of quantized is multi-label, that of baseline is softmax"
    ):
        dataclasses.replace(contents, entries=(contents.entries[0], *several[1:]))


def _with_labels(model: cache.Artifact, labels: list[str]) -> cache.Artifact:
    return _with(model, labels=labels)


def _taking(model: cache.Artifact, spec: dict[str, object]) -> cache.Artifact:
    """The model with another input in its sidecar."""
    return _with(model, preprocessing=spec, chain=model.measured["model"]["chain"] | {"input": spec})


def _with(model: cache.Artifact, **changes: object) -> cache.Artifact:
    """The model with other fields of its ModelInfo in its sidecar."""
    info = model.measured["model"] | changes
    return dataclasses.replace(model, sidecar=model.sidecar | {"measured": model.measured | {"model": info}})


def test_what_int8_was_made_for_and_calibrated_on_is_the_sidecars(
    contents: writer.Contents, bundle_folder: Path
) -> None:
    assert manifest.read(bundle_folder).target.startswith("x86-vnni (")
    calibrated = contents.entries[1].model.measured["calibration_images"]
    assert len(calibrated) == 16
    assert {digest[:16] for digest in calibrated} <= manifest.read_fitted(bundle_folder)
    foreign = dataclasses.replace(contents, splits=splits.Splits("other", contents.splits.test, (), ()))
    assert {digest[:16] for digest in calibrated} <= set(foreign.fitted())


def test_a_read_only_place_is_explained(
    contents: writer.Contents, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import os

    closed = tmp_path / "closed"
    closed.mkdir()
    if os.geteuid() == 0:  # root may write anywhere: ask as the system would answer somebody else
        monkeypatch.setattr(os, "access", lambda path, mode: False)
    else:
        closed.chmod(0o500)
    with pytest.raises(OutputError, match="cannot be written to; choose another --output"):
        writer.run(contents, closed / "artifacts", Quiet())
    shutil.rmtree(closed)
