"""The input of a network as a reader found it and as the user tells it."""

import dataclasses

from vgg_export.core.errors import OptionsError
from vgg_export.options import AUTO, InputOptions
from vgg_runtime.bundle import input_spec
from vgg_runtime.bundle.input_spec import COLOURS, InputSpec


def told(spec: InputSpec, options: InputOptions) -> InputSpec:
    """``spec`` with everything that ``options`` tell; what is not told stays as it was found.

    A told size keeps the field of view unless the resizing is told, too. A told number of channels keeps a
    usual normalisation where there is one for it, and takes ImageNet's otherwise. ``--bgr`` alone exchanges
    red and blue of what was found, with their mean and standard deviation. "auto" tells nothing: pictures
    decide.

    Raises:
        OptionsError: what is told does not fit what was found.
    """
    try:
        if options.input_px is not None:
            spec = spec.at(options.input_px)
        if options.channels is not None and options.channels != spec.channels:
            spec = _with_channels(spec, options.channels)
        if options.resize is not None:
            spec = input_spec.resized(spec, options.resize)
    except ValueError as error:
        raise OptionsError(f"--resize: {error}") from error
    try:
        return _normalized(spec, options)
    except ValueError as error:
        raise OptionsError(f"--normalize and --bgr: {error}") from error


def _with_channels(spec: InputSpec, channels: int) -> InputSpec:
    word, _ = input_spec.named(spec) or ("imagenet", False)
    if input_spec.NORMALIZATIONS[word].grey is None:
        word = "imagenet"
    mean, std = (0.0,) * channels, (1.0,) * channels
    bare = dataclasses.replace(spec, channels=channels, mean=mean, std=std, bgr=False)
    return input_spec.normalized(bare, word)


def _normalized(spec: InputSpec, options: InputOptions) -> InputSpec:
    if options.normalize is not None and options.normalize != AUTO:
        return input_spec.normalized(spec, options.normalize, bgr=options.bgr)
    if options.bgr and not spec.bgr:
        if spec.channels != COLOURS:
            raise ValueError("a grey picture has one channel, so red and blue cannot be exchanged")
        return input_spec.exchanged(spec)
    return spec
