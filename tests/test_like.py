"""What ``--like`` compares: a run is repeated on such a machine, and with the same inputs."""

import types
from pathlib import Path
from typing import Any

import click
import pytest

from vgg_export import cli, command_options, inputs
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


OPTIONS = {one.name: one for one in cli.all_.params if isinstance(one, click.Option) and one.name}
KINDS: dict[str, Any] = {
    "word": "1",
    "int": 1,
    "float": 1.5,
    "bool": True,
    "list": ["1"],
    "null": None,
    "object": {},
}
RIGHT = {"integer": {"int"}, "integer range": {"int"}, "float": {"int", "float"}, "boolean": {"bool"}}


@pytest.mark.parametrize("key", OPTIONS)
def test_an_option_is_taken_only_in_the_type_in_which_a_run_writes_it(key: str) -> None:
    """click itself takes 1.5 and true for 1, and fails on a list with a TypeError."""
    option = OPTIONS[key]
    right = {"list"} if option.multiple else RIGHT.get(option.type.name, {"word"})
    with click.Context(cli.all_):
        for kind, value in KINDS.items():
            if kind in right:
                continue
            with pytest.raises(OptionsError, match=f"^--like: that run's --{key.replace('_', '-')} must be "):
                command_options._taken(key, value)


def test_what_a_run_writes_is_taken_as_it_was_typed() -> None:
    with click.Context(cli.all_):
        for key, value, taken in (
            ("seed", 3, 3),
            ("conv_share", 0.25, 0.25),
            ("conv_share", 1, 1.0),  # JSON has one type of numbers
            ("no_repair", True, True),
            ("target", ["pi4", "pi5"], ("pi4", "pi5")),
            ("channels", "3", "3"),
            ("target_size", "20MB", "20MB"),
        ):
            found = command_options._taken(key, value)
            assert (found, type(found)) == (taken, type(taken))


@pytest.mark.parametrize("value", [10**400, float("inf"), float("nan")])
def test_a_number_that_is_none_is_refused(value: float) -> None:
    with click.Context(cli.all_), pytest.raises(OptionsError, match="--conv-share must be a number, found "):
        command_options._taken("conv_share", value)


def test_a_list_holds_words() -> None:
    with click.Context(cli.all_), pytest.raises(OptionsError, match=r"a list of words, found \[\[\]\]"):
        command_options._taken("target", [[]])
