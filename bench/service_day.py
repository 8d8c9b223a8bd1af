"""A service's day in minutes: ``compare.py --live`` with a camera and a broker that go away and come back.

    python bench/service_day.py --bundle artifacts --minutes 10

A generated MJPEG camera (1920 x 1080 px, 15 frames a second) shows one picture of the bundle for some seconds
and then the next. The answers go to a real mosquitto and to a log. The camera is restarted twice, the broker
is killed twice. Told are: the answers that were stable and whether each one reached a subscriber, the CPU
seconds per frame, the memory, and the message by which Home Assistant finds the sensor. The exit code is 1
when an answer was lost, the memory grew, or compare.py failed.

Needs mosquitto (Debian: apt-get install mosquitto) and paho-mqtt.
"""

import argparse
import dataclasses
import io
import itertools
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from readings import Reading, child_of, growth, reading, verdict
from soak import LAUNCHER, serve

TOPIC = "front/door"
CAMERA_AWAY_S, BROKER_AWAY_S = 5.0, 10.0
VERSIONS = 5  # of each picture, with other noise
DISCOVERY = "homeassistant/sensor/+/config"


def main(arguments: Sequence[str] | None = None) -> int:
    wanted = _parser().parse_args(arguments)
    day = Day(wanted)
    with tempfile.TemporaryDirectory() as folder:
        found = day.live(Path(folder))
    print(told(found))
    if wanted.json:
        wanted.json.write_text(json.dumps(dataclasses.asdict(found), indent=1))
    failure = found.failure(wanted.limit_mb * 1e6)
    print(f"FAILED: {failure}" if failure else "nothing was lost, and the memory is flat")
    return 1 if failure else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="service_day.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--bundle", type=Path, default=Path("artifacts"), metavar="DIR", help="default: %(default)s")
    add("--variant", default="compact-scaled", metavar="NAME", help="default: %(default)s")
    add("--minutes", type=float, default=10.0, metavar="N", help="default: %(default)s")
    add("--fps", type=float, default=15.0, metavar="N", help="of the camera (default: %(default)s)")
    add("--size", default="1920x1080", metavar="WxH", help="of its pictures in px (default: %(default)s)")
    add("--scene-s", type=float, default=6.0, metavar="S", help="seconds for each picture (%(default)s)")
    add("--stable", default="1s", metavar="N", help="as compare.py's (default: %(default)s)")
    add("--limit-mb", type=float, default=4.0, metavar="MB", help="how much each process may grow")
    add("--json", type=Path, metavar="FILE", help="write what was found")
    return parser


@dataclasses.dataclass(frozen=True)
class Found:
    """What a day gave. ``changes``: the frames with a new stable answer, by the log; ``arrived``: those that
    the subscriber got. ``discovery``: the retained message, one for each time it came."""

    code: int
    frames: dict[str, int]
    reconnected: int
    changes: list[int]
    arrived: list[int]
    failed_deliveries: int
    discovery: list[dict[str, Any]]
    availability: list[str]
    cpu_s: dict[str, float]
    held: dict[str, list[Reading]]
    latency_ms: dict[str, float | None]

    @property
    def lost(self) -> list[int]:
        """The frames whose new answer did not arrive."""
        return sorted(set(self.changes) - set(self.arrived))

    def failure(self, limit_bytes: float) -> str | None:
        """What went wrong, or None."""
        if not self.changes:
            return "no answer was stable"
        if self.lost:
            return f"{len(self.lost)} of {len(self.changes)} stable answers did not arrive: {self.lost}"
        if not self.discovery:
            return "no discovery message came"
        return verdict(self.code, {name: growth(each) for name, each in self.held.items()}, limit_bytes)


