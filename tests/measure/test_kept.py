"""Comparisons of many pictures: interrupted ones go on, and memory does not grow with the pictures."""

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from conftest import CLASSES, interruptible
from drawn_bundles import colours, draw, paint
from launch import compare

from vgg_runtime.bundle import manifest, outputs
from vgg_runtime.bundle.manifest import Variant
from vgg_runtime.bundle.opened import Bundle
from vgg_runtime.measure import kept
from vgg_runtime.measure.answers import TIMED_PICTURES
from vgg_runtime.measure.kept import LEAST_PICTURES, Kept, Store
from vgg_runtime.measure.running import Options, Pictures, Running
from vgg_runtime.result import Prediction, Predictions

SAID = [Prediction((k, 9 - k), (0.5 + k / 20, 0.25 - k / 100)) for k in range(9)]
COUNT = 600
HASHES = [f"{k:016x}" for k in range(COUNT)]


def lines(*said: Prediction) -> bytes:
    documents = ({"classes": one.classes, "probabilities": one.probabilities} for one in said)
    return b"".join(json.dumps(one).encode() + b"\n" for one in documents)


def opened(path: Path, complaints: list[str], classes: int = 10) -> Kept:
    file = kept._opened(path)
    assert file
    return Kept(file, classes, complaints.append)


def close(found: Kept) -> None:
    found._file.close()


def test_answers_come_back(tmp_path: Path) -> None:
    path, complaints = tmp_path / "a/b.jsonl", list[str]()
    first = opened(path, complaints)
    assert len(first.known) == 0
    for k in range(5):
        first.add(k, SAID[k])
    first.add(3, SAID[8])  # known
    first.add(7, SAID[7])  # there would be a gap
    close(first)
    again = opened(path, complaints)
    assert again.known == SAID[:5]
    for k in range(4, 9):  # the last one is asked again
        again.add(k, SAID[k])
    close(again)
    assert path.read_bytes() == lines(*SAID)
    assert complaints == []


@pytest.mark.parametrize(
    "last",
    [
        lines(SAID[3])[:-1],
        lines(SAID[3])[:9],
        b"\n",
        b"[1]\n",
        b"\xff\n",
        b'{"classes": [], "probabilities": []}\n',
        b'{"classes": [10], "probabilities": [0.5]}\n',
        b'{"classes": [-1], "probabilities": [0.5]}\n',
        b'{"classes": [1, 2], "probabilities": [0.5]}\n',
        b'{"classes": [1.5], "probabilities": [0.5]}\n',
        b"[" * 9999 + b"\n",
    ],
)
def test_what_is_behind_a_torn_or_damaged_line_is_asked_again(last: bytes, tmp_path: Path) -> None:
    path = tmp_path / "b.jsonl"
    path.write_bytes(lines(*SAID[:3]) + last + lines(SAID[8]))
    found = opened(path, [])
    assert found.known == SAID[:3]
    found.add(3, SAID[3])
    close(found)
    assert path.read_bytes() == lines(*SAID[:4])


def test_a_full_disk_is_told_once_and_ends_nothing(tmp_path: Path) -> None:
    complaints = list[str]()
    found = opened(tmp_path / "b.jsonl", complaints)
    found.add(0, SAID[0])
    close(found)
    found._file = Path("/dev/full").open("wb", buffering=0)  # noqa: SIM115 it closes it
    for k in range(1, 5):
        found.add(k, SAID[k])
    assert complaints == [
        "answers are not kept (No space left on device): a comparison that is interrupted will begin again"
    ]


