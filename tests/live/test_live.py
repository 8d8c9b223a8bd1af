"""compare.py --live: real frames through real pipes and servers, classified by onnxruntime in a process of
its own."""

import collections
import contextlib
import http.server
import io
import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from conftest import CLASSES, ROOT, interruptible
from damage import rewrite
from launch import compare
from PIL import Image

import readings
import soak
from vgg_runtime.board import device
from vgg_runtime.bundle import images, self_check
from vgg_runtime.bundle.input_spec import for_input
from vgg_runtime.bundle.opened import Bundle
from vgg_runtime.bundle.preprocess import open_image, to_tensor
from vgg_runtime.errors import ImageError, ModelError, RuntimeInputError
from vgg_runtime.live import decoding, frames, mjpeg, network, sources
from vgg_runtime.live import frames as of_frames
from vgg_runtime.live import stream as streams
from vgg_runtime.live.document import SCHEMA, Percentiles, Temperatures


def jpeg(seed: int, size: tuple[int, int] = (96, 64), **options: object) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (size[1] // 8, size[0] // 8, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).resize(size).save(file, "JPEG", **options)
    return file.getvalue()


PICTURES = [jpeg(k) for k in range(5)]


def top1(bundle: Path, variant: str, px: int, picture: bytes) -> str:
    session = ort.InferenceSession(bundle / f"models/{variant}.onnx")
    return CLASSES[
        int(session.run(None, {"input": to_tensor(open_image(picture), for_input(px))[None]})[0].argmax())
    ]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "frames"
    root.mkdir()
    for k, picture in enumerate(PICTURES):
        (root / f"{k}.jpg").write_bytes(picture)
    return root


def live_json(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text())["live"]
    frames = found["frames"]
    assert frames["received"] == sum(frames[key] for key in ("classified", "dropped", "broken", "left"))
    assert 0 <= frames["left"] <= 2  # one that waits, one that was being classified
    return found


# The splitter


@pytest.mark.parametrize("seed", range(4))
def test_jpegs_are_cut_out_of_a_stream_wherever_its_pieces_end(seed: int) -> None:
    thumbnail = Image.Exif()
    # a whole JPEG within a header, as cameras put a thumbnail there
    thumbnail[0x010E] = PICTURES[0].decode("latin-1")
    wanted = [
        *PICTURES,
        jpeg(7, progressive=True),
        jpeg(8, exif=thumbnail.tobytes()),
        jpeg(9, restart_marker_blocks=1),
    ]
    stream = b"".join(
        b"--frame\r\nContent-Type: image/jpeg\r\n\r\n" + picture + b"\r\n" for picture in wanted
    )
    splitter, found, dice = mjpeg.Splitter(), [], random.Random(seed)
    while stream:
        size = dice.choice((1, 2, 3, 100, 5000))
        found += splitter.feed(stream[:size])
        stream = stream[size:]
    assert found == wanted
    assert splitter.end() == []


def test_damaged_frames_are_told_and_the_next_one_is_found() -> None:
    whole = PICTURES[1]
    kinds = {
        "the next frame began in the middle of it": PICTURES[0][:20],  # its first segment
        "bytes are missing or wrong": b"\xff\xd8\xff\xe0\x00\x04abcdef",
    }
    for reason, damaged in kinds.items():
        splitter = mjpeg.Splitter()
        broken, good = splitter.feed(damaged + whole)
        assert isinstance(broken, ImageError)
        assert reason in str(broken)
        assert good == whole
    assert splitter.feed(PICTURES[0][:100]) == []
    assert "the stream ended in the middle of it" in str(splitter.end()[0])


@pytest.mark.parametrize("between", [b"", b"\r\n--frame\r\nContent-Type: image/jpeg\r\n\r\n"])
@pytest.mark.parametrize("cut", [1, 2])
def test_a_picture_without_its_end_ends_where_the_next_one_begins(between: bytes, cut: int) -> None:
    stream = b"".join(between + picture[:-cut] for picture in PICTURES)
    found = list(frames.pictures_in(iter(stream[k : k + 100] for k in range(0, len(stream), 100))))
    assert len(found) == len(PICTURES)
    for item, whole in zip(found, PICTURES, strict=True):
        assert isinstance(item, bytes)
        assert np.array_equal(np.asarray(open_image(item)), np.asarray(open_image(whole)))


def test_a_picture_that_lacks_pixels_too_is_damaged() -> None:
    half = PICTURES[0][: len(PICTURES[0]) // 2]
    broken, good = mjpeg.Splitter().feed(half + PICTURES[1])
    assert good == PICTURES[1]
    for item in (broken, *frames.pictures_in(iter([half]))):
        assert isinstance(item, bytes)
        with pytest.raises(ImageError, match="the pixels end before the last row"):
            open_image(item)


def test_a_frame_that_never_ends_does_not_fill_the_memory() -> None:
    splitter, start = mjpeg.Splitter(), PICTURES[0][:-2]
    found = splitter.feed(start)
    for _ in range(mjpeg.MAX_FRAME_BYTES // 1_000_000 + 1):
        found += splitter.feed(bytes(1_000_000))
    assert ["larger than 12 MB" in str(item) for item in found] == [True]
    assert splitter.feed(PICTURES[1]) == [PICTURES[1]]


# What is kept


def test_the_newest_frame_wins_and_the_others_are_counted() -> None:
    box = decoding.Latest()
    for picture in PICTURES[:3]:
        box.put(picture)
    box.put(ImageError("damaged"))
    taken = box.take(0)
    assert taken
    assert taken[0] == PICTURES[2]
    assert (box.received, box.dropped, box.broken, box.fault) == (4, 2, 1, "damaged")
    assert box.take(0.01) is None
    assert not box.ended
    box.put(PICTURES[3])
    box.end()
    assert not box.ended  # the last frame is still classified
    assert box.take(0) is not None
    assert box.ended


def test_a_frame_is_decoded_while_the_caller_is_busy() -> None:
    """The second frame is ready before anybody asks for it."""
    box, ready = decoding.Latest(), threading.Event()

    def decode(frame: Any) -> bytes:
        if frame == PICTURES[1]:
            ready.set()
        return bytes(frame[:2])

    box.put(PICTURES[0])
    with decoding.Decoder(box, decode) as decoder:
        first = decoder.take(60)
        assert first
        assert (first.arrived.number, first.tensor) == (1, PICTURES[0][:2])
        box.put(PICTURES[1])
        decoder.begin(0.0)
        assert ready.wait(60)
        second = decoder.take(60)
        assert second
        assert second.arrived.number == 2


def test_what_cannot_be_decoded_is_passed_over_and_the_end_is_seen() -> None:
    def decode(frame: Any) -> bytes:
        if frame == PICTURES[0]:
            raise ImageError("damaged")
        return b"2"

    box = decoding.Latest()
    box.put(PICTURES[0])
    with decoding.Decoder(box, decode) as decoder:
        while not box.broken:
            assert decoder.take(0.01) is None
        assert not decoder.ended
        box.put(PICTURES[1])
        box.end()
        taken = decoder.take(60)
        assert taken
        assert taken.tensor == b"2"
        assert not decoder.ended
        decoder.begin(0.0)
        while not decoder.ended:
            assert decoder.take(1) is None
    assert (box.received, box.broken, box.fault) == (2, 1, "damaged")


def test_a_frame_is_not_taken_before_it_is_due_and_the_newest_then() -> None:
    box = decoding.Latest()
    with decoding.Decoder(box, lambda _: b"") as decoder:
        box.put(PICTURES[0])
        assert decoder.take(60)
        due = time.monotonic() + 0.3
        decoder.begin(due)
        box.put(PICTURES[1])
        box.put(PICTURES[2])
        taken = decoder.take(60)
        assert taken
        assert taken.taken >= due
        assert taken.arrived.number == 3
        assert box.dropped == 1


def test_the_next_frame_is_taken_as_late_as_the_model_leaves_time(bundle_folder: Path) -> None:
    bundle = Bundle.read(bundle_folder)
    settings = streams.Settings(1, max_fps=10.0)
    stream = streams.Stream(bundle, bundle.manifest.variants[0], settings, streams.Interrupt())
    decoded = decoding.Decoded(decoding.Arrived(b"", 1, 0.0), b"", 20.0, taken=5.0)
    # nothing is known yet of how long the model takes; ten frames a second are asked for
    assert stream._next(decoded, 5.02) == pytest.approx(5.1)
    for _ in range(streams.RECENT):
        stream.latency["model"].add(300.0)
        stream.latency["decode"].add(20.0)
    assert stream._next(decoded, 5.02) == pytest.approx(5.02 + 0.280 - streams.SPARE_MS / 1e3)
    for _ in range(streams.RECENT):
        stream.latency["model"].add(1.0)
    assert stream._next(decoded, 5.02) == pytest.approx(5.1)


def test_latencies_are_bounded_and_percentiles_are_earned() -> None:
    latency = streams.Latency()
    assert latency.percentiles() == Percentiles(None, None, None, None, 0)
    for k in range(20_000):
        latency.add(float(k))
        if k == 62:
            assert latency.percentiles().p90 is None
        if k == 63:
            assert latency.percentiles().p90 == 57.0
    assert len(latency.kept) == streams.KEPT
    assert list(latency.recent) == [float(k) for k in range(20_000 - streams.RECENT, 20_000)]
    found = latency.percentiles()
    assert (found.max, found.n) == (19_999.0, 20_000)
    assert found.p50 == pytest.approx(10_000, rel=0.05)  # of the whole run, not of its end
    assert found.p99 == pytest.approx(19_800, rel=0.01)


def test_the_temperature_is_remembered(monkeypatch: pytest.MonkeyPatch, bundle_folder: Path) -> None:
    felt = iter((50.0, 71.5, None, 60.0))
    monkeypatch.setattr(device, "temperature_c", lambda: next(felt))
    bundle = Bundle.read(bundle_folder)
    variant = bundle.manifest.variants[0]
    stream = streams.Stream(bundle, variant, streams.Settings(1), streams.Interrupt())
    for _ in range(3):
        stream.feel()
    assert stream.seen(CLASSES).temperature_c == Temperatures(start=50.0, max=71.5, end=60.0)


# Folders


def test_a_folder_is_looped_in_order_and_a_new_picture_is_the_next(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "RESCAN_S", 0.0)
    (folder / "notes.txt").write_text("no picture")
    stopped = threading.Event()
    frames: Iterator[Any] = sources.open_source(str(folder), 500.0).frames(stopped)
    names = [next(frames).name for _ in range(7)]
    (folder / "0new.jpg").write_bytes(PICTURES[0])
    (folder / "3.jpg").unlink()
    names += [next(frames).name for _ in range(4)]
    assert names == [*(f"{k}.jpg" for k in (0, 1, 2, 3, 4, 0, 1)), "0new.jpg", "2.jpg", "4.jpg", "0.jpg"]
    for path in folder.glob("*.jpg"):
        path.unlink()
    assert list(frames) == []


def test_frames_are_paced(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The test's clock moves only while the frames wait."""
    now, waited = 100.0, list[float]()

    class Stopped(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            nonlocal now
            assert timeout is not None
            waited.append(timeout)
            now += timeout
            return False

    monkeypatch.setattr(of_frames, "time", SimpleNamespace(monotonic=lambda: now))
    frames = sources.open_source(str(folder), 50.0).frames(Stopped())
    for _ in range(11):
        next(frames)
    now += 1  # one comes late, and is followed by one at once, not by fifty
    for _ in range(3):
        next(frames)
    assert waited == pytest.approx([0.0, *[0.02] * 10, 0.0, 0.0, 0.02])


def test_what_a_folder_holds_besides_pictures_is_counted_by_reason(folder: Path) -> None:
    assert sources.Folder(folder, 30.0).left_out() is None
    for name in ("a.heic", "b.HEIC", "notes.txt", "Thumbs.db", ".DS_Store", ".hidden.jpg"):
        (folder / name).write_text("x")
    for name in ("later", "earlier", "@eaDir"):
        (folder / name).mkdir()
    (folder / "gone.jpg").symlink_to(folder / "nothing")
    words = sources.Folder(folder, 30.0).left_out()
    assert words is not None
    assert words.startswith("5 of 15 used: 3 with unknown suffix (.heic, .txt), ")
    assert set(words.split(": ")[1].split("), ")[1].split(", ")) == {
        "4 left by the system",
        "2 in the form of a folder",
        "1 without a file behind the name",
    }


def test_a_folder_without_pictures_says_what_is_there(tmp_path: Path) -> None:
    for name in ("a.heic", "b.HEIC", "Thumbs.db"):
        (tmp_path / name).write_text("x")
    with pytest.raises(RuntimeInputError) as error:
        sources.Folder(tmp_path, 30.0)
    with pytest.raises(ImageError) as of_images:
        images.look(tmp_path)
    assert str(error.value) == str(of_images.value)
    assert str(error.value).endswith(
        "; found 2 files with unknown suffix (.heic), 1 files left by the system"
    )


def test_what_cannot_be_looked_at_ends_no_stream(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, scan = sources.Folder(folder, 30.0), os.scandir

    def once(path: Path) -> Any:
        monkeypatch.setattr(os, "scandir", refuse)
        return scan(path)

    def refuse(path: Path) -> Any:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "scandir", once)
    assert source.left_out() is None


def test_what_is_left_out_is_said(folder: Path, bundle_folder: Path) -> None:
    (folder / "later").mkdir()
    done = compare("--live", "scaled", "--source", folder, "--frames", "2", bundle=bundle_folder)
    assert done.returncode == 0, done.stderr
    assert f"{folder}: 5 of 6 used: 1 in the form of a folder\n" in done.stderr


def test_a_folder_is_classified_as_onnxruntime_does(
    folder: Path, bundle_folder: Path, tmp_path: Path
) -> None:
    arguments = (
        "--live",
        "scaled",
        "--source",
        folder,
        "--fps",
        "20",
        "--frames",
        "70",
        "--threads",
        "1",
        "--every",
        "1",
    )
    done = compare(*arguments, "--json", tmp_path / "r.json", bundle=bundle_folder)
    assert done.returncode == 0, done.stderr
    found = live_json(tmp_path / "r.json")
    assert (found["ended"], found["error"], found["frames"]["classified"]) == ("frames", None, 70)
    said = {one["label"]: one["n"] for one in found["said"]}
    assert set(said) == {top1(bundle_folder, "scaled", 160, picture) for picture in PICTURES}
    assert sum(said.values()) == 70
    for stage in ("decode", "model", "end_to_end"):
        latency = found[f"{stage}_ms"]
        assert 0 < latency["p50"] <= latency["p90"] <= latency["max"]
        assert (latency["p99"], latency["n"]) == (None, 70)
    assert found["end_to_end_ms"]["p50"] >= found["model_ms"]["p50"]
    assert found["frames_per_s"] == pytest.approx(70 / found["seconds"])
    assert found["frames_per_s"] <= 21
    assert found["self_check_deviation"] < 1e-3
    documented = (ROOT / "docs/json.md").read_text(encoding="utf-8").split("## The live document", 1)[1]
    assert [
        key
        for key in (*found, *found["frames"], *found["model_ms"], *found["temperature_c"])
        if f'"{key}"' not in documented
    ] == []
    document = json.loads((tmp_path / "r.json").read_text())
    assert document["schema"] == SCHEMA
    assert document["device"]["threads"] == 1
    lines = done.stdout.splitlines()
    assert "is classified by scaled (fp32, 160 px, 1 thread)" in lines[0]
    assert sum(bool(re.match(r"\d\d:\d\d:\d\d  \d+\.\d frames/s  decode", line)) for line in lines) >= 2
    assert "Ended    as many frames as were asked for" in done.stdout


def test_broken_pictures_are_counted_and_skipped(folder: Path, bundle_folder: Path, tmp_path: Path) -> None:
    (folder / "2.jpg").write_bytes(PICTURES[2][:200])
    arguments = ("--live", "quantized", "--source", folder, "--fps", "10", "--frames", "8")
    done = compare(*arguments, "--json", tmp_path / "r.json", bundle=bundle_folder)
    assert done.returncode == 0, done.stderr
    found = live_json(tmp_path / "r.json")
    assert found["frames"]["classified"] == 8
    assert found["frames"]["broken"] >= 1
    assert "2.jpg cannot be decoded" in found["last_fault"]
    assert "2.jpg cannot be decoded" in done.stdout


# MJPEG


@pytest.mark.release
def test_an_mjpeg_server_faster_than_the_model(bundle_folder: Path, tmp_path: Path) -> None:
    with soak.camera(PICTURES, 3000, cut_off_every=10) as url:
        arguments = ("--live", "baseline", "--source", url, "--seconds", "3", "--threads", "1")
        done = compare(*arguments, "--json", tmp_path / "r.json", bundle=bundle_folder)
    assert done.returncode == 0, done.stderr
    found = live_json(tmp_path / "r.json")
    frames = found["frames"]
    assert found["ended"] == "seconds"
    assert frames["dropped"] > 0
    assert frames["received"] > frames["classified"] > 10
    # a frame that was cut off is found out where it is decoded, and most are dropped before
    assert frames["broken"] <= frames["received"] / 10 + 2
    assert frames["received"] == sum(frames[key] for key in ("classified", "dropped", "broken", "left"))
    assert found["seconds"] > 2.9
    assert frames["left"] <= 2  # one that is decoded already, and the newest: nothing queues up


def test_a_stream_that_ends_says_so(bundle_folder: Path, tmp_path: Path) -> None:
    with soak.camera(PICTURES, 20, limit=6, cut_off_every=None) as url:
        done = compare(
            "--live", "scaled", "--source", url, "--json", tmp_path / "r.json", bundle=bundle_folder
        )
    assert done.returncode == 0, done.stderr
    assert "Ended    the source ended" in done.stdout
    found = live_json(tmp_path / "r.json")
    assert found["frames"]["received"] == 6
    assert found["frames"]["left"] == 0


def test_a_file_is_played_and_a_pipe_is_read(bundle_folder: Path, tmp_path: Path) -> None:
    clip = tmp_path / "clip.mjpeg"
    clip.write_bytes(b"".join(PICTURES) + PICTURES[0][:300])
    arguments = ("--live", "scaled", "--json", tmp_path / "r.json")
    done = compare(*arguments, "--source", clip, "--fps", "8", bundle=bundle_folder)
    assert done.returncode == 0, done.stderr
    found = live_json(tmp_path / "r.json")
    assert (found["frames"]["received"], found["frames"]["broken"]) == (6, 1)
    expected = collections.Counter(top1(bundle_folder, "scaled", 160, picture) for picture in PICTURES)
    # what a slow machine drops is not said; the rest is
    said = collections.Counter({one["label"]: one["n"] for one in found["said"]})
    assert said <= expected
    assert said.total() == found["frames"]["classified"] == 5 - found["frames"]["dropped"] > 0
    launcher = [
        sys.executable,
        str(bundle_folder / "runtime/compare.py"),
        *map(str, arguments),
        "--source",
        "-",
    ]
    piped = subprocess.run(launcher, input=clip.read_bytes(), capture_output=True, check=False, timeout=120)
    assert piped.returncode == 0, piped.stderr
    assert live_json(tmp_path / "r.json")["source"] == "standard input"
    assert piped.stderr == b"" or b"Traceback" not in piped.stderr


class Wrong(http.server.BaseHTTPRequestHandler):
    """A server that sends a web page, sends nothing, or breaks off."""

    def do_GET(self) -> None:
        if self.path == "/page":
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
        elif self.path in ("/empty", "/silent", "/torn"):
            self.send_response(200)
            self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=x")
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            if self.path == "/torn":
                self.wfile.write(b"%x\r\n%s\r\nfff\r\nhalf" % (len(PICTURES[0]), PICTURES[0]))
            elif self.path == "/empty":
                self.wfile.write(b"0\r\n\r\n")
            else:
                time.sleep(3)
        else:
            self.send_error(404)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def wrong() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Wrong)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("path", "sentence"),
    [
        ("/page", "answers with text/html; expected JPEGs one after the other, as MJPEG cameras send"),
        ("/missing", "answers 404"),
        ("/empty", "ended"),
        ("/silent", "has sent nothing for 0 s"),
        ("/torn", "cannot be read"),
    ],
)
def test_a_server_that_is_no_camera(
    path: str, sentence: str, wrong: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(network, "SILENCE_S", 0.4)
    frames = sources.open_source(wrong + path, None).frames(threading.Event())
    if path == "/empty":
        assert list(frames) == []
        return
    if path == "/torn":
        assert next(frames) == PICTURES[0]
    with pytest.raises(RuntimeInputError, match=sentence):
        list(frames)


def test_no_server_and_a_source_that_breaks_off(wrong: str, bundle_folder: Path, tmp_path: Path) -> None:
    done = compare("--live", "scaled", "--source", "http://127.0.0.1:9/", bundle=bundle_folder)
    assert done.returncode == 2
    assert "127.0.0.1:9/ cannot be read (Connection refused)" in done.stderr.replace("[Errno 111] ", "")
    done = compare("--live", "scaled", "--source", f"{wrong}/empty", bundle=bundle_folder)
    assert done.returncode == 2
    assert "no frame of" in done.stderr
    done = compare(
        "--live", "scaled", "--source", f"{wrong}/torn", "--json", tmp_path / "r.json", bundle=bundle_folder
    )
    assert done.returncode == 1
    found = live_json(tmp_path / "r.json")
    assert (found["ended"], found["frames"]["classified"]) == ("error", 1)
    assert "cannot be read" in found["error"]
    assert "✗ scaled: http://127.0.0.1" in done.stdout


# Ends


def start(bundle: Path, *arguments: str | Path) -> subprocess.Popen[str]:
    """A run that has begun to print lines."""
    command = [
        sys.executable,
        str(bundle / "runtime/compare.py"),
        "--live",
        "scaled",
        "--every",
        "0.3",
        *map(str, arguments),
    ]
    running = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **interruptible()
    )
    assert running.stdout is not None
    for line in running.stdout:
        if re.search(r"[1-9]\d* received", line):
            break
    return running


@pytest.mark.parametrize(
    ("number", "code", "word"),
    [
        (signal.SIGINT, 130, "interrupted"),
        (signal.SIGTERM, 0, "terminated"),
        (signal.SIGHUP, 0, "terminated"),
    ],
)
def test_a_signal_ends_it_with_a_summary(
    number: int, code: int, word: str, folder: Path, bundle_folder: Path, tmp_path: Path
) -> None:
    running = start(bundle_folder, "--source", folder, "--json", tmp_path / "r.json")
    os.killpg(running.pid, number) if number == signal.SIGINT else os.kill(running.pid, number)
    output, errors = running.communicate(timeout=60)
    assert running.returncode == code, errors
    assert "Traceback" not in errors
    assert "frames/s" in output
    assert live_json(tmp_path / "r.json")["ended"] == word
    assert not Path(f"/proc/{running.pid}").exists()


def the_model_of(running: subprocess.Popen[str]) -> int:
    (child,) = Path(f"/proc/{running.pid}/task/{running.pid}/children").read_text().split()
    return int(child)


def ended(pid: int) -> bool:
    """Whether a process is gone within ten seconds; one that nobody waits for stays behind as a zombie."""
    for _ in range(200):
        status = Path(f"/proc/{pid}/status")
        if not status.exists() or "State:\tZ" in status.read_text():
            return True
        time.sleep(0.05)
    return False


def test_the_model_does_not_outlive_it(folder: Path, bundle_folder: Path) -> None:
    running = start(bundle_folder, "--source", folder)
    child = the_model_of(running)
    assert Path(f"/proc/{child}").exists()
    running.kill()
    running.communicate(timeout=60)
    assert ended(child)


def test_a_reader_of_its_lines_that_goes_away_ends_it(folder: Path, bundle_folder: Path) -> None:
    running = start(bundle_folder, "--source", folder)
    child = the_model_of(running)
    assert running.stdout is not None
    assert running.stderr is not None
    running.stdout.close()
    assert running.wait(timeout=60) == 2
    assert "Traceback" not in running.stderr.read()
    running.stderr.close()
    assert ended(child)


def test_ctrl_c_while_nothing_arrives(bundle_folder: Path, tmp_path: Path) -> None:
    """The reader waits for a silent pipe, and the interrupt still ends the run."""
    os.mkfifo(tmp_path / "pipe")
    command = [
        sys.executable,
        str(bundle_folder / "runtime/compare.py"),
        "--live",
        "scaled",
        "--source",
        str(tmp_path / "pipe"),
    ]
    running = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **interruptible()
    )
    assert running.stdout is not None
    assert "is classified by" in running.stdout.readline()
    os.killpg(running.pid, signal.SIGINT)
    output, errors = running.communicate(timeout=60)
    assert running.returncode == 130
    assert "0 received" in output
    assert "Traceback" not in errors


def test_a_killed_model_is_a_sentence(folder: Path, bundle_folder: Path, tmp_path: Path) -> None:
    running = start(bundle_folder, "--source", folder, "--json", tmp_path / "r.json")
    os.kill(the_model_of(running), signal.SIGKILL)
    output, errors = running.communicate(timeout=60)
    assert running.returncode == 1, errors
    assert "✗ scaled: did not fit: the process was killed" in output
    assert "Traceback" not in errors
    found = live_json(tmp_path / "r.json")
    assert found["ended"] == "error"
    assert found["frames"]["classified"] > 0


def test_two_events_that_arrive_together_are_both_heard(
    bundle_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = Bundle.read(bundle_folder)
    responder = streams.Responder(
        bundle, bundle.manifest.variants[0], streams.Settings(1), streams.Interrupt()
    )
    monkeypatch.setattr(streams, "PATIENCE_S", 20)
    time.sleep(2)  # loaded and checked are both in the pipe by now
    try:
        assert responder.load()
    finally:
        responder.close()


def test_a_hung_model_is_a_sentence(
    bundle_folder: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = Bundle.read(bundle_folder)
    responder = streams.Responder(
        bundle, bundle.manifest.variants[0], streams.Settings(1), streams.Interrupt()
    )
    try:
        assert responder.load()
        os.kill(responder._child.pid, signal.SIGSTOP)
        monkeypatch.setattr(streams, "PATIENCE_S", 0.3)
        with pytest.raises(ModelError, match="has not answered"):
            responder.ask(b"")
    finally:
        responder.close()


def test_the_self_check_and_the_hashes_come_first(folder: Path, bundle_copy: Path, tmp_path: Path) -> None:
    arguments = ("--live", "scaled", "--source", folder, "--frames", "2", "--json", tmp_path / "r.json")
    arrays = dict(np.load(bundle_copy / "expected.npz"))
    logits = arrays[self_check.logits_key("scaled")]
    arrays[self_check.logits_key("scaled")] = logits + 0.01 * (logits.max() - logits.min())
    np.savez(tmp_path / "expected.npz", **arrays)
    rewrite(bundle_copy, "expected.npz", (tmp_path / "expected.npz").read_bytes())
    done = compare(*arguments, bundle=bundle_copy)
    assert done.returncode == 1
    assert "✗ scaled: self-check failed" in done.stdout
    assert live_json(tmp_path / "r.json")["frames"]["received"] == 0
    rewrite(bundle_copy, "models/scaled.onnx", b"not an onnx file")
    done = compare(*arguments, bundle=bundle_copy)
    assert done.returncode == 1
    assert "✗ scaled: " in done.stdout
    (bundle_copy / "models/scaled.onnx").write_bytes(b"something else")
    done = compare(*arguments, bundle=bundle_copy)
    assert done.returncode == 2
    assert "scaled.onnx differs from the manifest" in done.stderr


def test_the_model_is_that_of_the_copy(folder: Path, bundle_copy: Path) -> None:
    (bundle_copy / "runtime/vgg_runtime/live/worker.py").write_text("raise SystemExit('this is the copy')\n")
    done = compare("--live", "scaled", "--source", folder, bundle=bundle_copy, cwd=Path("/"))
    assert done.returncode == 1
    assert "the process ended with code 1: this is the copy" in done.stdout


# Options


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--live", "nope"), "there is no variant 'nope'; this bundle has baseline, quantized, scaled"),
        (
            ("--live", "scaled", "--source", "nowhere"),
            "nowhere cannot be used (No such file or directory); --source takes a folder",
        ),
        (
            ("--live", "scaled", "--source", "rtsp://me:secret@camera/1?token=x"),
            "reading rtsp://…@camera/1?… needs ffmpeg: sudo apt install ffmpeg",
        ),
        (("--live", "scaled", "--source", "rtsp://camera/1", "--fps", "5"), "sends at its own pace"),
        (("--live", "scaled", "--source", "empty", "--reconnect"), "--reconnect is for addresses"),
        (("--live", "scaled", "--source", "empty", "--change"), "--change belongs to --json - or --log"),
        (("--live", "scaled", "--log-bytes", "5"), "--log-bytes belongs to --log"),
        (("--live", "scaled", "--mqtt-login", "x"), "--mqtt-login belongs to --mqtt"),
        (("--live", "scaled", "--source", "empty/text", "--log", "no/log"), "no/log cannot be written"),
        (("--live", "scaled", "--region", "0,0,1"), "expected X,Y,W,H as shares of the frame"),
        (("--live", "scaled", "--region", "0.5,0,0.6,1"), "expected a part of the frame"),
        (("--live", "scaled", "--region", "0,0,0,1"), "expected a part of the frame"),
        (("--live", "scaled", "--stable", "0"), "expected at least 1, found 0"),
        (("--live", "scaled", "--stable", "xs"), "expected a number of seconds, found 'x'"),
        (("--live", "scaled", "--min-probability", "2"), "expected a number of 0 to 1, found 2"),
        (("--live", "scaled", "--source", "empty/text", "--on-change", "a 'b"), "--on-change cannot be read"),
        (("--max-fps", "3"), "--max-fps belongs to --live VARIANT"),
        (("--live", "scaled", "--source", "empty"), "empty holds no pictures"),
        (
            ("--live", "scaled", "--source", "empty/text"),
            "no frame of empty/text could be classified, found no frames",
        ),
        (("--live", "scaled", "--source", "/dev/null"), "reading /dev/null needs ffmpeg"),
        (("--live", "scaled"), "no camera module can be read: picamera2 cannot be imported"),
        (("--live", "scaled", "--image", "a.jpg"), "--image does not go with --live"),
        (("--live", "scaled", "--variants", "scaled"), "--variants does not go with --live"),
        (("--live", "scaled", "--serve"), "--serve does not go with --live"),
        (("--live", "scaled", "--port", "0"), "--port does not go with --live"),
        (("--live", "scaled", "--sure"), "--sure does not go with --live"),
        (("--live", "scaled", "--budget", "3"), "--budget does not go with --live"),
        (("--live", "scaled", "--source", "empty", "--frames", "0"), "expected at least 1"),
        (
            ("--live", "scaled", "--source", "empty", "--fps", "0"),
            "expected more than 0 and at most 1000 frames a second",
        ),
        (("--source", "empty"), "--source belongs to --live VARIANT"),
        (("--frames", "3", "--serve"), "--frames belongs to --live VARIANT"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_unusable_input_is_one_sentence_and_code_2(
    arguments: tuple[str, ...], sentence: str, bundle_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty/text").write_text("no picture")
    done = compare(*arguments, bundle=bundle_folder, cwd=tmp_path, PATH=str(tmp_path))
    assert done.returncode == 2
    assert sentence in done.stderr
    assert "frames/s" not in done.stdout


def test_random_weights_do_not_speak(folder: Path, bundle_copy: Path) -> None:
    from conftest import reseal

    arguments = ("--live", "scaled", "--source", folder, "--frames", "9", "--every", "0.1")
    assert "Said " in compare(*arguments, bundle=bundle_copy).stdout
    reseal(bundle_copy, figures_absent="random weights: nothing is known")
    done = compare(*arguments, bundle=bundle_copy)
    assert done.returncode == 0
    # before hours of lines and after them
    assert done.stdout.count("!! random weights: nothing is known") == 2
    assert not any(label in done.stdout for label in ("Said ", *CLASSES))


# Cameras, with stand-ins for what only a board has


def program(folder: Path, name: str, script: str) -> None:
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(f"#!{sys.executable}\nimport sys, time\n{script}\n")
    path.chmod(0o755)


def test_a_video_device_is_read_through_ffmpeg(tmp_path: Path, bundle_folder: Path) -> None:
    (tmp_path / "clip").write_bytes(b"".join(PICTURES))
    body = (
        "assert sys.argv[sys.argv.index('-framerate') + 1] == '12'\nassert {'/dev/null', 'copy'} <"
        " set(sys.argv)\n"
    )
    body += f"clip = open({str(tmp_path / 'clip')!r}, 'rb').read()\n"
    program(
        tmp_path / "bin",
        "ffmpeg",
        body + "while True:\n    sys.stdout.buffer.write(clip); sys.stdout.flush(); time.sleep(0.05)",
    )
    arguments = ("--live", "scaled", "--source", "/dev/null", "--fps", "12", "--frames", "5")
    done = compare(*arguments, bundle=bundle_folder, PATH=str(tmp_path / "bin"))
    assert done.returncode == 0, done.stderr
    assert "5 classified" in done.stdout
    program(
        tmp_path / "bin",
        "ffmpeg",
        "print('a', file=sys.stderr)\nsys.exit('/dev/null: Device or resource busy')",
    )
    done = compare(*arguments, bundle=bundle_folder, PATH=str(tmp_path / "bin"))
    assert done.returncode == 2
    assert "ffmpeg ended with code 1, it said: /dev/null: Device or resource busy" in done.stderr


def test_what_reads_a_device_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(
        tmp_path,
        "rpicam-vid",
        "import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nprint(flush=True)\ntime.sleep(60)",
    )
    monkeypatch.setenv("PATH", str(tmp_path))
    source = sources.open_source("camera", None)
    assert source.name == "camera (rpicam-vid)"
    latest = decoding.Latest()
    with streams._reading(source, latest):
        time.sleep(0.5)
    assert isinstance(source, of_frames.Program)
    assert source._process is not None
    assert source._process.returncode == -signal.SIGKILL  # it would not go otherwise
    assert latest.failure is None


def test_picamera2_gives_pictures_in_red_green_blue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "picamera2.py").write_text(
        "import numpy\n"
        "class Picamera2:\n"
        "    closed = False\n"
        "    def create_video_configuration(self, main, controls): return main, controls\n"
        "    def configure(self, wanted): self.main, self.controls = wanted\n"
        "    def start(self): assert self.main['format'] == 'BGR888' and self.controls == {'FrameRate':"
        " 30.0}\n"
        "    def capture_array(self, name): return numpy.full((*self.main['size'][::-1], 3), (200, 100,"
        " 0), numpy.uint8)\n"
        "    def close(self): Picamera2.closed = True\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "picamera2", raising=False)
    source = sources.open_source("camera", None)
    frames: Any = source.frames(threading.Event())
    picture = next(frames)
    assert isinstance(picture, Image.Image)
    assert (picture.size, picture.mode, picture.getpixel((0, 0))) == ((640, 480), "RGB", (200, 100, 0))
    frames.close()
    assert sys.modules["picamera2"].Picamera2.closed
    sys.modules["picamera2"].Picamera2.start = lambda _: 1 / 0
    latest = decoding.Latest()
    streams._read(source, latest, threading.Event())
    assert "ZeroDivisionError" in str(latest.failure)
    assert "is it connected" in str(latest.failure)
    del sys.modules["picamera2"]


# Memory


@pytest.mark.release
def test_some_hundred_frames_leave_the_memory_flat(bundle_folder: Path, tmp_path: Path) -> None:
    with soak.camera(soak.pictures(10, (320, 240)), 200) as url:
        command = [
            sys.executable,
            str(bundle_folder / "runtime/compare.py"),
            "--live",
            "scaled",
            "--source",
            url,
            "--threads",
            "1",
        ]
        command += ["--every", "0.2", "--frames", "1500", "--json", str(tmp_path / "r.json")]
        code, held = soak.watch(command, 0.1)
    assert code == 0
    assert live_json(tmp_path / "r.json")["frames"]["classified"] == 1500
    found = {name: readings.growth(samples) for name, samples in held.items()}
    assert readings.verdict(0, found, 3e6) is None, found
    assert all(10e6 < one.most_bytes < 300e6 for one in found.values()), found


def test_the_soak_sees_growth_and_failure() -> None:
    flat = [readings.Reading(100_000_000, 12, 3)] * 60
    growing = [readings.Reading(100_000_000 + 100_000 * k, 12, 3) for k in range(60)]
    grown = {"compare.py": readings.growth(flat), "model": readings.growth(growing)}
    assert readings.verdict(0, {"model": readings.growth(flat)}, 4e6) is None
    assert readings.verdict(0, grown, 4e6) == "model grew by 4.8 MB"
    assert readings.verdict(1, {}, 4e6) == "compare.py ended with code 1"
    with pytest.raises(ValueError, match="too few"):
        readings.growth(flat[:10])


@pytest.mark.parametrize(
    ("held", "said"),
    [
        (readings.Reading(10**8, 13, 3), "model holds 13 descriptors, 12 after the first tenth"),
        (readings.Reading(10**8, 12, 5), "model holds 5 threads, 3 after the first tenth"),
    ],
)
def test_the_soak_sees_descriptors_and_threads(held: readings.Reading, said: str) -> None:
    grown = readings.growth([readings.Reading(10**8, 12, 3)] * 50 + [held] * 10)
    assert readings.verdict(0, {"model": grown}, 4e6) == said


def test_threads_of_a_pool_may_begin_late() -> None:
    found = {"model": readings.Growth(10, 10, 10, (3, 3), (3, 5))}
    assert readings.verdict(0, found, 4e6, 5) is None
    assert readings.verdict(0, found, 4e6, 4) == "model holds 5 threads, 3 after the first tenth"


def test_a_reading_is_what_the_process_holds(tmp_path: Path) -> None:
    before = readings.reading(os.getpid())
    with contextlib.ExitStack() as open_files:
        for k in range(5):
            open_files.enter_context((tmp_path / str(k)).open("w"))
        assert readings.reading(os.getpid()).descriptors == before.descriptors + 5
    assert readings.reading(os.getpid()).descriptors == before.descriptors
    ended = subprocess.Popen(["true"])
    time.sleep(0.2)
    with pytest.raises(ProcessLookupError, match="has ended"):
        readings.reading(ended.pid)
    ended.wait()


def test_a_process_that_leaks_is_noticed_from_outside(tmp_path: Path) -> None:
    child = (
        "import time\nprint('loaded', flush=True)\nkept = []\n"
        "for _ in range(40):\n    kept.append(bytearray(400_000)); kept[-1][::4096] = b'x' * 98;"
        " time.sleep(0.02)\ntime.sleep(1)"  # so that it is seen as it ended on a busy machine, too
    )
    (tmp_path / "leak.py").write_text(child)
    code, held = soak.watch(
        [
            sys.executable,
            "-c",
            f"import subprocess, sys; subprocess.run([sys.executable, {str(tmp_path / 'leak.py')!r}])",
        ],
        0.02,
    )
    assert code == 0
    found = {name: readings.growth(samples) for name, samples in held.items()}
    assert "model grew by" in (readings.verdict(code, found, 4e6) or "")


@pytest.mark.release
def test_the_soak_runs(bundle_folder: Path, tmp_path: Path) -> None:
    command = [
        sys.executable,
        str(ROOT / "bench/soak.py"),
        "--bundle",
        str(bundle_folder),
        "--variant",
        "quantized",
        "--minutes",
        "0.05",
    ]
    command += ["--sample-s", "0.05", "--limit-mb", "20", "--json", str(tmp_path / "soak.json")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "flat: neither grew" in done.stdout
    found = json.loads((tmp_path / "soak.json").read_text())
    assert found["result"]["live"]["ended"] == "seconds"
    assert len(found["readings"]["model"]) >= 20


@pytest.mark.release
@pytest.mark.parametrize(
    ("bundle", "minutes", "sentence"),
    [("nowhere", "1", "ended with code 2"), (None, "0.01", "are too few to see growth")],
)
def test_a_soak_that_says_nothing_fails(
    bundle: str | None, minutes: str, sentence: str, bundle_folder: Path, tmp_path: Path
) -> None:
    command = [
        sys.executable,
        str(ROOT / "bench/soak.py"),
        "--bundle",
        str(bundle_folder if bundle is None else tmp_path / bundle),
    ]
    done = subprocess.run(
        [*command, "--variant", "scaled", "--minutes", minutes],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 1
    assert sentence in done.stdout
    assert "Traceback" not in done.stderr
