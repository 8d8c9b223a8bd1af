"""Bundles from strangers, damaged or made to do harm: each is refused with a sentence."""

import contextlib
import io
import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import reseal
from damage import rewrite
from launch import QUICK, compare

from vgg_runtime import records
from vgg_runtime.bundle import manifest, self_check
from vgg_runtime.bundle.manifest import FileEntry
from vgg_runtime.bundle.opened import Bundle
from vgg_runtime.classify.classifier import Classifier
from vgg_runtime.doctor import bundle_checks
from vgg_runtime.doctor.finding import FAILS
from vgg_runtime.errors import BundleError, RuntimeInputError
from vgg_runtime.report import diff


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[" * 100_000, "nested too deeply"),
        ('{"a":' * 100_000, "nested too deeply"),
        ("[" * 101 + "]" * 101, "nested too deeply, more than 100 within each other"),
        ('{"a":' * 900 + "1" + "}" * 900, "nested too deeply, more than 100 within each other"),
        ('["\\ud800"]', r"\[0\]: expected a text in Unicode, found '\\ud800'"),
        ('{"a": [1, {"b": "x\\udfffy"}]}', r"a\[1\]\.b: expected a text in Unicode, found 'x\\udfffy'"),
        ('{"a": {"\\ud900": 1}}', r"a: expected keys in Unicode, found '\\ud900'"),
        ("[1" + "0" * 400 + "]", "a number has 401 digits"),
        ("[1" + "0" * 9000 + "]", "a number has 9001 digits"),
        ("[1e999]", "1e999 is no number of JSON"),
        ("[-1e999]", "-1e999 is no number of JSON"),
        ("[NaN]", "NaN is no number of JSON"),
        ("[Infinity]", "Infinity is no number of JSON"),
        ('{"a": 1, "b": 2, "a": 1}', "has the key 'a' twice"),
        ('[{"x": {"y": 1, "y": 2}}]', "has the key 'y' twice"),
        ("", "Expecting value"),
        ("[1,]", "Expecting value|Illegal trailing comma"),
    ],
)
def test_json_that_programs_read_differently_is_refused(text: str, reason: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=reason):
        records.parse(text)
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(BundleError, match=r"manifest\.json cannot be read \(.*\); copy the bundle again"):
        manifest.read(tmp_path)


def test_json_is_read_as_it_is() -> None:
    assert records.parse('{"a": [1, -2.5, 1e308, null, true, "x"], "b": {}}') == {
        "a": [1, -2.5, 1e308, None, True, "x"],
        "b": {},
    }
    assert records.parse('["\\ud83d\\ude00é"]') == ["😀é"]
    deepest = records.parse("[" * records.DEEPEST + "]" * records.DEEPEST)
    assert json.dumps(deepest).count("[") == 100


def test_a_document_without_end_is_refused(bundle_copy: Path) -> None:
    files = [bundle_copy / name for name in ("manifest.json", "splits.json", "labels.txt")]
    listed = manifest.read(bundle_copy)
    readers: list[Callable[[], object]] = [
        lambda: manifest.read(bundle_copy),
        lambda: manifest.read_fitted(bundle_copy),
        lambda: manifest.read_labels(bundle_copy, listed),
        lambda: diff.read(bundle_copy / "manifest.json"),
    ]
    for path in files:
        os.truncate(path, 3_000_000_000)  # sparse
    for path, read in zip([*files, files[0]], readers, strict=True):
        with pytest.raises((BundleError, RuntimeInputError), match=rf"{path.name} cannot be read .*64 MB"):
            read()