def told(found: Found) -> str:
    """The figures as lines."""
    classified = max(1, found.frames["classified"])
    lines = [
        f"frames: {found.frames}; camera reconnected {found.reconnected} times",
        f"stable answers: {len(found.changes)} in the log, {len(set(found.arrived))} at the subscriber,"
        f" {len(found.lost)} lost, {found.failed_deliveries} failed deliveries",
        f"availability: {found.availability}",
        f"latency in ms: {found.latency_ms}",
    ]
    for name, seconds in found.cpu_s.items():
        one = growth(found.held[name])
        lines.append(
            f"{name}: {1e3 * seconds / classified:.2f} ms of CPU per frame;"
            f" {one.start_bytes / 1e6:.1f} MB after the first tenth, then {one.grown_bytes / 1e6:+.1f} MB"
        )
    lines.append(f"discovery: {json.dumps(found.discovery[-1]) if found.discovery else 'none'}")
    return "\n".join(lines)


class Day:
    """The parts that come and go."""

    def __init__(self, wanted: argparse.Namespace) -> None:
        self.wanted = wanted
        self.camera_port, self.broker_port = free_port(), free_port()
        size = tuple(int(side) for side in wanted.size.split("x"))
        samples = sorted((wanted.bundle / "samples").iterdir())
        self.scenes = [scene(path, size, k) for k, path in enumerate(samples)]

    def live(self, folder: Path) -> Found:
        """Run the day, and return what it gave."""
        wanted, seconds = self.wanted, 60 * self.wanted.minutes
        log, document = folder / "log.jsonl", folder / "live.json"
        camera, broker = Camera(self.scenes, self.camera_port, wanted), Broker(self.broker_port)
        subscriber = Subscriber(self.broker_port)
        command = [sys.executable, str(LAUNCHER), "--bundle", str(wanted.bundle), "--live", wanted.variant]
        command += ["--source", f"http://127.0.0.1:{self.camera_port}/", "--reconnect", "--every", "60"]
        command += ["--mqtt", f"mqtt://127.0.0.1:{self.broker_port}/{TOPIC}", "--stable", wanted.stable]
        command += ["--log", str(log), "--json", str(document), "--seconds", str(seconds)]
        running = subprocess.Popen(command)
        events = sorted(
            [(share * seconds, camera.away) for share in (0.3, 0.6)]
            + [(share * seconds, broker.away) for share in (0.2, 0.7)],
            key=lambda event: event[0],
        )
        held: dict[str, list[Reading]] = {"compare.py": [], "model": []}
        cpu = dict.fromkeys(held, 0.0)
        begun = time.monotonic()
        try:
            while running.poll() is None:
                if events and time.monotonic() - begun > events[0][0]:
                    threading.Thread(target=events.pop(0)[1], daemon=True).start()
                sample(running.pid, held, cpu)
                time.sleep(1.0)
        finally:
            running.terminate()
            code = running.wait()
            time.sleep(2.0)  # what is on its way arrives
            for part in (subscriber, camera, broker):
                part.close()
        live = json.loads(document.read_text())["live"]
        answers = [json.loads(line) for line in log.read_text().splitlines()]
        return Found(
            code,
            live["frames"],
            live["reconnected"],
            [answer["frame"] for answer in answers if answer["changed"]],
            subscriber.frames,
            live["failed_deliveries"],
            subscriber.discovery,
            subscriber.availability,
            cpu,
            held,
            {name: live[f"{name}_ms"]["p50"] for name in ("decode", "model", "end_to_end")},
        )


def sample(pid: int, held: dict[str, list[Reading]], cpu: dict[str, float]) -> None:
    """Add a reading of compare.py and of its model, and note the CPU seconds that they took."""
    try:
        found = {"compare.py": pid, "model": child_of(pid)}
        readings = [reading(one) for one in found.values()]
        spent = [cpu_s(one) for one in found.values()]
    except (OSError, IndexError):  # it has not begun, or has ended
        return
    for (name, samples), one, seconds in zip(held.items(), readings, spent, strict=True):
        samples.append(one)
        cpu[name] = seconds


