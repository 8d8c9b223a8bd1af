"""Makes command-line options of the fields of options dataclasses, and the dataclasses of what was typed."""

import json
import sys
import types
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from vgg_runtime.bundle import manifest
from vgg_runtime.bundle.manifest import PLACE, MadeWith

from . import options
from .core.errors import OptionsError
from .core.option import Option, options_of

Command = Callable[..., Any]
BUILT_IN = ("auto", "imagenet", "demo", "random", "imagenette", "none")
Chosen = dict[str, Any]  # the values that click read from a command line, by Option.key
T = TypeVar("T")


def given(kind: Any, *fields: str, **changed: Any) -> Callable[[Command], Command]:
    """A decorator that gives a command the options of these fields of a dataclass, in this order; without
    ``fields`` of all fields that have an option. ``changed``: settings of click that replace the field's.

    Raises:
        ValueError: a field has no option.
    """
    known = options_of(kind)
    if unasked := [name for name in fields if name not in known]:
        raise ValueError(f"{kind.__name__}.{unasked[0]} has no option")

    def apply(command: Command) -> Command:
        for name in reversed(fields or tuple(known)):
            command = _click_option(kind, name, **changed)(command)
        return command

    return apply


def _click_option(kind: Any, name: str, **changed: Any) -> Callable[[Command], Command]:
    field, option = options_of(kind)[name]
    value_type = _without_none(typing.get_type_hints(kind)[name])
    told: dict[str, Any] = {"help": option.text, "metavar": option.metavar}
    if value_type is bool:
        told["is_flag"] = True
    else:
        default = None if option.derived else _typed(field.default)
        several = bool(option.choices) and typing.get_origin(value_type) is tuple
        told |= {"type": _click_type(option, value_type), "multiple": several}
        told |= {"default": default, "show_default": default is not None}
    return click.option(option.flag, **(told | changed))


def _without_none(hint: Any) -> Any:
    """``T`` of ``T | None``."""
    kinds = [kind for kind in typing.get_args(hint) if kind is not types.NoneType]
    return kinds[0] if isinstance(hint, types.UnionType) else hint


def _typed(default: Any) -> Any:
    """A default in the form in which it is typed: (0.1, 0.3) as "0.1,0.3"."""
    return ",".join(map(str, default)) if isinstance(default, tuple) else default


def _click_type(option: Option, value_type: Any) -> Any:
    if option.choices:
        return click.Choice(option.choices)
    if option.bounds:
        return click.IntRange(*option.bounds)
    if value_type is Path:
        return click.Path(path_type=Path, dir_okay=option.folder, file_okay=not option.folder)
    return str if option.parse else value_type


def build(kind: type[T], chosen: Chosen, **values: Any) -> T:
    """A dataclass from what was typed. Fields that the command does not ask for keep their defaults;
    ``values`` take precedence over both.

    Raises:
        OptionsError: a value cannot be read, or the dataclass refuses it.
    """
    for name, (field, option) in options_of(kind).items():
        if name in values or option.key not in chosen:
            continue
        typed = chosen[option.key]
        if option.parse and typed is not None:
            typed = option.parse(typed)
        elif isinstance(typed, bool):
            # where a flag such as --no-repair was given, the field is the opposite of its default
            typed = typed != field.default
        elif typed == ():
            typed = None
        if typed is not None or not option.derived:
            values[name] = typed
    return kind(**values)


def weights_options(chosen: Chosen, **values: Any) -> options.WeightsOptions:
    """The checkpoint and what is told about its input."""
    return build(options.WeightsOptions, chosen, **({"input": build(options.InputOptions, chosen)} | values))


def built_for(chosen: Chosen) -> tuple[str, ...]:
    """The names of the cores that a command builds for."""
    asked = chosen.get("target") or options.default_targets()
    return (asked,) if isinstance(asked, str) else tuple(asked)


def quantize_options(chosen: Chosen) -> options.QuantizeOptions:
    """The int8 options for the first of the cores."""
    return build(options.QuantizeOptions, chosen, target=built_for(chosen)[0])


def prune_options(chosen: Chosen) -> options.PruneOptions:
    """The pruning options, with widths that suit the cores unless --width-multiple is given."""
    widths = {} if chosen.get("width_multiple") is not None else {"multiple": _width_multiple(chosen)}
    return build(options.PruneOptions, chosen, **widths)


def factorise_options(chosen: Chosen) -> options.FactoriseOptions:
    """The factorising options, with ranks that suit the cores."""
    return build(options.FactoriseOptions, chosen, multiple=_width_multiple(chosen))


def _width_multiple(chosen: Chosen) -> int:
    return options.width_multiple(built_for(chosen))


def budget(chosen: Chosen) -> options.Budget:
    """The limits of a search.

    Raises:
        OptionsError: a limit is given together with a rank that the search sets.
    """
    asked = build(options.Budget, chosen)
    if asked.asked and (chosen.get("fc_ranks") or _is_typed("conv_share", chosen)):
        raise OptionsError(
            "a budget searches for the ranks, but --conv-share and --fc-ranks set them; give one or the other"
        )
    return asked


def _is_typed(key: str, chosen: Chosen) -> bool:
    source = click.get_current_context().get_parameter_source(key)
    return key in chosen and source is not click.core.ParameterSource.DEFAULT


