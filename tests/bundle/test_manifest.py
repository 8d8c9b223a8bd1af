"""The manifest's two schemas, and what is checked of its fields."""

import dataclasses
import json
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import reseal
from launch import QUICK, compare

from vgg_runtime.bundle import manifest
from vgg_runtime.errors import BundleError
from vgg_runtime.result import Loss


def in_schema_2(document: dict[str, Any]) -> dict[str, Any]:
    """A manifest as it was written before there were kinds of output and inputs of other channels."""
    older = {k: v for k, v in document.items() if k not in manifest.ADDED} | {"schema": 2}
    for variant in older["variants"]:
        spec = variant["preprocessing"]
        assert spec.pop("channels") == 3
        assert spec.pop("resize") == "crop"
        assert spec.pop("bgr") is False
        spec["crop_px"] = spec.pop("px")
    sealed: dict[str, Any] = manifest.seal(older)
    return sealed


@pytest.mark.release
def test_a_bundle_of_schema_2_is_read_measured_and_written_back(bundle_copy: Path, tmp_path: Path) -> None:
    path, found = bundle_copy / manifest.FILE_NAME, {}
    newer = manifest.read(bundle_copy)
    assert newer.schema == manifest.SCHEMA == 3
    for schema in (3, 2):
        if schema == 2:
            path.write_text(json.dumps(in_schema_2(json.loads(path.read_text()))))
        done = compare("--json", tmp_path / f"{schema}.json", *QUICK, bundle=bundle_copy)
        assert done.returncode == 0, done.stderr
        found[schema] = json.loads((tmp_path / f"{schema}.json").read_text())
    assert manifest.read(bundle_copy) == dataclasses.replace(newer, schema=2, network={})
    for one, other in zip(found[2]["variants"], found[3]["variants"], strict=True):
        for key in ("predictions", "agreement", "accuracy", "built", "input_px", "self_check_deviation"):
            assert one[key] == other[key] is not None
    assert found[2]["bundle"] == found[3]["bundle"] | {"network": {}}
    # the copy of the runtime in that bundle reads nothing newer
    assert manifest.read(bundle_copy).to_json() == json.loads(path.read_text())
    fewer = dataclasses.replace(manifest.read(bundle_copy), variants=newer.variants[:1])
    assert fewer.to_json()["schema"] == 2
    assert fewer.to_json()["variants"][0]["preprocessing"].keys() == {"resize_px", "crop_px", "mean", "std"}


@pytest.mark.parametrize("schema", [0, 1, 4, 17, None, "3"])
def test_other_schemas_are_refused(schema: object, bundle_copy: Path) -> None:
    reseal(bundle_copy, schema=schema)
    with pytest.raises(BundleError, match=rf"has schema {schema}; this runtime reads (up to 3|2 to 3): use"):
        manifest.read(bundle_copy)


def change(*way: str | int, to: object) -> Callable[[dict[str, Any]], None]:
    def apply(document: dict[str, Any]) -> None:
        holder: Any = document
        for step in way[:-1]:
            holder = holder[step]
        if to is None:
            del holder[way[-1]]
        else:
            holder[way[-1]] = to

    return apply


SPEC = ("variants", 1, "preprocessing")
LOST = {"points": 0.5, "error_points": 1, "n": 492, "counted_share": 0.5, "halved_by": 900}


