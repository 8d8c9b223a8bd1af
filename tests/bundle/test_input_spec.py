"""The input of a network is named in words and in flags, and what was named can be asked for."""

import dataclasses

import click
import numpy as np
import pytest
from PIL import Image

from vgg_export.command_options import build, given
from vgg_export.network.input_options import told
from vgg_export.options import InputOptions
from vgg_runtime.bundle import input_spec
from vgg_runtime.bundle.input_spec import GREY, NORMALIZATIONS, InputSpec, for_input
from vgg_runtime.bundle.preprocess import framed, scaled, to_tensor

COLOURS, GREYS = for_input(224), InputSpec(64, 48, (0.5,), (0.5,), GREY)


@pytest.mark.parametrize(
    ("word", "pixel", "value"),
    [  # red, green and blue from 0 to 255, and what the network takes
        ("imagenet", (255, 0, 0), ((1 - 0.485) / 0.229, -0.456 / 0.224, -0.406 / 0.225)),
        ("half", (255, 0, 51), (1, -1, -0.6)),
        ("unit", (255, 0, 51), (1, 0, 0.2)),
        ("none", (255, 0, 51), (255, 0, 51)),
        ("caffe", (255, 0, 51), (51 - 103.939, -116.779, 255 - 123.68)),
        ("cifar", (255, 0, 0), ((1 - 0.4914) / 0.2023, -0.4822 / 0.1994, -0.4465 / 0.2010)),
        ("0.1,0.2,0.3/0.5,0.25,0.2", (255, 0, 0), (1.8, -0.8, -1.5)),
        ("0.5/0.25", (255, 0, 0), (2, -2, -2)),
    ],
)
def test_a_normalisation_is_what_its_name_says(
    word: str, pixel: tuple[int, int, int], value: tuple[float, ...]
) -> None:
    spec = input_spec.normalized(for_input(8), word)
    found = to_tensor(Image.new("RGB", (8, 8), pixel), spec)
    assert found[:, 4, 4] == pytest.approx(value, abs=2e-5)


def test_red_and_blue_are_exchanged_with_their_statistics_of_a_word_only() -> None:
    red = Image.new("RGB", (8, 8), (255, 0, 0))
    first = input_spec.normalized(for_input(8), "imagenet", bgr=True)
    assert to_tensor(red, first)[2, 4, 4] == pytest.approx((1 - 0.485) / 0.229, rel=1e-5)
    assert input_spec.exchanged(first) == input_spec.normalized(first, "imagenet")
    numbers = input_spec.normalized(for_input(8), "0.1,0.2,0.3/1", bgr=True)
    assert numbers.mean == (0.1, 0.2, 0.3)
    assert to_tensor(red, numbers)[2, 4, 4] == pytest.approx(1 - 0.3, rel=1e-5)


@pytest.mark.parametrize(
    ("word", "mean", "std"), [("imagenet", 0.449, 0.226), ("half", 0.5, 0.5), ("none", 0.0, 1 / 255)]
)
def test_grey_has_one_number_of_each(word: str, mean: float, std: float) -> None:
    found = input_spec.normalized(GREYS, word)
    assert (found.mean, found.std, found.bgr) == ((mean,), (std,), False)


@pytest.mark.parametrize(
    ("spec", "word", "bgr", "says"),
    [
        (GREYS, "caffe", False, "caffe is for three channels, and the network takes one"),
        (GREYS, "half", True, "red and blue cannot be exchanged"),
        (GREYS, "0.1,0.2,0.3/1", False, "expected one number or 1 on each side"),
        (COLOURS, "0.1,0.2/1", False, "expected one number or 3 on each side"),
        (COLOURS, "0.5/0", False, "those behind the slash above zero"),
        (COLOURS, "0.5/1e999", False, "expected finite numbers"),
        (COLOURS, "0.5", False, "or MEAN/STD for values of 0 to 1"),
        (COLOURS, "ImageNet", False, "expected imagenet, half, unit, none, caffe, cifar or"),
        (COLOURS, "nan/1", False, "found 'nan/1'"),
    ],
)
def test_what_cannot_be_read_or_does_not_fit_is_refused(
    spec: InputSpec, word: str, bgr: bool, says: str
) -> None:
    with pytest.raises(ValueError, match=says):
        input_spec.normalized(spec, word, bgr=bgr)


