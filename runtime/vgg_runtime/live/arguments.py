"""The command-line options of ``compare.py --live``, and what they mean."""

import argparse
import dataclasses
import shlex
from collections.abc import Mapping
from typing import Any

from vgg_runtime import console
from vgg_runtime.errors import RuntimeInputError

from .answers import Stability

LOG_BYTES = 10_000_000
EVERY_S, EVERY_S_ALONE = 5.0, 60.0  # between two lines: on a terminal, and where nobody watches
# the options that belong to --live alone
RECOMMENDED = ""  # in the place of a variant's name
NAMES = (
    *("source", "fps", "frames", "seconds", "every", "max_fps", "region", "change", "stable"),
    *("min_probability", "log", "log_bytes", "on_change", "mqtt", "mqtt_login", "reconnect"),
)

Group = Any  # argparse's groups have no public name


def add(group: Group) -> None:
    """Add the options."""
    option = group.add_argument
    option(
        "--live",
        metavar="VARIANT",
        nargs="?",
        const=RECOMMENDED,
        help="classify the newest frame of a stream with this variant (default: the recommended one), again"
        " and again until Ctrl-C",
    )
    option(
        "--source",
        type=console.named,
        metavar="FROM",
        help="where the frames come from: a folder (again and again), a file or pipe of JPEGs, - for standard"
        " input, http://… (MJPEG or snapshots), rtsp://… or ffmpeg:ANYTHING or /dev/video0 (need ffmpeg), or"
        " camera (picamera2 or rpicam-vid); default: camera",
    )
    option("--reconnect", action="store_true", help="ask an address again whenever it breaks off, for ever")
    option(
        "--fps",
        type=console.rate,
        metavar="N",
        help="frames per second of a folder, a file or a camera (default: 30), and of snapshots (default: 1)",
    )
    option("--max-fps", type=console.rate, metavar="N", help="classify so many frames per second at most")
    option(
        "--region",
        type=region,
        metavar="X,Y,W,H",
        help="classify a part of the frame: left, top, width and height as shares of it, e.g. 0.25,0,0.5,1",
    )
    option("--frames", type=console.count, metavar="N", help="end after N classified frames")
    option("--seconds", type=console.duration, metavar="N", help="end after N seconds")
    option(
        "--every",
        type=console.seconds,
        metavar="SECONDS",
        help="seconds between two lines (default: 5, and 60 where the output is no terminal)",
    )
    option(
        "--min-probability",
        type=share,
        metavar="P",
        help="a label with less than this probability counts as none (0 to 1)",
    )
    option(
        "--stable",
        type=stable,
        metavar="N|Ns",
        help="another answer counts after N frames in a row, or after N seconds (e.g. 2s); default: at once",
    )
    option(
        "--change", action="store_true", help="write JSON lines for answers that changed only, not for all"
    )
    option(
        "--log",
        type=console.path,
        metavar="FILE",
        help="append each answer as a JSON line; a full file becomes FILE.1",
    )
    option(
        "--log-bytes",
        type=console.count,
        metavar="N",
        help=f"size at which that happens (default: {LOG_BYTES})",
    )
    option(
        "--on-change",
        metavar="COMMAND",
        help="run a command when the answer changes, with the label and its probability in per cent as last"
        " arguments; no shell, at most 10 s",
    )
    option(
        "--mqtt",
        metavar="URL",
        help="publish changes: mqtt://host[:port]/topic, or mqtts:// (needs paho-mqtt), with Home Assistant's"
        " discovery; user and password come from VGG_MQTT_USER and VGG_MQTT_PASSWORD or --mqtt-login",
    )
    option(
        "--mqtt-login",
        type=console.path,
        metavar="FILE",
        help="a file with the user and the password, a line each",
    )


def share(text: str) -> float:
    """A number of 0 to 1."""
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a number of 0 to 1, found {text!r}") from None
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"expected a number of 0 to 1, found {text}")
    return value


def region(text: str) -> tuple[float, float, float, float]:
    """Left, top, width and height as shares of a frame."""
    parts = text.split(",")
    if len(parts) != 4:
        raise argparse.ArgumentTypeError(f"expected X,Y,W,H as shares of the frame, found {text!r}")
    left, top, width, height = map(share, parts)
    if not width or not height or left + width > 1 + 1e-9 or top + height > 1 + 1e-9:
        raise argparse.ArgumentTypeError(
            f"expected a part of the frame, within 0 to 1 both ways and not empty, found {text!r}"
        )
    return left, top, width, height


def stable(text: str) -> Stability:
    """Frames in a row, or seconds with an s behind."""
    if text.endswith("s"):
        return Stability(seconds=console.seconds(text[:-1]))
    return Stability(frames=console.count(text))


def stability(options: argparse.Namespace) -> Stability:
    """When another answer counts."""
    found: Stability = options.stable or Stability()
    return dataclasses.replace(found, min_probability=options.min_probability or 0.0)


def command(words: str) -> list[str]:
    """The command and its arguments.

    Raises:
        RuntimeInputError: there are none, or a quotation does not end.
    """
    try:
        found = shlex.split(words)
    except ValueError as error:
        raise RuntimeInputError(f"--on-change cannot be read ({error}); found {words!r}") from error
    if not found:
        raise RuntimeInputError("--on-change takes a command, found none")
    return found


def refuse_alone(options: Mapping[str, Any]) -> None:
    """Refuse options that say how another one is done where that was not given.

    Raises:
        RuntimeInputError: the first of these.
    """
    for name, other in (("log_bytes", "log"), ("mqtt_login", "mqtt")):
        if options[name] is not None and options[other] is None:
            raise RuntimeInputError(f"--{name.replace('_', '-')} belongs to --{other}")
