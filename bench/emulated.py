"""Emulates a Raspberry Pi: the device's own aarch64 wheels run under QEMU's user-mode emulation, on the core
of a Pi.

``prepare`` makes a folder with Debian's arm64 Python, the wheels of the device's requirements, and for each
board the files that a program reads below /proc and /sys. Python and the wheels are fetched once with apt-get
and pip into the user's cache (``vgg-export/emulated``; remove the folder to fetch anew). A board's ``python``
is a program of this machine, so that programs on the board can start children with ``sys.executable`` and no
binfmt_misc is needed.

The emulated board computes what the board computes, with the kernels that onnxruntime picks for that core.
Its time and memory are not the board's: they include the emulator's.
"""

import dataclasses
import functools
import hashlib
import itertools
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from vgg_export.core.errors import VggExportError
from vgg_export.core.files import exclusive

HERE = Path(__file__).resolve().parent
REQUIREMENTS = HERE.parent / "runtime/requirements.txt"
PLUGIN_SOURCE = HERE / "emulated_count.c"

# fetched with their dependencies; base-files says which system it is
PACKAGES = ("python3", "libstdc++6", "base-files")
# the others of base-files are empty and would hide this machine's /tmp
SYSTEM_FOLDERS = ("bin", "etc", "lib", "sbin", "usr")
PLATFORMS = (
    "manylinux_2_28_aarch64",
    "manylinux_2_27_aarch64",
    "manylinux_2_17_aarch64",
    "manylinux2014_aarch64",
)
# program: package of Debian
NEEDED = {"qemu-aarch64": "qemu-user", "gcc": "gcc libc6-dev", "apt-get": "apt", "dpkg": "dpkg"}
FETCH_S = 900

Report = Callable[[str], None]


class EmulationError(VggExportError):
    """Why a board cannot be emulated here, or what went wrong in one, in one sentence."""


@dataclasses.dataclass(frozen=True)
class Board:
    """What /proc says on a board. ``core`` is QEMU's name of the core; ``ram_bytes`` is that of the smallest
    such board."""

    core: str
    model: str
    features: str
    variant: int
    part: int
    revision: int
    ram_bytes: int
    cores: int = 4

    @property
    def name(self) -> str:
        return self.core.title()

    def files(self) -> dict[str, str]:
        """The text of each file, by its path below the root. Without this cpuinfo onnxruntime reads this
        machine's and crashes."""
        core = (
            f"BogoMIPS\t: 108.00\nFeatures\t: {self.features}\nCPU implementer\t: 0x41\nCPU architecture: 8\n"
            f"CPU variant\t: {self.variant:#x}\nCPU part\t: {self.part:#x}\nCPU revision\t:"
            f" {self.revision}\n\n"
        )
        kilobytes = self.ram_bytes // 1024
        return {
            "proc/cpuinfo": "".join(f"processor\t: {k}\n{core}" for k in range(self.cores))
            + f"Model\t\t: {self.model}\n",
            "proc/meminfo": f"MemTotal: {kilobytes:>10} kB\nMemFree: {kilobytes // 2:>10}"
            f" kB\nMemAvailable: {kilobytes // 2:>10} kB\n",
            "proc/device-tree/model": self.model + "\0",
            **{
                f"sys/devices/system/cpu/{which}": f"0-{self.cores - 1}\n"
                for which in ("possible", "present")
            },
        }


# Empty folders hide this machine's sensors, so that no program takes them for the board's. An emulated board
# has none.
HIDDEN = ("sys/class/thermal", "sys/devices/platform")

_ARMV8 = "fp asimd evtstrm crc32 cpuid"
_ARMV82 = "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp"
BOARDS = {
    board.core: board
    for board in (
        Board("cortex-a53", "Raspberry Pi Zero 2 W Rev 1.0", _ARMV8, 0, 0xD03, 4, 436 << 20),
        Board("cortex-a72", "Raspberry Pi 4 Model B Rev 1.4", _ARMV8, 0, 0xD08, 3, 922 << 20),
        Board("cortex-a76", "Raspberry Pi 5 Model B Rev 1.0", _ARMV82, 4, 0xD0B, 1, 2016 << 20),
    )
}


@dataclasses.dataclass(frozen=True)
class Count:
    """What the marking thread executed since the mark before. ``instructions`` includes the
    ``dot_products``."""

    instructions: int
    dot_products: int