@pytest.fixture
def variant(bundle_folder: Path) -> Variant:
    return manifest.read(bundle_folder).variant("quantized")


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    """Many pictures: links to a few, of which one may be changed."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    real = [paint(folder / f"{k:04}.png", colour) for k, colour in enumerate(colours(7))]
    links = [folder / f"{k:04}.png" for k in range(7, COUNT)]
    for k, path in enumerate(links):
        path.hardlink_to(real[k % 7])
    return [*real, *links]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache/vgg-export/answers"


def known(
    variant: Variant, hashes: Sequence[str | None] = HASHES, classes: int = 10, mode: str = "fast"
) -> int | None:
    """How many answers another comparison finds."""
    with Store(hashes, Path("/"), lambda _: None) as store:
        found = store.of(variant, mode, outputs.SOFTMAX, classes)
        return len(found.known) if found else None


def keep(store: Store, variant: Variant, count: int = 9) -> None:
    found = store.of(variant, "fast", outputs.SOFTMAX, 10)
    assert found
    for k in range(count):
        found.add(k, SAID[k])


def test_the_same_question_finds_its_answers_and_no_other_does(
    variant: Variant, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = list[str]()
    with Store(HASHES, Path("/"), told.append) as store:
        assert not store.keeps
        keep(store, variant)
        assert store.keeps
    with Store(HASHES, Path("/"), told.append) as store:
        found = store.of(variant, "fast", outputs.SOFTMAX, 10)
        assert found
        assert found.known == SAID
    assert told == [f"quantized: 9 of {COUNT} answers are there, from a comparison that was interrupted"]
    smaller = dataclasses.replace(variant, preprocessing=dataclasses.replace(variant.preprocessing, px=96))
    sessions = variant.build.sessions
    lean = dataclasses.replace(sessions["fast"], config=sessions["fast"].config | {"session.x": "1"})
    other = [
        known(variant, HASHES[1:]),
        known(variant, HASHES[::-1]),
        known(variant, classes=11),
        known(variant.using(variant.builds[1])),
        known(smaller),
        known(
            variant.using(dataclasses.replace(variant.build, sessions=sessions | {"lean": lean})), mode="lean"
        ),
    ]
    assert other == [0] * 6
    for name, changed in (("version", lambda _: "99"), ("__version__", "99")):
        with monkeypatch.context() as patch:
            patch.setattr(kept, name, changed)
            assert known(variant) == 0
    assert known(variant) == 9


def test_what_is_kept_goes_when_the_comparison_ends_and_old_ones_with_it(
    variant: Variant, cache: Path
) -> None:
    cache.mkdir(parents=True)
    for name, age_s in (("old", kept.ABANDONED_S + 60), ("young", kept.ABANDONED_S - 60)):
        path = cache / f"{name}.jsonl"
        path.write_bytes(b"")
        os.utime(path, (path.stat().st_mtime - age_s,) * 2)
    with Store(HASHES, Path("/"), pytest.fail) as store:
        keep(store, variant)
        assert len(list(cache.iterdir())) == 2
        store.clear()
    assert [path.name for path in cache.iterdir()] == ["young.jsonl"]


def test_nothing_is_kept_of_a_few_pictures_or_of_unknown_ones(variant: Variant, cache: Path) -> None:
    assert known(variant, HASHES[: LEAST_PICTURES - 1]) is None
    assert known(variant, [*HASHES, None]) is None
    assert not cache.exists()
    assert known(variant, HASHES[:LEAST_PICTURES]) == 0


def test_two_at_once_do_not_share_their_answers(variant: Variant, cache: Path) -> None:
    """Not even when the first one is at its next model; and a file that was removed is not written to."""
    with Store(HASHES, Path("/"), pytest.fail) as first:
        keep(first, variant)
        keep(first, variant.using(variant.builds[1]))
        with Store(HASHES, Path("/"), pytest.fail) as second:
            assert second.of(variant, "fast", outputs.SOFTMAX, 10) is None
            assert not second.keeps
            second.clear()
        assert len(list(cache.iterdir())) == 2
        first.clear()
        assert known(variant) == 0
    assert known(variant) == 0


def test_where_nothing_can_be_written_it_is_told(
    variant: Variant, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    told = list[str]()
    with Store(HASHES, Path("/"), told.append) as store:
        assert store.of(variant, "fast", outputs.SOFTMAX, 10) is None
        monkeypatch.delenv("XDG_CACHE_HOME")
        monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
        assert store.of(variant, "fast", outputs.SOFTMAX, 10) is None
        assert not store.keeps
    end = "): a comparison that is interrupted will begin again"
    assert told == [
        f"answers are not kept (Not a directory{end}",
        f"answers are not kept (this user has no home folder{end}",
    ]


def test_a_folder_in_the_place_of_answers_is_no_error(variant: Variant, cache: Path) -> None:
    with Store(HASHES, Path("/"), pytest.fail) as store:
        keep(store, variant)
        (path,) = cache.iterdir()
        store.clear()
    path.mkdir()
    assert known(variant) is None


def asked(bundle: Path, folder: Path, json_file: Path) -> tuple[str | Path, ...]:
    return (
        *("--images", folder, "--variants", "baseline,quantized", "--budget", "0.1", "--rounds", "1"),
        *("--threads", "1", "--json", json_file),
    )


def answers(path: Path) -> list[Any]:
    found = json.loads(path.read_text())
    return [(row["variant"], row["predictions"], row["error"]) for row in found["variants"]]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_an_interrupted_comparison_goes_on(
    number: signal.Signals, bundle_folder: Path, paths: list[Path], cache: Path, tmp_path: Path
) -> None:
    """The same answers as without, from where it stopped: in the middle of the second variant."""
    whole, resumed = tmp_path / "whole.json", tmp_path / "resumed.json"
    apart = str(tmp_path / "apart")
    done = compare(*asked(bundle_folder, paths[0].parent, whole), bundle=bundle_folder, XDG_CACHE_HOME=apart)
    assert done.returncode == 0, done.stderr
    assert list(Path(apart).rglob("*.jsonl")) == []
    arguments = asked(bundle_folder, paths[0].parent, resumed)
    running = subprocess.Popen(
        [sys.executable, bundle_folder / "runtime/compare.py", *map(str, arguments)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        **interruptible(),
    )
    assert running.stderr
    said = ""
    for line in running.stderr:
        said += line
        if line.startswith(f"  quantized: 100/{COUNT} pictures, "):
            break
    os.killpg(running.pid, number)
    _, rest = running.communicate(timeout=60)
    assert (
        "The answers so far are kept; the same command goes on from there." in rest
        or number == signal.SIGKILL
    )
    assert not resumed.exists()
    done = compare(*arguments, bundle=bundle_folder)
    assert done.returncode == 0, done.stderr
    assert f"baseline: {COUNT} of {COUNT} answers are there" in done.stderr
    found = re.search(rf"quantized: (\d+) of {COUNT} answers are there", done.stderr)
    assert found
    assert 100 <= int(found[1]) < COUNT
    assert f"  baseline: 500/{COUNT}" not in done.stderr
    assert answers(resumed) == answers(whole)
    assert all(
        row["prepare_ms"] and row["end_to_end_ms"] for row in json.loads(resumed.read_text())["variants"]
    )
    assert list(cache.iterdir()) == []


def test_memory_does_not_grow_with_the_pictures(bundle_folder: Path, tmp_path: Path) -> None:
    """Neither what counts as the model's, nor what the answers take."""
    drawn = draw(tmp_path / "artifacts", outputs.SOFTMAX)
    path = paint(tmp_path / "x.png", colours(1)[0])
    bundle = Bundle(drawn.folder, manifest.read(drawn.folder))
    peaks = []
    for count in (1, 200_000):
        one = Running(bundle, bundle.manifest.variants[0], Pictures([path] * count), Options(1, 0.1))
        for event in one.events():
            if event["event"] == "timed":
                peaks.append(event["peak_rss_bytes"])
                break
    assert abs(peaks[1] - peaks[0]) < 5e6  # the paths alone have 20 MB
    said = Predictions(labels=CLASSES)
    tracemalloc.start()
    for k in range(20_000):
        said.add([k % 3, 1, 0, 4, 2], [0.5 + k / 1e5, 0.1, 0.05, 0.04, 0.03])
    used, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert used < 100 * len(said)
    assert said[19_999] == Prediction(
        (19_999 % 3, 1, 0, 4, 2),
        (0.69999, 0.1, 0.05, 0.04, 0.03),
        tuple(CLASSES[c] for c in (19_999 % 3, 1, 0, 4, 2)),
    )


