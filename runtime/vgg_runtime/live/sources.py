"""Sources of live frames: a folder, a file or pipe of JPEGs, a camera, an address. numpy and Pillow have no
video decoder. A camera is therefore read through a program of the system or through picamera2, if one of them
is installed.
"""

import collections
import contextlib
import os
import shutil
import stat
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from vgg_runtime.addresses import without_secrets
from vgg_runtime.bundle.images import BY_SYSTEM, WITHOUT_FILE, counted, is_system, with_unknown_suffix
from vgg_runtime.bundle.preprocess import SUFFIXES
from vgg_runtime.errors import RuntimeInputError
from vgg_runtime.text import printable

from . import network
from .frames import Item, Program, Source, paced, pictures_in, pieces_of, ticks

DEFAULT_FPS = 30.0
CAMERA_PX = (640, 480)  # few networks take more than 480 px; more pixels cost time
RESCAN_S = 1.0
A_FOLDER = "in the form of a folder"
PIPE_EXAMPLE = (
    "ffmpeg -i INPUT -an -c:v mjpeg -q:v 3 -f mjpeg - | python compare.py --live VARIANT --source -"
)


def open_source(wanted: str, fps: float | None, *, reconnect: bool = False) -> Source:
    """Open the source that ``--source`` names. ``fps``: frames per second of a source without a pace of its
    own. ``reconnect``: an address is asked again whenever it breaks off.

    Raises:
        RuntimeInputError: there is no such source, or a program that it needs is not installed.
    """
    path = Path(wanted)
    own_pace = wanted == "-" or path.is_fifo()
    if own_pace and fps is not None:
        raise RuntimeInputError(
            f"--fps is for a folder, a file or a camera; {without_secrets(wanted)} sends at its own pace"
        )
    pace = fps or DEFAULT_FPS
    if wanted == "camera":
        return _camera(pace)
    if "://" in wanted or wanted.startswith(network.FFMPEG):
        return network.open_address(wanted, fps, reconnect=reconnect)
    if reconnect:
        raise RuntimeInputError(f"--reconnect is for addresses; {without_secrets(wanted)} is none")
    if wanted == "-":
        return _standard_input()
    return _of_path(path, pace, own_pace=own_pace)


def _standard_input() -> Source:
    if sys.stdin is None or os.isatty(0):
        raise RuntimeInputError(
            "--source - expects JPEG pictures on standard input, which is a terminal here; pipe them, e.g."
            f" {PIPE_EXAMPLE}"
        )
    return Bytes("standard input", None, None)


def _of_path(path: Path, fps: float, *, own_pace: bool) -> Source:
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise RuntimeInputError(
            f"{without_secrets(str(path))} cannot be used ({error.strerror}); --source takes"
            " a folder, a file or pipe of JPEG pictures, - for standard input, an http address, a video"
            " device such as /dev/video0, or camera"
        ) from error
    if stat.S_ISDIR(mode):
        return Folder(path, fps)
    if stat.S_ISCHR(mode):
        return _video_device(path, fps)
    return Bytes(str(path), path, None if own_pace else fps)


class Folder:
    """The pictures of a folder in the order of their names, again and again. A new picture comes next."""

    def __init__(self, root: Path, fps: float) -> None:
        self.name = str(root)
        self._root, self._fps = root, fps
        if not self._list():
            there = [
                f"{count} {reason}" if reason == A_FOLDER else f"{count} files {reason}"
                for reason, count in self._unused(frozenset()).items()
            ]
            raise RuntimeInputError(
                f"{root} holds no pictures ({', '.join(SUFFIXES)}); expected at least one"
                + (f"; found {', '.join(there)}" if there else "")
            )

    def left_out(self) -> str | None:
        """How many of the files and folders there are used, and why others are not; None where all are."""
        used = frozenset(self._list())
        return counted(len(used), self._unused(used))

    def _unused(self, used: frozenset[str]) -> collections.Counter[str]:
        """The number of files and folders by the reason why they are not used."""
        reasons, others = collections.Counter[str](), []
        with contextlib.suppress(OSError), os.scandir(self._root) as entries:
            for entry in entries:
                is_folder = False
                with contextlib.suppress(OSError):  # a link to where nobody may look
                    is_folder = entry.is_dir()
                if is_system(entry.name, folder=is_folder):
                    reasons[BY_SYSTEM] += 1
                elif is_folder:
                    reasons[A_FOLDER] += 1
                elif entry.name.lower().endswith(SUFFIXES):
                    reasons[WITHOUT_FILE] += entry.name not in used
                else:
                    others.append(Path(entry.name))
        return collections.Counter({with_unknown_suffix(others): len(others)}) + reasons  # none is 0

    def frames(self, stopped: threading.Event) -> Iterator[Item]:
        known: set[str] = set()
        waiting: collections.deque[str] = collections.deque()
        listed = -RESCAN_S
        for now in ticks(self._fps, stopped):
            if now - listed >= RESCAN_S or not waiting:
                listed, names = now, self._list()
                waiting.extendleft(reversed([name for name in names if name not in known]))
                known = set(names)
                waiting.extend(names if not waiting else ())
            if not waiting:
                return  # the last picture was removed
            if (path := self._root / waiting.popleft()).exists():
                yield path

    def close(self) -> None:
        """Nothing was started."""

    def _list(self) -> list[str]:
        try:
            with os.scandir(self._root) as entries:
                return sorted(
                    e.name
                    for e in entries
                    if e.name.lower().endswith(SUFFIXES) and not e.name.startswith(".") and e.is_file()
                )
        except OSError as error:
            raise RuntimeInputError(
                f"{self._root} cannot be read ({error.strerror}); name a folder of pictures"
            ) from error