def recipe_options(chosen: Chosen, **values: Any) -> options.RecipeOptions:
    """The options of the commands that run all stages."""
    stages: dict[str, Any] = {
        "weights": weights_options(chosen),
        "data": build(options.DataOptions, chosen),
        "prune": prune_options(chosen),
        "finetune": build(options.FinetuneOptions, chosen),
        "factorise": factorise_options(chosen),
        "distil": build(options.DistilOptions, chosen),
        "quantize": quantize_options(chosen),
        "budget": budget(chosen),
        "search": build(options.SearchOptions, chosen),
    }
    return build(options.RecipeOptions, chosen, **(stages | values))


_PLACES = ("weights", "data", "labels")  # a file or a folder, or a built-in name
_NO_MATTER = ("output", "work", "no_compare", "like")  # they do not change the result


def typed(chosen: Chosen) -> Chosen:
    """What was typed and decides the result, as the manifest keeps it."""
    values = {key: chosen[key] for key in chosen if key not in _NO_MATTER and _is_typed(key, chosen)}
    return {key: _kept(key, value) for key, value in values.items()}


def _kept(key: str, value: Any) -> Any:
    if key in _PLACES and value not in BUILT_IN:
        return PLACE
    return list(value) if isinstance(value, tuple) else value


def like(chosen: Chosen, path: Path) -> tuple[Chosen, MadeWith]:
    """What was typed, completed by the options of the run that wrote the manifest ``path``; and these.

    Raises:
        OptionsError: the manifest does not say them, or something else was typed, or a file or folder that
            the run was given is missing.
        BundleError: there is no such manifest, or it is damaged.
    """
    folder = path if path.is_dir() else path.parent
    if not (path.is_dir() or path.name == manifest.FILE_NAME) or not (folder / manifest.FILE_NAME).is_file():
        raise OptionsError(f"--like takes the {manifest.FILE_NAME} of a bundle, found {path}")
    made = manifest.read(folder).made_with
    if made is None:
        raise OptionsError(
            f"--like: {path} does not say what it was made with; expected a manifest.json of all"
        )
    known, own = made.options, typed(chosen)
    if unknown := sorted((known.keys() - chosen.keys()) | (known.keys() & set(_NO_MATTER))):
        raise OptionsError(f"--like: {path} has the option {unknown[0]!r}, which this version does not know")
    for key in sorted(known.keys() | own.keys()):
        flag = f"--{key.replace('_', '-')}"
        if key in own and own[key] != known.get(key):
            there = f"{flag} {known[key]}" if key in known else f"no {flag}"
            raise OptionsError(
                f"--like: that run had {there}, found {flag} {own[key]}; leave it out, or --like"
            )
        if key in _PLACES and key in known and known[key] not in (PLACE, *BUILT_IN):
            raise OptionsError(f"--like: {path} has a {flag} that no run writes there")
        if known.get(key) == PLACE and key not in own:
            raise OptionsError(f"--like: that run was given {flag}; name the same file or folder with it")
    return chosen | {key: _taken(key, value) for key, value in known.items() if key not in own}, made


def _taken(key: str, value: Any) -> Any:
    """A value from a manifest as the command line would have taken it.

    Raises:
        OptionsError: it is of a type that ``typed`` writes for no such option.
        click.BadParameter: the command line would have refused it.
    """
    context = click.get_current_context(silent=True)
    parameters = context.command.params if context else ()
    option = next((one for one in parameters if one.name == key), None)
    if context is None or option is None:
        return tuple(value) if isinstance(value, list) else value
    if wanted := _unlike(value, option):
        raise OptionsError(
            f"--like: that run's --{key.replace('_', '-')} must be {wanted}, found {json.dumps(value)[:80]};"
            " this manifest is no run's"
        )
    return option.type_cast_value(context, value)


def _unlike(value: Any, option: click.Parameter) -> str:
    """What ``value`` should be, in words, where its JSON type is not that of the option; else "".

    click's own conversion is no check: it takes 1.5 and true for 1, and fails on lists with a TypeError.
    """
    if isinstance(option, click.Option) and option.multiple:
        inner = "a list of words"
        return "" if isinstance(value, list) and all(isinstance(one, str) for one in value) else inner
    if isinstance(option.type, click.types.BoolParamType):
        return "" if isinstance(value, bool) else "true or false"
    if isinstance(option.type, click.types.IntParamType):
        return "" if type(value) is int else "a whole number"
    if isinstance(option.type, click.types.FloatParamType):  # JSON has one type of numbers: 1 is 1.0, too
        fits = type(value) in (int, float) and abs(value) <= sys.float_info.max
        return "" if fits else "a number"
    return "" if isinstance(value, str) else "a text"


def ensure_output(output: Path, suffix: str, *inputs: Path | str) -> None:
    """Check the name of an output file.

    Raises:
        OptionsError: it has another ending than ``suffix``, or it is also an input.
    """
    if output.suffix != suffix:
        raise OptionsError(f"--output must be a file name that ends in {suffix}, found {output}")
    for path in map(Path, inputs):
        if path.exists() and output.exists() and path.samefile(output):
            raise OptionsError(
                f"--output {output} is also an input and would be overwritten; name another file"
            )
