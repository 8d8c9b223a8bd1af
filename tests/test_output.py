"""Documents are written as a whole or not at all, and what killed processes left is removed."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT

from vgg_runtime import output
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
