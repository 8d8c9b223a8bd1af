"""What the board's own Python refuses: paths that lead out of the bundle's folder."""

import contextlib
import hashlib
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vgg_export.deploy import on_board

CONTENT = b"a stranger's"
OUTSIDE = ("/", "..", "a/../../x", "./x", "a//x", "x/", "", "a\nb")


def ask(root: Path, do: str, feed: bytes = b"", /, **request: Any) -> dict[str, Any]:
    """The last answer to a request about ``root``."""
    line = json.dumps({"do": do, "root": str(root), **request}).encode() + b"\n"
    answers = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(answers):
        patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(line + feed)))
        on_board.main()
    said = [one for one in answers.getvalue().splitlines() if one.startswith(on_board.MARK)]
    return dict(json.loads(said[-1].removeprefix(on_board.MARK)))


def files(path: str) -> list[tuple[str, int, str]]:
    return [(path, len(CONTENT), hashlib.sha256(CONTENT).hexdigest())]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "board"
    (folder / on_board.INCOMING).mkdir(parents=True)
    return folder


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    file = tmp_path / "victim.txt"
    file.write_text("mine")
    return file


STEPS: dict[str, Callable[[Path, str], dict[str, Any]]] = {
    "look": lambda root, path: ask(root, "look", files=files(path)),
    "receive": lambda root, path: ask(root, "receive", CONTENT, files=files(path)),
    "place": lambda root, path: ask(root, "place", files=files(path), keep=[]),
    "record": lambda root, path: ask(root, "place", files=[], keep=[path]),
    "fetch": lambda root, path: ask(root, "fetch", path=path),
    "forget": lambda root, path: ask(root, "forget", paths=[path]),
}


@pytest.mark.parametrize("step", STEPS)
def test_a_path_that_leads_out_of_the_folder_is_refused(step: str, root: Path, victim: Path) -> None:
    for path in (str(victim), f"/{victim}", f"../{victim.name}"):  # two leading slashes are one more root
        said = STEPS[step](root, path)
        assert said == {"refused": f"{path!r} is no path inside the bundle's folder; do not use this bundle"}
    assert victim.read_text() == "mine"
    assert [p.name for p in root.rglob("*")] == [".deploy", "incoming"]


@pytest.mark.parametrize("path", OUTSIDE)
def test_what_is_no_path_below_a_folder(path: str) -> None:
    assert not on_board.is_relative(path)


def test_usual_paths_are_paths_below_a_folder() -> None:
    assert all(map(on_board.is_relative, ("manifest.json", "models/a b.onnx", ".deploy/wheels/ü..x.whl")))


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("link", ["models", "models/x.onnx"])
def test_a_link_that_leads_out_of_the_folder_is_refused(
    link: str, step: str, root: Path, victim: Path
) -> None:
    """Wherever it lies: at a file's place, and where files arrive."""
    outside = victim.parent / "outside"
    outside.mkdir()
    (outside / "x.onnx").write_text("mine")
    for folder in (root, root / on_board.INCOMING):
        (folder / link).parent.mkdir(exist_ok=True)
        (folder / link).symlink_to(outside if link == "models" else outside / "x.onnx")
    said = STEPS[step](root, "models/x.onnx")["refused"]
    assert said.startswith(f"a link on the way to {root}/")
    assert said.endswith(
        "leads out of the bundle's folder; remove the link, or name another folder with --path"
    )
    assert (outside / "x.onnx").read_text() == "mine"


@pytest.mark.parametrize("name", [on_board.OWN, on_board.INCOMING])
def test_a_link_in_place_of_our_own_folder_is_refused(name: str, root: Path, victim: Path) -> None:
    """What lies in the folder for incoming files and is not expected is removed."""
    (root / on_board.INCOMING).rmdir()
    if name == on_board.OWN:
        (root / on_board.OWN).rmdir()
    (root / name).symlink_to(victim.parent)
    for request in ({"do": "look", "files": []}, {"do": "prepare"}):
        assert "leads out of the bundle's folder" in ask(root, str(request.pop("do")), **request)["refused"]
    assert victim.read_text() == "mine"


def test_links_inside_the_folder_and_to_the_folder_are_fine(root: Path) -> None:
    (root / "disk").mkdir()
    (root / "models").symlink_to("disk")
    other = root.parent / "other"
    other.symlink_to(root)
    assert ask(other, "receive", CONTENT, files=files("models/x")) == {"done": True}
    assert ask(other, "place", files=files("models/x"), keep=["models/x"]) == {"differing": []}
    assert (root / "disk/x").read_bytes() == CONTENT


def test_what_is_recorded_as_placed_and_lies_outside_is_not_removed(root: Path, victim: Path) -> None:
    """Neither is anything else moved or removed before that."""
    list_of_placed, arrived = root / on_board.PLACED, root / on_board.INCOMING / "x"
    for path in (str(victim), f"/{victim}", "../victim.txt"):
        list_of_placed.write_text(json.dumps(["mine.txt", path]))
        arrived.write_bytes(CONTENT)
        (root / "mine.txt").write_text("placed")
        sentence = (
            f"{list_of_placed} names {path!r}, which is not inside the bundle's folder; remove that list"
        )
        for step in ("look", "place"):
            assert ask(root, step, files=files("x"), keep=["x"]) == {"refused": sentence}
        assert [victim.read_text(), (root / "mine.txt").read_text()] == ["mine", "placed"]
        assert not (root / "x").exists()


@pytest.mark.parametrize("damaged", ["{", '{"x": 1}', "[1, null]", "null"])
def test_a_damaged_list_of_what_was_placed_removes_nothing(damaged: str, root: Path) -> None:
    (root / on_board.PLACED).write_text(damaged)
    (root / "x").write_bytes(CONTENT)
    assert ask(root, "place", files=[], keep=["x"]) == {"differing": []}
    assert json.loads((root / on_board.PLACED).read_text()) == ["x"]


def test_only_what_was_placed_and_is_no_longer_wanted_is_removed(root: Path) -> None:
    for name in ("old", "kept", "mine"):
        (root / name).write_text(name)
    (root / on_board.PLACED).write_text(json.dumps(["old", "kept"]))
    assert ask(root, "place", files=[], keep=["kept"]) == {"differing": []}
    assert sorted(p.name for p in root.iterdir()) == [".deploy", "kept", "mine"]
