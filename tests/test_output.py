"""Documents are written as a whole or not at all, also where nothing can be printed; what killed processes
left is removed."""

import errno
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT
from launch import QUICK
from PIL import Image

from vgg_runtime import console, output
from vgg_runtime.errors import RuntimeInputError

HOUR_S = 3600.0
OTHERS = (".app.20251128.tar", ".app.20240101.bak", ".compare-999999999.partial.txt", ".scratch.20251128.zip")


def ended() -> int:
    """The number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def left_by(pid: int, folder: Path, age_s: float = HOUR_S) -> Path:
    path = folder / f".compare-{pid}.partial"
    path.write_text("half")
    os.utime(path, times=(time.time() - age_s,) * 2)
    return path


def test_what_killed_processes_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    gone = left_by(ended(), tmp_path)
    kept = [
        left_by(os.getppid(), tmp_path),  # it lives
        left_by(ended(), tmp_path, age_s=5.0),  # perhaps another container's
        left_by(ended(), tmp_path).rename(tmp_path / ".compare-x.partial"),
        left_by(ended(), tmp_path).rename(tmp_path / "mine.partial"),
        *(left_by(ended(), tmp_path).rename(tmp_path / name) for name in OTHERS),
    ]
    output.write(tmp_path / "r.json", "{}")
    assert (tmp_path / "r.json").read_text() == "{}"
    assert not gone.exists()
    assert all(path.exists() for path in kept)
    folder = tmp_path / f".app.shipping-{ended()}.abcd_123"
    (folder / "app").mkdir(parents=True)
    os.utime(folder, times=(time.time() - HOUR_S,) * 2)
    output.remove_abandoned(tmp_path, ".app.shipping-")
    assert not folder.exists()
    assert all(path.exists() for path in kept)


def test_a_folder_that_cannot_be_listed_stands_in_no_way(tmp_path: Path) -> None:
    output.remove_abandoned(tmp_path / "missing", ".compare-")


@pytest.mark.parametrize("number", ["EINVAL", "ENOTSUP", "EIO"])
def test_a_file_system_without_sync_is_enough_and_a_disk_that_fails_is_not(
    number: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import errno

    def fail(_: int) -> None:
        raise OSError(getattr(errno, number), "no")

    monkeypatch.setattr(os, "fsync", fail)
    path = tmp_path / "r.json"
    path.write_text("old")
    if number == "EIO":
        with pytest.raises(RuntimeInputError, match=r"r\.json cannot be written"):
            output.write(path, "new")
        assert path.read_text() == "old"
    else:
        output.write(path, "new")
        assert path.read_text() == "new"
    assert [one.name for one in tmp_path.iterdir()] == ["r.json"]


def test_a_temporary_folder_goes_and_where_it_cannot_it_stays_in_silence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with output.temporary_folder("x-", tmp_path) as folder:
        (folder / "file").write_text("x")
        assert folder.name.startswith("x-")
        assert folder.parent == tmp_path
    assert not folder.exists()

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    with output.temporary_folder(place=tmp_path) as folder:
        monkeypatch.setattr(os, "rmdir", refuse)
    assert folder.is_dir()


def test_no_temporary_folder_goes_round_in_circles_when_it_cannot_be_removed() -> None:
    sources = [path for part in ("export", "runtime", "calibration") for path in (ROOT / part).rglob("*.py")]
    assert len(sources) > 100
    using = [path.name for path in sources if "TemporaryDirectory(" in path.read_text(encoding="utf-8")]
    assert using == []


# Where standard output is closed, as with ``>&-``.


def unheard(bundle: Path, *arguments: str | Path) -> tuple[int, list[str]]:
    """The exit code of ``compare.py``, and what it said on standard error."""
    command = [sys.executable, str(bundle / "runtime/compare.py"), *map(str, arguments)]
    done = subprocess.run(
        ["bash", "-c", 'exec "$@" >&-', "bash", *command],
        stderr=subprocess.PIPE,
        text=True,
        timeout=300,
        check=False,
        env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
    )
    return done.returncode, done.stderr.splitlines()


NOT_PRINTED = "Error: what is printed cannot be written (Bad file descriptor)"


def test_a_closed_standard_output_loses_no_comparison(bundle_folder: Path, tmp_path: Path) -> None:
    result, page = tmp_path / "r.json", tmp_path / "r.html"
    asked = (*QUICK, "--variants", "scaled", "--json", result, "--html", page)
    code, said = unheard(bundle_folder, *asked)
    assert (code, said[-1]) == (1, NOT_PRINTED)
    assert json.loads(result.read_text())["variants"][0]["p50_ms"] > 0
    assert page.read_text().endswith("</html>\n")
    assert unheard(bundle_folder, "--diff", result, result) == (1, [NOT_PRINTED])


def test_a_closed_standard_output_ends_no_stream_unless_the_answers_go_there(
    bundle_folder: Path, tmp_path: Path
) -> None:
    frames = tmp_path / "frames"
    frames.mkdir()
    Image.new("RGB", (64, 64)).save(frames / "a.png")
    asked = ("--live", "scaled", "--source", frames, "--frames", "2", "--json")
    assert unheard(bundle_folder, *asked, tmp_path / "r.json") == (0, [])
    assert json.loads((tmp_path / "r.json").read_text())["live"]["frames"]["classified"] == 2
    code, said = unheard(bundle_folder, *asked, "-")
    assert (code, said[-1]) == (1, NOT_PRINTED)


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (
            OSError(errno.ENOSPC, "No space left on device"),
            "what is printed cannot be written (No space left",
        ),
        (OSError(errno.EACCES, "Permission denied", "/a"), "/a cannot be used (Permission denied)"),
        (OSError(errno.EMFILE, "x"), "this program may not open so many files; allow more, e.g. with ulimit"),
        (OSError(errno.EMFILE, "x", "/a"), "this program may not open so many files; allow more, e.g. with"),
        (OSError(errno.ENFILE, "x"), "the system has too many open files; close other programs"),
        (OSError(errno.ENOMEM, "x"), "the system has too little memory left; close other programs"),
    ],
)
def test_an_error_of_the_system_is_told_as_what_it_is(error: OSError, sentence: str) -> None:
    assert console._told(error).startswith(sentence)
