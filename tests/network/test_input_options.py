"""What the user tells about an input replaces what was found; what is not told stays."""

from typing import Any

import click
import pytest
from click.testing import CliRunner

from vgg_export.cli import cli
from vgg_export.command_options import weights_options
from vgg_export.core.errors import OptionsError
from vgg_export.core.option import options_of
from vgg_export.network.input_options import told
from vgg_export.options import InputOptions, RecipeOptions, WeightsOptions, activation
from vgg_runtime.bundle.input_spec import InputSpec, for_input, normalized, resized

FOUND = for_input(224)
GREY = InputSpec(64, 48, (0.5,), (0.5,), 1)
CAFFE = normalized(FOUND, "caffe")


def test_nothing_told_changes_nothing() -> None:
    for spec in (FOUND, GREY, CAFFE, resized(FOUND, "pad:300")):
        assert told(spec, InputOptions()) == spec
        assert told(spec, InputOptions(normalize="auto", activation="tanh", output_kind="sigmoid")) == spec


@pytest.mark.parametrize(
    ("found", "options", "expected"),
    [
        (FOUND, {"input_px": 128}, InputSpec(146, 128)),
        (FOUND, {"input_px": 128, "resize": "crop:128"}, InputSpec(128, 128)),
        (FOUND, {"resize": "squash"}, InputSpec(224, 224, resize="squash")),
        (FOUND, {"normalize": "half"}, normalized(FOUND, "half")),
        (CAFFE, {"normalize": "half"}, normalized(FOUND, "half")),
        (CAFFE, {"normalize": "0.5/0.5", "bgr": True}, normalized(FOUND, "0.5/0.5", bgr=True)),
        (FOUND, {"bgr": True}, normalized(FOUND, "imagenet", bgr=True)),
        (CAFFE, {"bgr": True}, CAFFE),
        (FOUND, {"normalize": "auto", "bgr": True}, normalized(FOUND, "imagenet", bgr=True)),
        (FOUND, {"channels": 3}, FOUND),
        (FOUND, {"channels": 1}, InputSpec(256, 224, (0.449,), (0.226,), 1)),
        (CAFFE, {"channels": 1}, InputSpec(256, 224, (0.449,), (0.226,), 1)),
        (GREY, {"channels": 3}, InputSpec(64, 48, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))),
        (FOUND, {"channels": 1, "normalize": "unit"}, InputSpec(256, 224, (0.0,), (1.0,), 1)),
    ],
)
def test_what_is_told_replaces_what_was_found(
    found: InputSpec, options: dict[str, Any], expected: InputSpec
) -> None:
    assert told(found, InputOptions(**options)) == expected


@pytest.mark.parametrize(
    ("found", "options", "says"),
    [
        (GREY, {"normalize": "caffe"}, "--normalize and --bgr: caffe is for three channels"),
        (GREY, {"bgr": True}, "--normalize and --bgr: a grey picture has one channel"),
        (GREY, {"normalize": "1,2,3/1"}, "expected one number or 1 on each side"),
        (FOUND, {"resize": "crop:200"}, "--resize: expected a side of at least the input's 224 px"),
    ],
)
def test_what_does_not_fit_the_network_is_refused(
    found: InputSpec, options: dict[str, Any], says: str
) -> None:
    with pytest.raises(OptionsError, match=says):
        told(found, InputOptions(**options))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"input_px": 4}, "--input-px must be from 8 to 2048, found 4"),
        ({"channels": 2}, "--channels must be 1 or 3, found 2"),
        ({"channels": 1, "bgr": True}, "--channels 1 has neither"),
        ({"channels": 1, "normalize": "caffe"}, "--normalize: caffe is for three channels"),
        ({"channels": 1, "normalize": "1,2,3/1"}, "--normalize: expected one number or 1"),
        ({"normalize": "imagnet"}, "--normalize: expected imagenet, half"),
        ({"resize": "stretch"}, "--resize: expected crop, squash, pad"),
        ({"input_px": 224, "resize": "crop:200"}, "--resize: expected a side of at least the input's 224"),
        ({"activation": "swish"}, "--activation must be one of relu"),
        ({"activation": "relu(0.2)"}, "--activation must be one of relu"),
        ({"activation": "leaky_relu(-)"}, "--activation must be one of relu"),
        ({"output_kind": "linear"}, "--output-kind must be one of softmax, sigmoid, multi-label"),
    ],
)
def test_what_contradicts_itself_is_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(OptionsError, match=says):
        InputOptions(**options)


@pytest.mark.parametrize("text", ["relu", "leaky_relu", "leaky_relu(0.2)", "elu(1)", "none"])
def test_an_activation_is_a_word_perhaps_with_a_slope(text: str) -> None:
    assert activation(text) == text


def test_it_hangs_on_the_weights_of_every_command_that_reads_them() -> None:
    assert RecipeOptions().weights.input == InputOptions()
    wanted = {option.flag for _, option in options_of(InputOptions).values()}
    reading = [name for name, command in cli.commands.items() if "labels" in given_by(command)]
    assert sorted(reading) == ["all", "export", "factorise", "finetune", "inspect", "prune", "sweep"]
    for name in reading:
        flags = {parameter.opts[0] for parameter in cli.commands[name].params}
        assert wanted <= flags, name


def given_by(command: click.Command) -> set[str]:
    """The fields of the weights that a command asks for."""
    flags = {parameter.opts[0] for parameter in command.params}
    return {name for name, (_, option) in options_of(WeightsOptions).items() if option.flag in flags}


def test_what_is_typed_arrives() -> None:
    chosen = {"weights": "a.pth", "input_px": 96, "channels": "1", "normalize": "half", "bgr": False}
    read = weights_options(chosen)
    assert (read.spec, read.input) == ("a.pth", InputOptions(96, 1, normalize="half"))


def test_a_wrong_word_is_a_sentence_of_the_command_line() -> None:
    done = CliRunner().invoke(cli, ["all", "--normalize", "imagnet"])
    assert isinstance(done.exception, OptionsError)
    assert "found 'imagnet'" in str(done.exception)