def cpu_s(pid: int) -> float:
    """The CPU seconds of a process so far (proc(5): fields 14 and 15 of stat)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def scene(path: Path, size: tuple[int, ...], seed: int) -> list[bytes]:
    """A picture at the camera's size, as JPEGs with different noise."""
    random, found = np.random.default_rng(seed), []
    image = Image.open(path).convert("RGB").resize((size[1], size[1]))
    frame = Image.new("RGB", (size[0], size[1]), "grey")
    frame.paste(image, ((size[0] - size[1]) // 2, 0))
    pixels = np.asarray(frame, np.int16)
    for _ in range(VERSIONS):
        noisy = np.clip(pixels + random.normal(0, 2, pixels.shape), 0, 255).astype(np.uint8)
        file = io.BytesIO()
        Image.fromarray(noisy).save(file, "JPEG", quality=80)
        found.append(file.getvalue())
    return found


class Camera:
    """An MJPEG server on loopback that can go away."""

    def __init__(self, scenes: Sequence[Sequence[bytes]], port: int, wanted: argparse.Namespace) -> None:
        self._scenes, self._port, self._wanted = scenes, port, wanted
        self._begun = time.monotonic()
        self._gone = threading.Event()
        self._start()

    def away(self) -> None:
        """Break off, and come back."""
        print("-- the camera goes away", flush=True)
        self.close()
        time.sleep(CAMERA_AWAY_S)
        self._start()
        print("-- the camera is back", flush=True)

    def close(self) -> None:
        self._gone.set()
        self._server.shutdown()
        self._server.server_close()

    def _start(self) -> None:
        self._gone = gone = threading.Event()
        self._server = serve(
            lambda: itertools.takewhile(lambda _: not gone.is_set(), self._frames()),
            self._wanted.fps,
            self._port,
        )

    def _frames(self) -> Iterator[bytes]:
        for k in itertools.count():
            place = int((time.monotonic() - self._begun) / self._wanted.scene_s) % len(self._scenes)
            yield self._scenes[place][k % VERSIONS]


class Broker:
    """A real mosquitto that can be killed."""

    def __init__(self, port: int) -> None:
        self._port, self._found = port, shutil.which("mosquitto") or "/usr/sbin/mosquitto"
        self._start()

    def away(self) -> None:
        """Be killed, and be started anew, without a memory."""
        print("-- the broker is killed", flush=True)
        self.close()
        time.sleep(BROKER_AWAY_S)
        self._start()
        print("-- the broker is back", flush=True)

    def close(self) -> None:
        self._process.kill()
        self._process.wait()

    def _start(self) -> None:
        self._process = subprocess.Popen(
            [self._found, "-p", str(self._port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        for _ in range(100):
            with socket.socket() as one:
                if one.connect_ex(("127.0.0.1", self._port)) == 0:
                    return
            time.sleep(0.05)
        raise SystemExit("mosquitto does not start")


class Subscriber:
    """Notes what the broker passes on."""

    def __init__(self, port: int) -> None:
        import paho.mqtt.client as paho

        self.frames: list[int] = []
        self.discovery: list[dict[str, Any]] = []
        self.availability: list[str] = []
        self._client = paho.Client(paho.CallbackAPIVersion.VERSION2)
        self._client.on_connect = lambda client, *_: client.subscribe([(f"{TOPIC}/#", 1), (DISCOVERY, 1)])
        self._client.on_message = self._note
        self._client.reconnect_delay_set(1, 1)
        self._client.connect_async("127.0.0.1", port)
        self._client.loop_start()

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    def _note(self, _client: Any, _data: Any, message: Any) -> None:
        if message.topic.endswith("/config"):
            self.discovery.append(json.loads(message.payload))
        elif message.topic.endswith("/availability"):
            self.availability.append(message.payload.decode())
        else:
            self.frames.append(json.loads(message.payload)["frame"])


if __name__ == "__main__":
    sys.exit(main())