@dataclasses.dataclass(frozen=True)
class Pi:
    """A board that programs can be run on. A program may take ``patience_s`` at most."""

    board: Board
    python: Path
    plugin: Path
    patience_s: float = 3600

    def run(self, *arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run the board's Python, whatever its exit code. Of this machine's environment it gets only the
        setting for telemetry.

        Raises:
            EmulationError: it took too long, and was ended.
        """
        command = [str(self.python), *map(str, arguments)]
        # not every program there begins with vgg_runtime, which sets it
        telemetry = os.environ.get("ORT_DISABLE_TELEMETRY", "1")
        fixed = {
            "PATH": os.defpath,
            "LANG": "C.UTF-8",
            "PYTHONHASHSEED": "0",
            "ORT_DISABLE_TELEMETRY": telemetry,
        }
        variables = fixed | environment
        try:
            return subprocess.run(
                command, capture_output=True, text=True, env=variables, timeout=self.patience_s, check=False
            )
        except subprocess.TimeoutExpired as error:
            raise EmulationError(
                f"{self.board.name}: the program took longer than {self.patience_s:g} s and was ended"
            ) from error

    def count(self, *arguments: str | Path, **environment: str) -> tuple[str, tuple[Count, ...]]:
        """Run a program on the board and count. Returns what it prints, and what it executed between each two
        of its marks (see ``MARK`` in the plugin).

        Raises:
            EmulationError: it failed, or set fewer than two marks.
        """
        with tempfile.TemporaryDirectory() as folder:
            marks = Path(folder) / "marks"
            plugin = ",".join([_option(self.plugin), f"out={_option(marks)}"])
            done = self.run(*arguments, QEMU_PLUGIN=plugin, **environment)
            if done.returncode:
                raise EmulationError(
                    f"{self.board.name}: the program ended with code {done.returncode}:"
                    f" {_last_line(done.stderr)}"
                )
            lines = marks.read_text(encoding="ascii").splitlines() if marks.exists() else []
        if len(lines) < 2:
            raise EmulationError(
                f"{self.board.name}: the program set {len(lines)} marks, expected at least 2 to count"
                " between them"
            )
        at = [tuple(map(int, line.split()[1:])) for line in lines]
        return done.stdout, tuple(Count(b[0] - a[0], b[1] - a[1]) for a, b in itertools.pairwise(at))


def _option(path: Path) -> str:
    """A path within QEMU's options, where a comma ends a value unless it is doubled."""
    return str(path).replace(",", ",,")


def chosen(names: str) -> list[Board]:
    """The boards that a list such as "cortex-a72,cortex-a76" names.

    Raises:
        EmulationError: it names none, or one that is not known.
    """
    wanted = list(dict.fromkeys(name.strip() for name in names.split(",") if name.strip()))
    unknown = [name for name in wanted if name not in BOARDS]
    if unknown or not wanted:
        raise EmulationError(
            f"there is no core {unknown[0] if unknown else names!r}; known are {', '.join(BOARDS)}"
        )
    return [BOARDS[name] for name in wanted]


def cache_folder() -> Path:
    """Where what was fetched is kept."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vgg-export" / "emulated"


def _ignore(_: str) -> None:
    """Report no progress."""


def prepare(
    cache: Path | None = None, requirements: Path = REQUIREMENTS, report: Report = _ignore
) -> dict[str, Pi]:
    """Every board by its core's name, fetched if it is not in the cache.

    Raises:
        EmulationError: a program is missing, or something could not be fetched or made.
        OutputError: the cache cannot be written.
    """
    _require()
    cache = (cache or cache_folder()).resolve()
    folder = cache / f"pi-{_key(cache, requirements)}"
    with exclusive(cache):
        if not folder.exists():
            scratch = Path(tempfile.mkdtemp(prefix=".", dir=cache))
            try:
                _Making(scratch, folder, report).everything(requirements)
                scratch.chmod(0o755)
                scratch.rename(folder)
            finally:
                shutil.rmtree(scratch, ignore_errors=True)
    return {core: Pi(board, _python_of(folder, board), folder / "count.so") for core, board in BOARDS.items()}


def _require() -> None:
    """Say which program is missing, and in which package it is."""
    missing = [program for program in NEEDED if not shutil.which(program)]
    if missing:
        packages = " ".join(NEEDED[program] for program in missing)
        raise EmulationError(
            f"a Raspberry Pi cannot be emulated here: {', '.join(missing)} not found; on Debian: apt-get"
            f" install {packages}"
        )
    if "-plugin" not in _output("qemu-aarch64", "--help"):
        raise EmulationError(
            "this qemu-aarch64 was built without plugins and cannot count; Debian's qemu-user can"
        )


def _output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False).stdout


@functools.cache
def emulator() -> str:
    """The emulator's name and version, e.g. "qemu-aarch64 7.2.22"."""
    found = re.search(r"version (\d[\w.]*)", _output("qemu-aarch64", "--version"))
    return f"qemu-aarch64 {found[1] if found else 'of an unknown version'}"


def _key(cache: Path, requirements: Path) -> str:
    """A hash of all that the prepared folder depends on. Its own path is written into it, and this file is
    the recipe."""
    texts = [path.read_text("utf-8") for path in (Path(__file__), PLUGIN_SOURCE, requirements)]
    return hashlib.sha256(repr((cache, emulator(), _suite(), *texts)).encode()).hexdigest()[:16]


def _suite() -> str:
    """The release of this machine's system: apt-get fetches the board's packages from the same one."""
    path = Path("/etc/os-release")
    return path.read_text("utf-8") if path.exists() else ""


def _python_of(folder: Path, board: Board) -> Path:
    return folder / board.core / "venv/bin/python3"


@dataclasses.dataclass(frozen=True)
class _Making:
    """Lays everything out in ``scratch``, which will be renamed to ``folder``."""

    scratch: Path
    folder: Path
    report: Report

    def everything(self, requirements: Path) -> None:
        self.report("fetching Debian's arm64 Python")
        version = self.system()
        self.report("fetching the aarch64 wheels of the device's requirements")
        self.wheels(requirements, version)
        for board in BOARDS.values():
            self.board(board, version)
        self.plugin()

    def system(self) -> str:
        """An arm64 system in ``system``; the version of its Python, e.g. "3.11"."""
        apt = self.scratch / "apt"
        for name in ("lists/partial", "archives/partial"):
            (apt / name).mkdir(parents=True)
        (apt / "status").touch()  # nothing is installed there, so that everything needed is fetched
        settings = {
            "APT::Architecture": "arm64",
            "APT::Architectures": "arm64",
            "APT::Sandbox::User": "",  # the user _apt may not write here
            "Dir::State": apt,
            "Dir::State::status": apt / "status",
            "Dir::Cache": apt,
        }
        options: list[str] = [part for key, value in settings.items() for part in ("-o", f"{key}={value}")]
        _do("apt-get", "-qq", *options, "update")
        _do(
            "apt-get",
            "-qq",
            "-y",
            *options,
            "--no-install-recommends",
            "--download-only",
            "install",
            *PACKAGES,
        )
        for package in sorted((apt / "archives").glob("*.deb")):
            _do("dpkg", "-x", package, self.scratch / "system")
        shutil.rmtree(apt)
        found = sorted((self.scratch / "system/usr/bin").glob("python3.*[0-9]"))
        if not found:
            raise EmulationError(
                "Debian's python3 package for arm64 brought no usr/bin/python3.N; does this system have"
                " arm64 packages?"
            )
        return found[0].name.removeprefix("python")

    def wheels(self, requirements: Path, version: str) -> None:
        """The device's requirements in ``packages``."""
        platforms = [part for platform in PLATFORMS for part in ("--platform", platform)]
        kind = ["--only-binary=:all:", "--implementation", "cp", "--python-version", version, *platforms]
        where = ["--target", str(self.scratch / "packages"), "--no-compile"]
        _do(
            sys.executable,
            "-m",
            "pip",
            "install",
            "-q",
            "--disable-pip-version-check",
            *kind,
            *where,
            "-r",
            requirements,
        )

    def board(self, board: Board, version: str) -> None:
        """A root for the board, and a virtual environment whose interpreter starts the emulator.

        Paths that the root has are the board's, all others this machine's. The interpreter tells the emulated
        Python its own name (-0), so that it is what children are started with and where pyvenv.cfg is found.
        """
        root, final = self.scratch / board.core, self.folder / board.core
        for name in SYSTEM_FOLDERS:
            if (self.scratch / "system" / name).exists():
                _link(root / name, f"../system/{name}")
        for path, text in board.files().items():
            _write(root / path, text)
        for path in HIDDEN:
            (root / path).mkdir(parents=True)
        interpreter = self.folder / f"system/usr/bin/python{version}"
        qemu = [shutil.which("qemu-aarch64") or "qemu-aarch64", "-L", str(final), "-cpu", board.core, "-0"]
        _write(
            root / "venv/bin/python3",
            f'#!/bin/sh\nexec {shlex.join(qemu)} "$0" {shlex.quote(str(interpreter))} "$@"\n',
        )
        (root / "venv/bin/python3").chmod(0o755)
        _write(
            root / "venv/pyvenv.cfg", f"home = {interpreter.parent}\ninclude-system-site-packages = false\n"
        )
        _link(root / f"venv/lib/python{version}/site-packages", "../../../../packages")

    def plugin(self) -> None:
        """The counting plugin in ``count.so``."""
        major = int(re.sub(r"\D.*", "", emulator().rpartition(" ")[2]) or 0)
        version = f"-DPLUGIN_VERSION={2 if major >= 9 else 1}"
        _do(
            "gcc",
            "-O2",
            "-Wall",
            "-Wextra",
            "-shared",
            "-fPIC",
            version,
            "-o",
            self.scratch / "count.so",
            PLUGIN_SOURCE,
        )


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def _link(path: Path, target: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(target)


def _do(*command: str | Path) -> None:
    """Run a step of the preparation.

    Raises:
        EmulationError: it took too long, or it failed; then the message quotes its last line.
    """
    text = [str(part) for part in command]
    try:
        done = subprocess.run(
            text, capture_output=True, text=True, timeout=FETCH_S, check=False, stdin=subprocess.DEVNULL
        )
    except subprocess.TimeoutExpired as error:
        raise EmulationError(
            f"preparing the emulated board: {Path(text[0]).name} took longer than {FETCH_S} s; try again"
        ) from error
    if done.returncode:
        said = _last_line(done.stderr or done.stdout)
        raise EmulationError(
            f"preparing the emulated board failed ({Path(text[0]).name}: {said}); check the network"
        )


def _last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1].strip()[:300] if lines else "it printed nothing"