class Bytes:
    """JPEGs one after the other from a file or pipe, or from standard input where ``path`` is None. ``fps``
    is the frame rate of a file; it is None for a source that sends at its own pace."""

    def __init__(self, name: str, path: Path | None, fps: float | None) -> None:
        self.name = name
        self._path, self._fps = path, fps

    def frames(self, stopped: threading.Event) -> Iterator[Item]:
        try:
            # not sys.stdin: its lock, held by a waiting thread, would abort the interpreter at its end
            descriptor = os.open(self._path, os.O_RDONLY) if self._path else os.dup(0)
        except OSError as error:
            raise RuntimeInputError(f"{self.name} cannot be read ({error.strerror})") from error
        with contextlib.ExitStack() as stack:
            stack.callback(os.close, descriptor)
            pictures = pictures_in(pieces_of(descriptor, stopped))
            yield from pictures if self._fps is None else paced(pictures, self._fps, stopped)

    def close(self) -> None:
        """Nothing was started."""


class Picamera:
    """A camera module, read through picamera2."""

    def __init__(self, picamera2: Any, fps: float) -> None:
        self.name = "camera (picamera2)"
        self._picamera2, self._fps = picamera2, fps

    def frames(self, stopped: threading.Event) -> Iterator[Item]:
        camera = self._picamera2()
        try:
            # libcamera's name for bytes in the order red, green, blue
            main = {"size": CAMERA_PX, "format": "BGR888"}
            camera.configure(camera.create_video_configuration(main=main, controls={"FrameRate": self._fps}))
            camera.start()
            while not stopped.is_set():
                yield Image.fromarray(camera.capture_array("main"))
        finally:
            camera.close()

    def close(self) -> None:
        """The camera is released by the thread that reads it."""


def _camera(fps: float) -> Source:
    """A camera module, read through picamera2 or else through rpicam-vid."""
    try:
        from picamera2 import Picamera2
    except Exception as error:  # missing, or built for another Python or numpy
        reason = printable(str(error), 120)
    else:
        return Picamera(Picamera2, fps)
    for program in ("rpicam-vid", "libcamera-vid"):  # the latter is its name before Bookworm
        if shutil.which(program):
            size = ("--width", str(CAMERA_PX[0]), "--height", str(CAMERA_PX[1]))
            options = (
                "-n",
                "-t",
                "0",
                "-v",
                "0",
                "--codec",
                "mjpeg",
                *size,
                "--framerate",
                f"{fps:g}",
                "--flush",
                "-o",
                "-",
            )
            return Program(f"camera ({program})", (program, *options))
    raise RuntimeInputError(
        f"no camera module can be read: picamera2 cannot be imported ({reason}), and there is no"
        " rpicam-vid. On Raspberry Pi OS:"
        " sudo apt install rpicam-apps-lite, or python3-picamera2 and a virtual environment made with"
        " --system-site-packages"
    )


def _video_device(path: Path, fps: float) -> Source:
    """A USB camera, read through ffmpeg. It must send MJPEG, as most do; ffmpeg only copies it."""
    if not shutil.which("ffmpeg"):
        raise RuntimeInputError(
            f"reading {path} needs ffmpeg: sudo apt install ffmpeg; for a camera module use --source camera"
        )
    camera = (
        "-f",
        "v4l2",
        "-input_format",
        "mjpeg",
        "-framerate",
        f"{fps:g}",
        "-video_size",
        "{}x{}".format(*CAMERA_PX),
    )
    return Program(
        str(path),
        (
            "ffmpeg",
            "-nostdin",
            "-loglevel",
            "error",
            *camera,
            "-i",
            str(path),
            "-c:v",
            "copy",
            "-f",
            "mjpeg",
            "-",
        ),
    )