def test_what_a_search_chose_is_read_and_may_be_missing(bundle_copy: Path) -> None:
    path = bundle_copy / manifest.FILE_NAME
    document = json.loads(path.read_text())
    del document["searched"], document["sure"]  # an older bundle
    for variant in document["variants"]:
        del variant["builds"][0]["evaluation"]["loss"]
    path.write_text(json.dumps(manifest.seal(document)))
    older = manifest.read(bundle_copy)
    assert (older.searched, older.sure, older.variants[0].build.evaluation.loss) == (None, False, None)  # type: ignore[union-attr]
    chosen = {"variant": "scaled", "lost": LOST, "judged": ["scaled"]}
    path.write_text(json.dumps(manifest.seal(document | {"searched": chosen})))
    assert manifest.read(bundle_copy).searched == manifest.Searched(
        "scaled", Loss(0.5, 1, 492, 0.5, 900), ("scaled",)
    )


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (
            change("output", to="argmax"),
            "output: expected one of softmax, sigmoid, multi-label, found 'argmax'",
        ),
        (change("variants", to=[]), "variants: expected at least one, found a list of 0"),
        (
            change("variants", 1, "builds", to=[]),
            "variants[1].builds: expected at least one, found a list of 0",
        ),
        (
            change("variants", 1, "precision", to="fp64"),
            "variants[1].precision: expected one of fp32, int8, found 'fp64'",
        ),
        (change("variants", 1, "id", to="baseline"), "variants: expected each id once, found 'baseline'"),
        (
            change("variants", 1, "builds", 0, "id", to="../../x"),
            "variants[1].builds[0].id: expected a name that a file can have, found '../../x'",
        ),
        (change("network", to=[]), "network: expected an object, found a list of 0"),
        (change("family", to=None), "family: expected a text, found nothing"),
        (change("labels", "path", to=5), "labels.path: expected a text, found 5"),
        (change("samples", 0, "label", to="cat"), "samples[0].label: expected a whole number or null"),
        (change("variants", to={}), "variants: expected a list, found an object"),
        (change("variants", 1, "macs", to="many"), "variants[1].macs: expected a whole number, found 'many'"),
        (change(*SPEC, "std", to=[1, 0, 1]), "variants[1].preprocessing.std: expected numbers above zero"),
        (change(*SPEC, "channels", to=2), "variants[1].preprocessing.channels: expected 1 (grey) or 3"),
        (
            change(*SPEC, "resize", to="zoom"),
            "variants[1].preprocessing.resize: expected one of crop, squash",
        ),
        (
            change("variants", 0, "builds", 0, "model", "bytes", to=1.5),
            "variants[0].builds[0].model.bytes: exp",
        ),
        (
            change("variants", 0, "builds", 0, "sessions", "fast", "arena", to="yes"),
            "variants[0].builds[0].sessions.fast.arena: expected true or false, found 'yes'",
        ),
        (change("files", 0, "sha256", to=None), "files[0].sha256: expected a text, found nothing"),
        (change("sure", to="yes"), "sure: expected true or false, found 'yes'"),
        (change("searched", to=[]), "searched: expected an object or null, found a list of 0"),
        (
            change("searched", to={"variant": "tiny", "lost": LOST}),
            "searched.variant: expected one of baseline, quantized, scaled, found 'tiny'",
        ),
        (
            change("searched", to={"variant": "scaled", "lost": LOST | {"n": 0.5}}),
            "searched.lost.n: expected a whole number, found 0.5",
        ),
        (
            change("searched", to={"variant": "scaled", "lost": LOST, "judged": ["scaled", 3]}),
            "searched.judged[1]: expected a text, found 3",
        ),
    ],
)
def test_a_wrong_field_is_named(
    damage: Callable[[dict[str, Any]], None], sentence: str, bundle_copy: Path
) -> None:
    document = json.loads((bundle_copy / manifest.FILE_NAME).read_text())
    damage(document)
    (bundle_copy / manifest.FILE_NAME).write_text(json.dumps(manifest.seal(document)))
    with pytest.raises(BundleError) as caught:
        manifest.read(bundle_copy)
    assert f"manifest.json is damaged ({sentence}" in str(caught.value)
    assert str(caught.value).endswith("); copy the bundle again")


def test_a_variant_is_found_in_every_unicode_form(bundle_copy: Path) -> None:
    found = manifest.read(bundle_copy)
    named = dataclasses.replace(found.variants[0], id=unicodedata.normalize("NFD", "groß-é"))
    found = dataclasses.replace(found, variants=(named, *found.variants[1:]))
    assert found.variant(unicodedata.normalize("NFC", "groß-é")) is named
    with pytest.raises(BundleError, match="there is no variant 'gross-é'"):
        found.variant("gross-é")
