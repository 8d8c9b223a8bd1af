"""What ``--like`` compares: a run is repeated on such a machine, and with the same inputs."""

import types
from pathlib import Path
from typing import Any

import pytest

from vgg_export import inputs
from vgg_export.core import devices
from vgg_export.core.errors import OptionsError
from vgg_export.core.progress import Quiet
from vgg_export.options import RunOptions
from vgg_runtime.bundle.manifest import MadeWith

HERE = MadeWith({"seed": 3}, "pi5", "c" * 64, "p" * 64, "cpu")


@pytest.fixture(autouse=True)
def _on_a_pi_5(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inputs, "default_targets", lambda: ("pi5",))
    monkeypatch.setattr(devices, "name", lambda: "cpu")


def given() -> Any:
    splits = types.SimpleNamespace(digest=lambda: HERE.pictures)
    return types.SimpleNamespace(checkpoint=types.SimpleNamespace(sha256=HERE.checkpoint), splits=splits)


def like(**changes: object) -> MadeWith:
    return MadeWith.from_json(HERE.to_json() | changes)


def how(made: MadeWith | None) -> RunOptions:
    return RunOptions(Path("out"), progress=Quiet(), typed={"seed": 3}, like=made)


def test_what_a_run_was_given_is_kept() -> None:
    assert inputs.made_with(given(), how(None)) == HERE


def test_the_same_again_keeps_the_options_of_the_first() -> None:
    assert inputs.made_with(given(), how(like(options={"seed": 3, "labels": "…"}))).options["labels"] == "…"


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        (
            {"core": "pi4"},
            "the core of this machine must be the same as in that run, pi4, found pi5; use such",
        ),
        (
            {"device": "NVIDIA H100"},
            "where torch computes .* NVIDIA H100, found cpu; use a machine that has it",
        ),
    ],
)
def test_another_machine_is_refused_before_anything_is_read(changed: dict[str, str], sentence: str) -> None:
    inputs.ensure_machine(HERE)
    with pytest.raises(OptionsError, match=sentence):
        inputs.ensure_machine(like(**changed))


def test_what_was_computed_on_the_cpu_says_how_to_get_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "name", lambda: "NVIDIA H100")
    with pytest.raises(OptionsError, match="that run, cpu, found NVIDIA H100; add --device cpu"):
        inputs.ensure_machine(HERE)


def test_manifests_that_do_not_name_the_device_are_repeated_anywhere() -> None:
    older = {key: value for key, value in HERE.to_json().items() if key != "device"}
    inputs.ensure_machine(MadeWith.from_json(older))


@pytest.mark.parametrize("name", ["checkpoint", "pictures"])
def test_another_input_is_refused(name: str) -> None:
    there = "0123456789ab"
    with pytest.raises(
        OptionsError, match=rf"the {name} .* in that run, {there}, found {name[0] * 12}; give"
    ):
        inputs.made_with(given(), how(like(**{name: there + "cdef"})))


@pytest.mark.parametrize("name", ["checkpoint", "pictures"])
def test_the_whole_hash_decides_though_its_beginning_is_shown(name: str) -> None:
    with pytest.raises(OptionsError, match="must be the same"):
        inputs.made_with(given(), how(like(**{name: name[0] * 63 + "0"})))
