"""Publishing to a real mosquitto."""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from vgg_runtime.errors import RuntimeInputError
from vgg_runtime.live import mqtt
from vgg_runtime.live.answers import Answer
from vgg_runtime.live.document import Said

MOSQUITTO = shutil.which("mosquitto", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
needs_mosquitto = pytest.mark.skipif(
    not MOSQUITTO and not os.environ.get("VGG_EXPORT_REQUIRE_MOSQUITTO"),
    reason="needs mosquitto (apt install mosquitto)",
)
USER, PASSWORD = "board", "p@ss"


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


class Broker:
    """A mosquitto that can be killed and started again on the same port. It forgets what it was told."""

    def __init__(self, folder: Path, *, login: bool = False) -> None:
        self.port = free_port()
        lines = [f"listener {self.port} 127.0.0.1", f"allow_anonymous {'false' if login else 'true'}"]
        if login:
            passwords = folder / "passwords"
            subprocess.run(["mosquitto_passwd", "-b", "-c", passwords, USER, PASSWORD], check=True)
            lines += [f"password_file {passwords}", "user root"]
        (folder / "mosquitto.conf").write_text("\n".join(lines) + "\n")
        self._command = [MOSQUITTO or "mosquitto", "-c", str(folder / "mosquitto.conf")]
        self._running: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self._running = subprocess.Popen(self._command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_for(self._answers)

    def kill(self) -> None:
        if self._running:
            self._running.kill()
            self._running.wait(10)

    def _answers(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
            return True
        return False


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    found = Broker(tmp_path)
    found.start()
    yield found
    found.kill()


class Listener:
    """Everything that is published, as Home Assistant hears it: topic, text, whether it was retained."""

    def __init__(self, port: int, login: tuple[str, str] | None = None) -> None:
        import paho.mqtt.client as paho

        self.heard: list[tuple[str, str, bool]] = []
        self._client = paho.Client(paho.CallbackAPIVersion.VERSION2)
        self._client.reconnect_delay_set(1, 1)
        if login:
            self._client.username_pw_set(*login)
        subscribed = threading.Event()
        self._client.on_connect = lambda client, *_: client.subscribe("#", qos=1)
        self._client.on_subscribe = lambda *_: subscribed.set()
        self._client.on_message = lambda _c, _d, m: self.heard.append((m.topic, m.payload.decode(), m.retain))
        self._client.connect("127.0.0.1", port, 15)
        self._client.loop_start()
        assert subscribed.wait(10)

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    def of(self, topic: str) -> list[str]:
        return [text for where, text, _ in self.heard if where == topic]

    def labels(self, topic: str = "home/door/state") -> list[str | None]:
        return [json.loads(text)["label"] for text in self.of(topic)]


def wait_for(condition: Any, seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.05)


def an_answer(label: str | None, frame: int = 1, *, changed: bool = True) -> Answer:
    said = () if label is None else (Said(label, 0.91),)
    share = None if label is None else 0.91
    return Answer("2026-01-01T00:00:00.000Z", frame, label, share, changed, said, 1.0, 2.0, 3.5)


def sink(port: int, **more: Any) -> mqtt.Mqtt:
    return mqtt.Mqtt(mqtt.Broker("127.0.0.1", port, "home/door", tls=False, **more), "compact-scaled")


# What Home Assistant takes of a sensor's discovery (homeassistant/components/mqtt: abbreviations.py,
# sensor.py, schemas.py), with the kind of each value.
TAKEN: dict[str, type] = {
    "name": str, "unique_id": str, "state_topic": str, "value_template": str, "json_attributes_topic": str,
    "availability_topic": str, "icon": str, "device": dict, "origin": dict,
}  # fmt: skip
OF_DEVICE = {"identifiers", "name", "manufacturer", "model", "sw_version"}
OF_ORIGIN = {"name", "sw_version", "support_url"}


@needs_mosquitto
def test_home_assistant_finds_the_sensor_and_hears_of_changes(broker: Broker) -> None:
    listener, found = Listener(broker.port), sink(broker.port)
    try:
        wait_for(lambda: listener.of("home/door/availability"))
        found.give(an_answer("open"))
        found.give(an_answer("open", 2, changed=False))
        found.give(an_answer("shut", 3))
        found.give(an_answer(None, 4))
        wait_for(lambda: len(listener.labels()) == 3)
        assert listener.labels() == ["open", "shut", None]
        assert json.loads(listener.of("home/door/state")[0]) == {
            "label": "open", "probability": 0.91, "at": "2026-01-01T00:00:00.000Z", "frame": 1,
        }  # fmt: skip
        (config,) = (
            json.loads(text) for text in listener.of("homeassistant/sensor/vgg_export_home_door/config")
        )
        assert {key: type(value) for key, value in config.items()} == {k: TAKEN[k] for k in config}
        assert {"unique_id", "state_topic", "device", "origin"} <= set(config)
        assert set(config["device"]) <= OF_DEVICE
        assert set(config["origin"]) <= OF_ORIGIN
        assert config["state_topic"] == "home/door/state"
        assert listener.of("home/door/availability") == ["online"]
        late = Listener(broker.port)  # what holds is told to who comes later
        wait_for(lambda: late.labels() == [None] and late.of("home/door/availability") == ["online"])
        assert all(retained for _, _, retained in late.heard)
        late.close()
    finally:
        found.close()
    wait_for(lambda: listener.of("home/door/availability") == ["online", "offline"])
    listener.close()


@needs_mosquitto
def test_nothing_is_lost_while_the_broker_is_away(broker: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mqtt, "BACKOFF_S", (4, 4))  # the listener is there before it
    found = sink(broker.port)
    listener = Listener(broker.port)
    try:
        wait_for(lambda: listener.of("home/door/availability"))
        found.give(an_answer("open"))
        wait_for(lambda: listener.labels() == ["open"])
        broker.kill()
        wait_for(lambda: not found._client.is_connected())
        for k, label in enumerate(("shut", "open", "ajar")):
            found.give(an_answer(label, 2 + k))
        broker.start()
        wait_for(lambda: {"shut", "ajar"} <= set(listener.labels()))
        late = Listener(broker.port)
        wait_for(lambda: late.labels()[-1:] == ["ajar"] and "online" in late.of("home/door/availability"))
        assert late.of("homeassistant/sensor/vgg_export_home_door/config")
        late.close()
    finally:
        found.close()
        listener.close()


@needs_mosquitto
def test_the_last_will_says_that_it_is_gone(broker: Broker) -> None:
    listener, found = Listener(broker.port), sink(broker.port)
    try:
        wait_for(lambda: listener.of("home/door/availability") == ["online"])
        connection: Any = found._client.socket()
        found._client.loop_stop()
        connection.shutdown(socket.SHUT_RDWR)  # without a farewell
        connection.close()
        wait_for(lambda: listener.of("home/door/availability") == ["online", "offline"])
    finally:
        listener.close()


@needs_mosquitto
def test_a_login_is_used_and_a_refusal_is_told(tmp_path: Path) -> None:
    broker = Broker(tmp_path, login=True)
    broker.start()
    try:
        listener = Listener(broker.port, (USER, PASSWORD))
        found = sink(broker.port, login=(USER, PASSWORD))
        wait_for(lambda: listener.of("home/door/availability") == ["online"])
        found.close()
        listener.close()
        stranger = sink(broker.port)
        wait_for(lambda: "refuses the connection" in (stranger.failure() or ""))
        stranger.close()
    finally:
        broker.kill()


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("mqtt://me:secret@host/x", "--mqtt takes no user and password"),
        ("http://host/x", "http://host/x is no address of a broker"),
        ("mqtt://host", "is no address of a broker; expected mqtt://HOST"),
        ("mqtt://host:99999/x", "is no address of a broker"),
        ("mqtt://host/a/%23", "has a wildcard in it"),
    ],
)
def test_an_address_that_is_none(address: str, said: str) -> None:
    with pytest.raises(RuntimeInputError, match=said) as raised:
        mqtt.broker(address, None)
    assert "secret" not in str(raised.value)


def test_the_login_comes_from_a_file_or_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(mqtt.USER, raising=False)
    assert mqtt.broker("mqtts://host/a/b", None) == mqtt.Broker("host", 8883, "a/b", True)
    (tmp_path / "login").write_text("me\np@ss word\n")
    assert mqtt.broker("mqtt://host:1/a", tmp_path / "login").login == ("me", "p@ss word")
    monkeypatch.setenv(mqtt.USER, "you")
    monkeypatch.setenv(mqtt.PASSWORD, "x")
    assert mqtt.broker("mqtt://host/a", None).login == ("you", "x")
    (tmp_path / "login").write_text("me\n")
    with pytest.raises(RuntimeInputError, match="has 1 lines; expected the user in the first"):
        mqtt.broker("mqtt://host/a", tmp_path / "login")
    with pytest.raises(RuntimeInputError, match=r"cannot be read .No such file"):
        mqtt.broker("mqtt://host/a", tmp_path / "none")


def test_without_paho_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "paho.mqtt.client", None)
    with pytest.raises(
        RuntimeInputError, match=r"--mqtt needs paho-mqtt: \S+ -m pip install -r \S+/requirements-mqtt\.txt"
    ):
        sink(1)