@pytest.mark.parametrize(
    ("words", "resize", "side"),
    [("crop", "crop", 256), ("squash", "squash", 224), ("pad", "pad", 224), ("crop:300", "crop", 300)],
)
def test_a_resizing_has_a_usual_side(words: str, resize: str, side: int) -> None:
    found = input_spec.resized(COLOURS, words)
    assert (found.resize, found.resize_px, found.px) == (resize, side, 224)


@pytest.mark.parametrize("words", ["stretch", "crop:", "crop:1e3", "crop:100", "crop:-300", "pad:223"])
def test_another_resizing_is_refused(words: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        input_spec.resized(COLOURS, words)


def every_input() -> list[InputSpec]:
    colours = [
        input_spec.normalized(COLOURS, word, bgr=bgr) for word in NORMALIZATIONS for bgr in (False, True)
    ]
    colours += [input_spec.exchanged(one) for one in colours]
    colours.append(dataclasses.replace(COLOURS, mean=(0.1, -1 / 3, 0.3), std=(1 / 255, 1e-7, 2.0), bgr=True))
    grey = [input_spec.normalized(GREYS, word) for word, one in NORMALIZATIONS.items() if one.grey]
    grey.append(dataclasses.replace(GREYS, mean=(0.1307,), std=(0.3081,)))
    resized = [
        input_spec.resized(one.at(px), words)
        for one in (*colours, *grey)
        for px in (32, 224)
        for words in ("crop", "squash", "pad", "crop:256", "pad:300", f"crop:{px}")
    ]
    return list(dict.fromkeys(resized))


def test_the_flags_of_every_input_ask_for_it() -> None:

    made: list[InputOptions] = []

    @click.command()
    @given(InputOptions)
    def tell(**chosen: object) -> None:
        made.append(build(InputOptions, chosen))

    specs = every_input()
    for spec in specs:
        tell.main(list(input_spec.flags(spec)), standalone_mode=False)
    for found in (COLOURS, GREYS, input_spec.normalized(COLOURS, "caffe")):
        assert [told(found, options) for options in made] == specs


def test_only_what_differs_is_asked_for() -> None:
    caffe = input_spec.normalized(COLOURS, "caffe")
    assert input_spec.changes(caffe, COLOURS) == "--normalize caffe"
    assert input_spec.changes(COLOURS, caffe) == "--normalize imagenet"
    assert input_spec.changes(input_spec.exchanged(COLOURS), COLOURS) == "--normalize imagenet --bgr"
    assert input_spec.changes(input_spec.resized(caffe, "pad"), caffe) == "--resize pad"
    assert input_spec.changes(COLOURS.at(128), COLOURS) == "--input-px 128"
    assert input_spec.changes(COLOURS, COLOURS) == ""


def test_an_input_in_words() -> None:
    assert input_spec.in_words(COLOURS) == (
        "224 x 224 px, RGB with ImageNet's mean and standard deviation, the shorter side to 256 px,"
        " the middle 224 px taken"
    )
    assert input_spec.in_words(input_spec.resized(GREYS, "pad")) == (
        "48 x 48 px, grey with values of -1 to 1, the longer side to 48 px, and black around"
    )
    own = dataclasses.replace(COLOURS, mean=(0.1, 0.2, 0.3), std=(1.0, 1.0, 0.5), bgr=True, resize="squash")
    assert input_spec.in_words(own) == (
        "224 x 224 px, BGR with the mean 0.1, 0.2, 0.3 and the standard deviation 1, 1, 0.5 of values of 0"
        " to 1, both sides to 256 px, the middle 224 px taken"
    )


@pytest.mark.parametrize("spec", [COLOURS, GREYS, input_spec.normalized(COLOURS, "caffe")])
def test_a_tensor_is_the_frame_scaled(spec: InputSpec) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (90, 70, 3), np.uint8)
    picture = Image.fromarray(pixels)
    frame = framed(picture, spec)
    assert frame.shape == (spec.px, spec.px, spec.channels)
    assert frame.dtype == np.uint8
    assert np.array_equal(scaled(frame, spec), to_tensor(picture, spec))
