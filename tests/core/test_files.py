"""A folder that is replaced is there before or afterwards, wherever the process dies; two at once wait."""

import errno
import fcntl
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import command_environment

from vgg_export import terminal
from vgg_export.core import files
from vgg_export.core.errors import OpeningError, OutputError


def put(place: Path, content: str) -> None:
    with files.folder_beside(place) as folder:
        (folder / "file").write_text(content)


@pytest.mark.parametrize("can_exchange", [True, False])
def test_a_folder_takes_the_place_of_another_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, can_exchange: bool
) -> None:
    if not can_exchange:
        monkeypatch.setattr(files, "_exchanged", lambda *_: False)
    put(tmp_path / "place", "old")
    put(tmp_path / "place", "new")
    assert (tmp_path / "place/file").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["place"]


def test_folders_are_exchanged_in_one_step(tmp_path: Path) -> None:
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    if not files._exchanged(tmp_path / "one", tmp_path / "other"):
        pytest.skip("this system cannot exchange folders")
    assert (tmp_path / "one/other").is_file()
    assert (tmp_path / "other/one").is_file()


def test_the_old_folder_stays_where_the_new_one_fails(tmp_path: Path) -> None:
    put(tmp_path / "place", "old")
    with (
        pytest.raises(OutputError, match="the disk is full while writing"),
        files.folder_beside(tmp_path / "place"),
    ):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert (tmp_path / "place/file").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["place"]


def test_a_file_that_a_killed_process_began_is_removed_by_the_next(tmp_path: Path) -> None:
    program = (
        "import os, pathlib, sys\nfrom vgg_export.core import files\n"
        "with files.atomic_file(pathlib.Path(sys.argv[1])) as path:\n"
        "    path.write_text('half')\n    os.kill(os.getpid(), 9)\n"
    )
    for name in ("figures.json", "figures.json.b"):
        command = [sys.executable, "-c", program, str(tmp_path / name)]
        assert subprocess.run(command, env=command_environment(), check=False).returncode == -9
    one, other = sorted(tmp_path.iterdir(), key=lambda path: len(path.name))
    assert files.is_unfinished(one.name)
    with files.atomic_file(tmp_path / "figures.json") as path:
        path.write_text("{}")
    assert one.exists()  # it is young: perhaps a process of another container writes it
    for path in (one, other):
        os.utime(path, (0, 0))
    with files.atomic_file(tmp_path / "figures.json") as path:
        path.write_text("[]")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([other.name, "figures.json"])
    assert (tmp_path / "figures.json").read_text() == "[]"


@pytest.mark.parametrize(("there", "expected"), [(False, "old"), (True, "new")])
def test_what_a_kill_between_two_renames_leaves_is_put_right(
    tmp_path: Path, there: bool, expected: str
) -> None:
    put(tmp_path / ".place.old", "old")
    put(tmp_path / ".place.abcd1234.partial", "half")
    put(tmp_path / ".place.b.abcd1234.partial", "of the output place.b")
    if there:
        put(tmp_path / "place", "new")
    with files.exclusive_output(tmp_path / "place"):
        assert (tmp_path / "place/file").read_text() == expected
    assert sorted(path.name for path in tmp_path.iterdir()) == [".place.b.abcd1234.partial", "place"]


def test_a_work_folder_loses_what_was_unfinished_and_nothing_else(tmp_path: Path) -> None:
    left = [
        ".a.onnx.abcd1234.partial",
        ".c.onnx.by-17.abcd1234.partial",
        "layers/.b.abcd_234.partial",
        ".scratch.abcd1234/maps",
    ]
    kept = ["a.onnx", ".a.onnx.0123.parts/layer", "my.partial", ".scratch.mine"]
    for name in (*left, *kept):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    with files.exclusive(tmp_path):
        found = {p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file()}
    assert found == {*kept, ".lock"}


SECOND = """
import logging, pathlib, sys
logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
from vgg_export.core import files
with files.exclusive_output(pathlib.Path(sys.argv[1])):
    print("in")
"""


def test_the_second_one_says_that_it_waits_and_then_has_its_turn(tmp_path: Path) -> None:
    place = tmp_path / "place"
    command = [sys.executable, "-u", "-c", SECOND, str(place)]
    with files.exclusive_output(place):
        other = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=command_environment())
        assert other.stdout is not None
        assert other.stdout.readline() == f"another vgg-export works in {place}; waiting until it has ended\n"
        assert other.poll() is None
    assert other.communicate(timeout=60)[0] == "in\n"
    assert other.returncode == 0
    assert list(tmp_path.iterdir()) == []  # the lock, too, is gone