Change = Callable[[dict[str, Any]], object]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda d: d.update(variants=[]), "variants: expected at least one"),
        (lambda d: d["variants"].append(d["variants"][0]), "variants: expected each id once"),
        (lambda d: d["variants"][0].update(builds=[]), "variants[0].builds: expected at least one"),
        (lambda d: d["variants"][0].update(precision="fp8"), "variants[0].precision: expected one of fp32,"),
        (lambda d: _build(d)["sessions"].pop("lean"), "builds[0].sessions: expected entries fast and lean"),
        (
            lambda d: _build(d)["sessions"]["fast"].update(
                config={"session.model_external_initializers_file_folder_path": "/etc"}
            ),
            "sessions.fast.config: expected no setting that names files",
        ),
        (lambda d: _build(d)["weights"].update(path="other/w"), "weights.path: expected a file beside"),
        (lambda d: d["labels"].update(path="la\0bels"), "labels.path: expected a name without control"),
        (lambda d: d["labels"].update(path="la\ud800bels"), "labels.path: expected a text in Unicode"),
        (lambda d: d.update(family="evil\ud800"), r"family: expected a text in Unicode, found 'evil\ud800'"),
        (lambda d: d["variants"][0].update(title="\udc00"), "variants[0].title: expected a text in Unicode"),
        (lambda d: d["labels"].update(bytes=-1), "labels.bytes: expected a number of bytes"),
        (lambda d: d["labels"].update(bytes=2**63), "labels.bytes: expected a whole number below 2**63"),
        (
            lambda d: _build(d)["model"].update(bytes=15 * 10**307),
            "builds[0].model.bytes: expected a whole number below 2**63",
        ),
        (lambda d: d["labels"].update(path="//etc/hostname"), "names '//etc/hostname', which is not inside"),
        (lambda d: _spec(d).update(resize_px=10**8, px=10**8), "resize_px: expected at most 8192"),
        (lambda d: _spec(d).update(std=[1e-300] * 3), "mean and std: expected numbers between"),
        (lambda d: _spec(d).update(mean=[1e300] * 3), "mean and std: expected numbers between"),
    ],
)
def test_a_manifest_that_no_bundle_has_is_refused(change: Change, sentence: str, bundle_copy: Path) -> None:
    document = json.loads((bundle_copy / manifest.FILE_NAME).read_text())
    if _build(document)["weights"] is None:
        _build(document)["weights"] = dict(_build(document)["model"])
    change(document)
    reseal(bundle_copy, **document)
    with pytest.raises(BundleError) as caught:
        manifest.read(bundle_copy)
    assert sentence in str(caught.value)


