"""Options of commands are made from the fields they fill."""

import dataclasses
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from vgg_export import command_options, options
from vgg_export.cli import cli
from vgg_export.core.errors import OptionsError
from vgg_export.core.option import asked, options_of

# What is asked of every stage of ``all``.
STAGES = (
    options.RecipeOptions,
    options.RunOptions,
    options.WeightsOptions,
    options.InputOptions,
    options.DataOptions,
    options.PruneOptions,
    options.FinetuneOptions,
    options.FactoriseOptions,
    options.DistilOptions,
    options.QuantizeOptions,
    options.Budget,
)


def flags(command: str) -> list[str]:
    return [p.opts[0] for p in cli.commands[command].params if isinstance(p, click.Option)]


@dataclasses.dataclass(frozen=True)
class Soup:
    """One field of each kind."""

    litres: float = asked(1.5, "--litres", "Of the whole.")
    plates: int = asked(4, "--for", "At most.", bounds=(1, 9))
    herbs: str = asked("dill", "--herbs", "What is green.", choices=("dill", "chives"))
    salted: bool = asked(True, "--no-salt", "Leave the salt out.")
    hot: bool = asked(False, "--hot", "As hot as can be.")
    recipe: Path | None = asked(None, "--recipe", "A file.")
    times: tuple[float, ...] = asked(
        (1.0, 2.5), "--times", "Minutes.", parse=lambda text: tuple(map(float, text.split(",")))
    )
    guests: tuple[str, ...] | None = asked(None, "--guest", "Again and again.", choices=("ada", "bob"))
    spoons: int = asked(7, "--spoons", "By the plates.", derived=True)
    secret: int = 42


@click.command()
@command_options.given(Soup)
@click.pass_context
def cook(context: click.Context, /, **chosen: Any) -> Any:
    context.obj.append(command_options.build(Soup, chosen))


def cooked(*arguments: str) -> Soup:
    made: list[Soup] = []
    done = CliRunner().invoke(cook, arguments, obj=made)
    assert done.exit_code == 0, done.output
    return made[0]


def test_what_is_not_typed_is_the_default() -> None:
    assert cooked() == Soup()


def test_what_is_typed_arrives_in_its_field() -> None:
    typed = cooked(
        *("--litres", "2", "--for", "9", "--herbs", "chives", "--no-salt", "--hot", "--recipe", "soup.txt"),
        *("--times", "3,4", "--guest", "bob", "--guest", "ada", "--spoons", "8"),
    )
    assert typed == Soup(2.0, 9, "chives", False, True, Path("soup.txt"), (3.0, 4.0), ("bob", "ada"), 8)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--for", "10"), "1<=x<=9"),
        (("--herbs", "salt"), "'dill', 'chives'"),
        (("--litres", "much"), "not a valid float"),
        (("--recipe", "."), "is a directory"),
        (("--secret", "1"), "No such option"),
    ],
)
def test_what_does_not_fit_the_field_is_refused(arguments: tuple[str, ...], said: str) -> None:
    done = CliRunner().invoke(cook, arguments, obj=[])
    assert done.exit_code == 2
    assert said in done.output


def test_its_help_is_the_fields() -> None:
    help_text = " ".join(CliRunner().invoke(cook, ["--help"]).output.split())
    for _, option in options_of(Soup).values():
        assert f"{option.flag} " in help_text
        assert option.text in help_text
    assert "[default: 1.0,2.5]" in help_text
    assert "[default: 7]" not in help_text  # it follows from others


@pytest.mark.parametrize(("flag", "text"), [("--plain", " "), ("--plain", ""), ("plain", "A word.")])
def test_a_field_without_help_or_flag_fails(flag: str, text: str) -> None:
    with pytest.raises(ValueError, match=r"has no help|begins with two dashes"):
        asked(1, flag, text)


def test_only_a_field_that_is_asked_for_becomes_an_option() -> None:
    with pytest.raises(ValueError, match=r"Soup\.secret has no option"):
        command_options.given(Soup, "litres", "secret")


@pytest.mark.parametrize("kind", STAGES, ids=lambda kind: kind.__name__)
def test_every_field_that_is_asked_for_has_one_option(kind: Any) -> None:
    wanted = [option.flag for _, option in options_of(kind).values()]
    assert wanted
    assert [flags("all").count(flag) for flag in wanted] == [1] * len(wanted)


@pytest.mark.parametrize(
    ("command", "kind"),
    [
        ("sweep", options.SweepOptions),
        ("deploy", options.DeployOptions),
        ("serve", options.ServeOptions),
        ("draw-signs", options.DrawOptions),
    ],
)
def test_a_command_of_its_own_has_the_options_of_its_fields(command: str, kind: Any) -> None:
    assert {option.flag for _, option in options_of(kind).values()} <= set(flags(command))


def test_no_command_has_an_option_twice() -> None:
    for name in cli.commands:
        assert len(set(flags(name))) == len(flags(name)), name


@pytest.mark.parametrize(
    ("read", "text", "value"),
    [
        (options.ranks, "256,128", (256, 128)),
        (options.ranks, "256", (256,)),
        (options.ranks, "", None),
        (options.size_in_bytes, "20MB", 20_000_000),
        (options.size_in_bytes, " 1.5 kB ", 1500),
        (options.size_in_bytes, "7", 7),
        (options.ratios, "0.1,.3", (0.1, 0.3)),
        (options.variant_names, "pruned, compact", ("pruned", "compact")),
        (options.variant_names, "", None),
    ],
)
def test_how_a_value_is_read(read: Any, text: str, value: Any) -> None:
    assert read(text) == value


@pytest.mark.parametrize(
    ("read", "text"),
    [
        (options.ranks, "a,b"),
        (options.size_in_bytes, "20 miles"),
        (options.size_in_bytes, ""),
        (options.ratios, "0.1;0.3"),
    ],
)
def test_a_value_that_cannot_be_read_is_refused(read: Any, text: str) -> None:
    with pytest.raises(OptionsError, match="takes"):
        read(text)