def test_a_file_system_without_locks_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(OutputError, match="No locks available"), files.exclusive(tmp_path / "work"):
        pass


@pytest.mark.parametrize(
    ("number", "sentence"),
    [
        (errno.ENOSPC, "/a/b: the disk is full"),
        (errno.EIO, "/a/b: the disk or its connection failed"),
        (errno.EACCES, "/a/b: this user may not"),
        (errno.EROFS, "/a/b: the folder is read-only"),
        (errno.EMFILE, "/a/b: this program may not open so many files"),
    ],
)
def test_what_the_machine_refuses_is_no_surprise(
    number: int, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    error = OSError(number, "in other words", "/a/b")
    assert not terminal.is_a_surprise(error)
    assert terminal.explain(error) == 1
    assert sentence in capsys.readouterr().err


@pytest.mark.parametrize(
    "said",
    [
        "[ONNXRuntimeError] : 1 : FAIL : Load model from a.onnx failed:system error number 24",
        "Exception during initialization: initializer.cc:79 Initializer(const Graph&) SystemError : 24",
    ],
)
def test_what_onnxruntime_tells_of_the_machine_is_no_surprise(
    said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert terminal.explain(RuntimeError(said)) == 1
    assert "Error: this program may not open so many files" in capsys.readouterr().err
    assert terminal.is_a_surprise(RuntimeError(said.replace("24", "999")))


def test_a_file_that_a_library_cannot_open_is_not_called_missing(tmp_path: Path) -> None:
    path = tmp_path / "there"
    path.write_bytes(b"x")
    expected = pytest.raises(
        OpeningError, match="there could not be opened, although it is there; run the same"
    )
    with expected, files.opened_by_library(path):
        raise FileNotFoundError("No such file or directory: there")
    for missing in (tmp_path / "missing", tmp_path / "there/below"):
        with pytest.raises(OSError, match=r"No such file|Not a directory"), files.opened_by_library(missing):
            missing.open("rb")


@pytest.mark.release
def test_a_checkpoint_among_too_many_open_files(tmp_path: Path) -> None:
    """The library calls it missing."""
    program = (
        "import pathlib, resource, sys\n"
        "from vgg_export import terminal\n"
        "from vgg_export.network import checkpoint\n"
        "import safetensors.torch\n"
        "path = pathlib.Path(sys.argv[1])\n"
        "safetensors.torch.save_file({'a': safetensors.torch.torch.zeros(2)}, path)\n"
        "checkpoint.is_checkpoint(path)\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))\n"
        "held = []\n"
        "try:\n    while True: held.append(open('/dev/null'))\n"
        "except OSError: pass\n"
        "try: checkpoint.is_checkpoint(path)\n"
        "except Exception as error: found = error\n"
        "held.clear()\n"
        "sys.exit(terminal.explain(found))\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "a.safetensors")]
    done = subprocess.run(command, env=command_environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert "a.safetensors: this program may not open so many files" in done.stderr


def test_a_scratch_folder_is_known_as_one(tmp_path: Path) -> None:
    with files.scratch_folder(tmp_path) as folder:
        assert files.is_unfinished(folder.name)
    with files.exclusive(tmp_path / "work"), files.scratch_folder(tmp_path / "work") as folder:
        kept = folder.rename(folder.with_name(".scratch.123456.abcdefgh"))
        folder.mkdir()
    with files.exclusive(tmp_path / "work"):
        assert not kept.exists()


def test_scratch_of_a_killed_process_is_removed_by_the_next(tmp_path: Path) -> None:
    program = (
        "import os, pathlib, signal, sys\n"
        "from vgg_export.core import files\n"
        "with files.scratch_folder(pathlib.Path(sys.argv[1])) as folder:\n"
        "    (folder / 'maps').write_bytes(b'x')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    subprocess.run(command, env=command_environment(), check=False)
    (left,) = tmp_path.iterdir()
    with files.scratch_folder(tmp_path) as own:
        assert left.exists()  # it may be another container's, of the same moment
        assert own.exists()
    os.utime(left, times=(time.time() - 3600,) * 2)
    with files.scratch_folder(tmp_path) as own, files.scratch_folder(tmp_path) as other:
        assert sorted(tmp_path.iterdir()) == sorted([own, other])
    assert list(tmp_path.iterdir()) == []
