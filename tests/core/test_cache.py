import dataclasses
import errno
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from vgg_export.core import cache, files
from vgg_export.core.errors import CheckpointError, DataError, OutputError
from vgg_runtime.records import Record


@dataclasses.dataclass(frozen=True)
class Length(Record):
    """What the stage of these tests measures."""

    length: int


STAGE = cache.Stage("test", cache.__name__, Length)


def make(text: str, calls: list[str]) -> Callable[[Path], Length]:
    def write(path: Path) -> Length:
        calls.append(text)
        path.write_text(text)
        return Length(len(text))

    return write


def test_work_is_done_once_per_content(tmp_path: Path) -> None:
    calls: list[str] = []
    source, output = tmp_path / "in.txt", tmp_path / "out.txt"
    source.write_text("one")

    def run(options: dict[str, object]) -> cache.Artifact:
        return cache.produce(STAGE, options, {"in": cache.of(source)}, output, make("made", calls))

    first = run({"a": 1})
    os.utime(source)  # a new time is not new content
    assert run({"a": 1}).sha256 == first.sha256
    assert len(calls) == 1
    run({"a": 2})
    assert len(calls) == 2
    source.write_text("two")
    run({"a": 2})
    assert len(calls) == 3
    # a stage may pass on what its input's says
    files.write_json(cache.sidecar_path(source), {"measured": {"labels": ["cat"]}})
    run({"a": 2})
    assert len(calls) == 4
    output.write_text("touched")
    assert run({"a": 2}).path.read_text() == "made"
    assert len(calls) == 5
    cache.sidecar_path(output).write_text("{broken")
    run({"a": 2})
    assert len(calls) == 6
    sidecar = json.loads(cache.sidecar_path(output).read_text())
    for damaged in ({"length": "4"}, {}, None):
        files.write_json(cache.sidecar_path(output), sidecar | {"measured": damaged})
        with pytest.raises(DataError, match=r"out.txt.json is missing or damaged .*; make out.txt again"):
            cache.of(output).read(Length)
        assert run({"a": 2}).read(Length) == Length(4)
    assert len(calls) == 9
    sidecar = json.loads(cache.sidecar_path(output).read_text())
    assert sidecar["measured"] == {"length": 4}
    assert sidecar["inputs"] == {"in": cache.of(source).sha256}
    assert {"torch", "onnxruntime", "vgg-export"} <= sidecar["versions"].keys()


def test_what_cannot_be_is_damaged_too(tmp_path: Path) -> None:
    """As is a plan that contradicts itself: it refuses with an error of its own."""

    @dataclasses.dataclass(frozen=True)
    class Positive(Record):
        number: int

        def __post_init__(self) -> None:
            if self.number < 0:
                raise CheckpointError(f"{self.number} is not positive")

    stage = cache.Stage("positive", cache.__name__, Positive)
    output, calls = tmp_path / "out.txt", []

    def make(path: Path) -> Positive:
        calls.append(path)
        path.touch()
        return Positive(1)

    cache.produce(stage, {}, {}, output, make)
    sidecar = json.loads(cache.sidecar_path(output).read_text())
    files.write_json(cache.sidecar_path(output), sidecar | {"measured": {"number": -1}})
    with pytest.raises(DataError, match=r"missing or damaged \(-1 is not positive\); make out.txt again"):
        cache.of(output).read(Positive)
    assert cache.produce(stage, {}, {}, output, make).read(Positive) == Positive(1)
    assert len(calls) == 2


@pytest.mark.parametrize("problem", [KeyboardInterrupt(), ValueError("x"), OSError(errno.ENOSPC, "no space")])
def test_a_failed_write_leaves_what_was_there(problem: BaseException, tmp_path: Path) -> None:
    path = tmp_path / "file.bin"
    path.write_text("before")

    def fail() -> None:
        with files.atomic_file(path) as temporary:
            temporary.write_text("half")
            raise problem

    with pytest.raises((type(problem), OutputError)) as error:
        fail()
    assert path.read_text() == "before"
    assert [p.name for p in tmp_path.iterdir()] == ["file.bin"]
    if isinstance(problem, OSError):
        assert "the disk is full" in str(error.value)


def test_a_really_full_disk_is_one_sentence() -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full on this system")

    def write() -> None:
        with files.explain_write_errors(Path("/dev/full")), Path("/dev/full").open("w") as file:
            file.write("x" * 100_000)

    with pytest.raises(OutputError, match="the disk is full while writing /dev/full"):
        write()


def test_a_file_where_a_folder_should_be_is_explained(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    def write() -> None:
        with files.atomic_file(tmp_path / "file" / "x.json"):
            pass

    with pytest.raises(OutputError, match="cannot be written"):
        write()


def test_an_array_on_disk_has_its_space(tmp_path: Path) -> None:
    array = files.reserved_array(tmp_path / "a.npy", (100, 1000))
    array[3, 7] = 5
    assert (tmp_path / "a.npy").stat().st_blocks * 512 >= 400_000
    with pytest.raises(OSError, match=r".") as error:
        files.reserved_array(tmp_path / "b.npy", (1 << 20, 1 << 24))
    assert error.value.errno in (errno.ENOSPC, errno.EFBIG, errno.ENOMEM, errno.EINVAL)  # by file system


def test_the_seconds_of_a_folder_are_those_of_its_artifacts(tmp_path: Path) -> None:
    assert cache.seconds_spent(tmp_path / "missing") == 0.0
    for name, content in (
        ("a.onnx.json", {"seconds": 1.5}),
        ("b.onnx.json", {"seconds": 2}),
        ("costs.json", {"kl": 0.1}),
        ("odd.json", {"seconds": "3"}),
        ("huge.json", {"seconds": float("inf")}),
    ):
        (tmp_path / name).write_text(json.dumps(content))
    (tmp_path / "broken.json").write_text("{")
    assert cache.seconds_spent(tmp_path) == 3.5
