"""Shows in minutes whether ``compare.py --live`` would grow in hours: it gets a generated MJPEG camera on
loopback, and what its processes hold is watched from outside.

    python bench/soak.py --bundle artifacts --variant compact-scaled --minutes 10

The camera sends pictures faster than the model answers. They differ, and every fiftieth is cut off. Each
second the resident memory, the open descriptors and the threads of compare.py and of the model's process are
read from /proc. The exit code is 1 when the memory of either grew by more than --limit-mb between the first
tenth of the run and its end, when either holds more descriptors or threads then, or when compare.py failed.
"""

import argparse
import contextlib
import dataclasses
import io
import itertools
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from readings import Reading, child_of, growth, reading, verdict

LAUNCHER = Path(__file__).resolve().parent.parent / "runtime" / "compare.py"
CUT_OFF_EVERY = 50
BOUNDARY = "frame"


def main(arguments: Sequence[str] | None = None) -> int:
    wanted = _parser().parse_args(arguments)
    command = [
        sys.executable,
        str(LAUNCHER),
        "--bundle",
        str(wanted.bundle),
        "--live",
        wanted.variant,
        "--every",
        "30",
    ]
    command += ["--threads", str(wanted.threads)] if wanted.threads else []
    with tempfile.TemporaryDirectory() as folder, camera(pictures(), wanted.fps) as url:
        document = Path(folder) / "live.json"
        command += ["--source", url, "--seconds", str(60 * wanted.minutes), "--json", str(document)]
        code, held = watch(command, wanted.sample_s)
        result = json.loads(document.read_text()) if document.exists() else None
    try:
        found = {} if code else {name: growth(samples) for name, samples in held.items()}
    except ValueError as error:
        print(f"FAILED: {error}")
        return 1
    for name, one in found.items():
        print(f"{name}: {one}")
    if wanted.json:
        readings = {name: [dataclasses.asdict(one) for one in samples] for name, samples in held.items()}
        wanted.json.write_text(json.dumps({"readings": readings, "result": result}, indent=1))
    if failure := verdict(code, found, wanted.limit_mb * 1e6):
        print(f"FAILED: {failure}")
        return 1
    print(f"flat: neither grew by more than {wanted.limit_mb:g} MB, in descriptors or in threads")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="soak.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add(
        "--bundle",
        type=Path,
        default=Path("artifacts"),
        metavar="DIR",
        help="what 'vgg-export all' wrote (default: artifacts)",
    )
    add("--variant", default="compact-scaled", metavar="NAME", help="default: %(default)s")
    add("--minutes", type=float, default=10.0, metavar="N", help="default: %(default)s")
    add(
        "--fps",
        type=float,
        default=60.0,
        metavar="N",
        help="pictures per second of the camera (default: %(default)s)",
    )
    add("--threads", type=int, metavar="N", help="threads of onnxruntime (default: what compare.py takes)")
    add(
        "--sample-s",
        type=float,
        default=1.0,
        metavar="SECONDS",
        help="time between two readings (default: %(default)s)",
    )
    add(
        "--limit-mb",
        type=float,
        default=4.0,
        metavar="MB",
        help="how much each process may grow (default: %(default)s)",
    )
    add("--json", type=Path, metavar="FILE", help="write every reading and the result of compare.py")
    return parser


def watch(command: Sequence[str], sample_s: float) -> tuple[int, dict[str, list[Reading]]]:
    """Run ``command``; returns its exit code, and readings of it and of its child process.

    A reading is taken every ``sample_s`` while both live, from the first line that it prints on: then the
    model is loaded, however busy the machine is.
    """
    running = subprocess.Popen(list(command), stdout=subprocess.PIPE)
    held: dict[str, list[Reading]] = {"compare.py": [], "model": []}
    begun = threading.Event()
    shown = threading.Thread(target=_pass_on, args=(running, begun), daemon=True)
    shown.start()
    try:
        while running.poll() is None:
            time.sleep(sample_s)
            if not begun.is_set():
                continue
            with contextlib.suppress(OSError, IndexError):  # it has not begun, or has ended between two looks
                both = reading(running.pid), reading(child_of(running.pid))
                for samples, one in zip(held.values(), both, strict=True):
                    samples.append(one)
    finally:
        running.terminate()
        running.wait()
        shown.join()
    return running.returncode, held


def _pass_on(running: "subprocess.Popen[bytes]", begun: threading.Event) -> None:
    assert running.stdout is not None
    with running.stdout:
        for line in running.stdout:
            begun.set()
            sys.stdout.write(line.decode(errors="replace"))
            sys.stdout.flush()


def pictures(count: int = 40, size_px: tuple[int, int] = (640, 480)) -> list[bytes]:
    """JPEGs of coloured noise over a moving bar: different sizes in bytes, as a camera's are."""
    random = np.random.default_rng(0)
    found = []
    for k in range(count):
        pixels = random.integers(0, 20 + 5 * k, (size_px[1], size_px[0], 3), dtype=np.uint8)
        pixels[:, 16 * (k % 30) : 16 * (k % 30) + 40] = 255
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "JPEG", quality=80)
        found.append(file.getvalue())
    return found


@contextlib.contextmanager
def camera(
    frames: Sequence[bytes],
    fps: float,
    *,
    limit: int | None = None,
    cut_off_every: int | None = CUT_OFF_EVERY,
) -> Iterator[str]:
    """A server of ``multipart/x-mixed-replace`` on loopback that sends ``frames`` over and over, ``limit`` in
    all; its address."""

    def sent() -> Iterator[bytes]:
        for k, frame in enumerate(itertools.islice(itertools.cycle(frames), limit), 1):
            yield frame[: len(frame) // 2] if cut_off_every and k % cut_off_every == 0 else frame

    server = serve(sent, fps)
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/"
    finally:
        server.shutdown()
        server.server_close()


def serve(sent: Callable[[], Iterable[bytes]], fps: float, port: int = 0) -> ThreadingHTTPServer:
    """Start a server of ``multipart/x-mixed-replace`` on loopback that sends whoever asks the frames of
    ``sent()``. ``port``: 0 for a free one."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", f"multipart/x-mixed-replace; boundary={BOUNDARY}")
            self.end_headers()
            due = time.monotonic()
            with contextlib.suppress(OSError):  # the other end has seen enough
                for frame in sent():
                    head = f"--{BOUNDARY}\r\nContent-Type: image/jpeg\r\nContent-Length: {len(frame)}\r\n\r\n"
                    self.wfile.write(head.encode() + frame + b"\r\n")
                    due += 1 / fps
                    time.sleep(max(0.0, due - time.monotonic()))

        def log_message(self, *_: Any) -> None:
            """Log nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


if __name__ == "__main__":
    sys.exit(main())