def _build(document: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = document["variants"][0]["builds"][0]
    return found


def _spec(document: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = document["variants"][0]["preprocessing"]
    return found


@pytest.mark.parametrize(
    "path", ["../x", "/etc/passwd", "//etc/hostname", "///x", "a/../../x", "..\\x", "C:x", ""]
)
def test_a_path_out_of_the_bundle_is_refused(path: str) -> None:
    with pytest.raises(BundleError, match="not inside the bundle; do not use this bundle"):
        FileEntry(path, "0", 0)


@pytest.mark.parametrize("name", ["manifest.json", "labels.txt"])
def test_a_pipe_a_device_or_a_folder_is_not_waited_for(name: str, bundle_copy: Path) -> None:
    path = bundle_copy / name
    path.unlink()
    makers: tuple[Callable[[], None], ...] = (
        lambda: os.mkfifo(path),
        lambda: path.symlink_to("/dev/zero"),
        path.mkdir,
    )
    for make in makers:
        make()
        with pytest.raises(BundleError, match=f"{name} is a folder, a pipe or a device, not a file"):
            Bundle.read(bundle_copy).check(manifest.read(bundle_copy).all_files())
        path.rmdir() if path.is_dir() else path.unlink()


def test_a_link_out_of_the_bundle_is_refused_and_one_within_is_followed(
    bundle_copy: Path, tmp_path: Path
) -> None:
    for name in ("labels.txt", "samples"):
        moved = (bundle_copy / name).rename(tmp_path / name)
        (bundle_copy / name).symlink_to(moved)
        with pytest.raises(BundleError, match=rf"{name}.* is a link that leads out of the bundle; do not"):
            manifest.verify(bundle_copy, manifest.read(bundle_copy).all_files())
        (bundle_copy / name).unlink()
        (bundle_copy / name).symlink_to(moved.rename(bundle_copy / f"{name}.here"))
        manifest.verify(bundle_copy, manifest.read(bundle_copy).all_files())
    (tmp_path / "linked").symlink_to(bundle_copy)
    manifest.verify(tmp_path / "linked", manifest.read(bundle_copy).all_files())
    (bundle_copy / "labels.txt").unlink()
    (bundle_copy / "labels.txt").symlink_to("labels.txt")
    with pytest.raises(BundleError, match=r"labels\.txt cannot be read"):
        manifest.verify(bundle_copy, manifest.read(bundle_copy).all_files())


def test_a_file_of_another_size_is_not_hashed(bundle_copy: Path) -> None:
    entry = manifest.read(bundle_copy).labels
    os.truncate(bundle_copy / entry.path, 2**42)  # sparse; hashing it would take an hour
    sentence = rf"labels.txt differs from the manifest \({2**42} bytes, expected {entry.bytes}\); copy"
    with pytest.raises(BundleError, match=sentence):
        manifest.verify(bundle_copy, [entry])
    (bundle_copy / entry.path).write_bytes(bytes(entry.bytes))
    with pytest.raises(BundleError, match=rf"{entry.bytes} bytes, expected {entry.bytes}; sha256 "):
        manifest.verify(bundle_copy, [entry])


@pytest.mark.parametrize("text", ["", "one\ntwo\n"])
def test_class_names_that_are_not_the_manifests_are_refused(text: str, bundle_copy: Path) -> None:
    rewrite(bundle_copy, "labels.txt", text.encode())
    sentence = f"labels.txt has {len(text.split())} class names, which are not those of the manifest"
    with pytest.raises(BundleError, match=sentence):
        _ = Bundle.read(bundle_copy).labels
    found = bundle_checks._labels(Bundle.read(bundle_copy), ())
    assert [(check.check, check.mark) for check in found] == [("labels", FAILS)]


def test_more_class_names_than_outputs_are_refused_by_every_command(bundle_copy: Path) -> None:
    rewrite(bundle_copy, "labels.txt", "\n".join("abcdefghi").encode())
    sentence = "the bundle names 9 classes, and its network has 7 outputs"
    with pytest.raises(BundleError, match=sentence):
        Classifier(bundle_copy, "baseline")
    done = compare("--variants", "baseline", *QUICK, bundle=bundle_copy)
    assert done.returncode == 1
    assert "the bundle names 9 classes" in " ".join(done.stdout.split())
    assert "Traceback" not in done.stderr


def test_the_outputs_of_each_kind_of_network_are_counted() -> None:
    logits = np.zeros((2, 1), np.float32)
    self_check.ensure_classes(logits, "sigmoid", 2)
    self_check.ensure_classes(np.zeros((2, 5), np.float32), "multi-label", 5)
    for output, classes in (("sigmoid", 3), ("softmax", 2), ("multi-label", 2)):
        with pytest.raises(BundleError, match=f"names {classes} classes, and its network has 1 outputs"):
            self_check.ensure_classes(logits, output, classes)


INPUTS, LOGITS = np.zeros((2, 3, 8, 8), np.float32), np.zeros((2, 7), np.float32)


@pytest.mark.parametrize(
    ("inputs", "logits", "reason"),
    [
        (INPUTS, LOGITS * np.float32("nan"), "values that are no numbers"),
        (INPUTS + np.float32("inf"), LOGITS, "values that are no numbers"),
        (INPUTS, LOGITS[:1], "shapes"),
        (INPUTS[:0], LOGITS[:0], "shapes"),
        (INPUTS[..., :5], LOGITS, "shapes"),
        (INPUTS, LOGITS[0], "shapes"),
        (np.float32(1), np.float32(1), "shapes"),
        (INPUTS, LOGITS.astype(np.float64), "holds float64"),
        (np.array(["x"]), LOGITS, "holds <U1"),
        (np.array([{}], dtype=object), LOGITS, "Object arrays cannot be loaded"),
    ],
)
def test_recorded_answers_of_another_kind_are_refused(
    inputs: Any, logits: Any, reason: str, tmp_path: Path
) -> None:
    path = tmp_path / "expected.npz"
    np.savez(path, input_8=inputs, logits_a=logits)
    with pytest.raises(BundleError, match=rf"has no self-check for a \(.*{reason}"):
        self_check.load_expected(path, "a", 8)


def test_damaged_recorded_answers_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "expected.npz"
    np.savez_compressed(path, input_8=INPUTS, logits_a=LOGITS)
    whole = path.read_bytes()
    assert self_check.load_expected(path, "a", 8)[1].shape == (2, 7)
    damaged = [whole[:k] for k in range(0, len(whole), 40)] + [b"", b"hello"]
    damaged += [whole[:k] + bytes([whole[k] ^ 255]) + whole[k + 1 :] for k in range(0, len(whole) // 2, 3)]
    for content in damaged:
        path.write_bytes(content)
        with contextlib.suppress(BundleError):  # else it was a byte that says nothing, such as a time
            assert np.array_equal(self_check.load_expected(path, "a", 8)[0], INPUTS)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as bomb:
        bomb.writestr("input_8.npy", bytes(2000))
    header = io.BytesIO()
    claimed = {"descr": "<f4", "fortran_order": False, "shape": (2**40, 2**20)}
    np.lib.format.write_array_header_1_0(header, claimed)
    claims = tmp_path / "claims.npz"
    with zipfile.ZipFile(claims, "w") as made:
        made.writestr("input_8.npy", header.getvalue() + bytes(1000))
    with pytest.raises(BundleError, match="has no self-check for a"):
        self_check.load_expected(claims, "a", 8)
    monkeypatch.setattr(self_check, "MOST_BYTES", 1999)
    with pytest.raises(BundleError, match="input_8 has 2000 bytes, at most 1999 are read"):
        self_check.load_expected(path, "a", 8)


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA, zipfile.ZIP_DEFLATED])
def test_recorded_answers_packed_otherwise_are_refused(method: int, tmp_path: Path) -> None:
    path = tmp_path / "expected.npz"
    with zipfile.ZipFile(path, "w", method) as made:
        for name, array in (("input_8", INPUTS), ("logits_a", LOGITS)):
            with made.open(f"{name}.npy", "w") as file:
                np.lib.format.write_array(file, array)
    if method == zipfile.ZIP_DEFLATED:
        assert np.array_equal(self_check.load_expected(path, "a", 8)[0], INPUTS)
    whole = path.read_bytes()
    for k in range(150):
        path.write_bytes(whole[:k] + bytes([whole[k] ^ 1]) + whole[k + 1 :])
        with contextlib.suppress(BundleError):
            self_check.load_expected(path, "a", 8)
    path.write_bytes(whole)
    if method != zipfile.ZIP_DEFLATED:
        with pytest.raises(BundleError, match=f"input_8 is packed with method {method} of zip, which numpy"):
            self_check.load_expected(path, "a", 8)


@pytest.mark.parametrize(
    "header",
    [
        "{'descr': (",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (2, " + str(2**70) + ")}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (-1, 3)}",
        "{'descr': [], 'fortran_order': False, 'shape': (1, 3)}",
        "(" * 5000,
    ],
)
def test_a_header_that_numpy_does_not_understand_is_refused(header: str, tmp_path: Path) -> None:
    content = b"\x93NUMPY\x01\0" + len(header).to_bytes(2, "little") + header.encode() + bytes(96)
    with zipfile.ZipFile(tmp_path / "expected.npz", "w") as made:
        made.writestr("input_8.npy", content)
    with pytest.raises(BundleError, match=r"has no self-check for a \(.*copy the bundle again"):
        self_check.load_expected(tmp_path / "expected.npz", "a", 8)