@pytest.mark.parametrize("dies", [False, True])
def test_answers_stay_where_a_model_died_among_its_pictures(
    dies: bool, bundle_copy: Path, paths: list[Path], cache: Path
) -> None:
    """The one that did not fit into memory may fit the next time."""
    if dies:
        worker = bundle_copy / "runtime/vgg_runtime/measure/worker.py"
        text = worker.read_text()
        line = '    if prepare_ms:\n        say("answered"'
        assert line in text
        killed = "    if first == 0:\n        import os\n\n        os.kill(os.getpid(), 9)\n"
        worker.write_text(text.replace(line, killed + line))
    done = compare(
        *("--images", paths[0].parent, "--variants", "quantized", "--budget", "0.1", "--rounds", "1"),
        bundle=bundle_copy,
    )
    assert ("did not fit" in done.stdout) == dies, done.stdout
    assert len(list(cache.iterdir())) == dies
    if dies:
        again = compare(
            *("--images", paths[0].parent, "--variants", "quantized", "--budget", "0.1", "--rounds", "1"),
            bundle=bundle_copy,
        )
        assert f"quantized: {TIMED_PICTURES} of {COUNT} answers are there" in again.stderr
        assert again.returncode == 0, again.stderr
        assert list(cache.iterdir()) == []


def test_predictions_are_a_sequence_like_any_other() -> None:
    whole = Predictions(SAID)
    assert list(whole) == SAID
    assert whole == SAID == list(whole[:])
    assert whole[-1] == SAID[-1]
    assert whole[2:8:3] == tuple(SAID[2:8:3])
    assert whole != SAID[:-1]
    assert whole != [*SAID[:-1], SAID[0]]
    assert not Predictions()
    assert Predictions() == ()
    part = whole.first(4)
    part.add((1,), (1.0,))
    assert part == [*SAID[:4], Prediction((1,), (1.0,))]
    assert len(whole) == 9
    with pytest.raises(IndexError):
        whole[9]
    named = Predictions(SAID[:1], "abcdefghij")
    assert named[0].labels == ("a", "j")
