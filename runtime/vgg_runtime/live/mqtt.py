"""Publishes answers to an MQTT broker, with Home Assistant's discovery.

Topics, below the one in the address: ``state`` (retained JSON, with each change) and ``availability``
(``online``, and ``offline`` as the last will). See home-assistant.io/integrations/mqtt/#mqtt-discovery.
"""

import contextlib
import dataclasses
import json
import os
import re
import threading
import urllib.parse
from pathlib import Path
from typing import Any

from vgg_runtime import __version__, console, text
from vgg_runtime.addresses import without_secrets
from vgg_runtime.errors import RuntimeInputError

from .answers import Answer
from .sinks import SinkError

PORTS = {"mqtt": 1883, "mqtts": 8883}
DISCOVERY = "homeassistant"
QUEUED = 1000  # changes that wait for the broker at most
KEEPALIVE_S = 15
BACKOFF_S = (1, 30)  # between two attempts to connect
FAREWELL_S = 3.0
USER, PASSWORD = "VGG_MQTT_USER", "VGG_MQTT_PASSWORD"
FORM = "expected mqtt://HOST[:PORT]/TOPIC or mqtts://…"


@dataclasses.dataclass(frozen=True)
class Broker:
    """Where to publish. ``login``: user and password, from the environment or from a file, never from the
    command line, which others can read."""

    host: str
    port: int
    topic: str
    tls: bool
    login: tuple[str, str] | None = dataclasses.field(default=None, repr=False)

    @property
    def id(self) -> str:
        """The topic as an identifier."""
        return "vgg_export_" + re.sub(r"[^A-Za-z0-9_-]", "_", self.topic)

    @property
    def state(self) -> str:
        return f"{self.topic}/state"

    @property
    def availability(self) -> str:
        return f"{self.topic}/availability"


def broker(address: str, login_file: Path | None) -> Broker:
    """The broker that ``--mqtt`` names.

    Raises:
        RuntimeInputError: the address or the file is not of the form that is expected.
    """
    try:
        found = urllib.parse.urlsplit(address)
    except ValueError as error:
        raise RuntimeInputError(f"--mqtt, {without_secrets(address)}, cannot be read; {FORM}") from error
    if found.username or found.password:
        raise RuntimeInputError(
            "--mqtt takes no user and password, because others can read the command line; put them into a"
            f" file of two lines for --mqtt-login, or into {USER} and {PASSWORD}"
        )
    shown = without_secrets(address)
    topic = urllib.parse.unquote(found.path).strip("/")
    try:
        port = found.port or PORTS.get(found.scheme, 0)
    except ValueError:
        port = 0
    if (
        found.scheme not in PORTS
        or not found.hostname
        or not topic
        or not port
        or found.query
        or found.fragment
    ):
        raise RuntimeInputError(f"{shown} is no address of a broker; {FORM}")
    if set("+#\0") & set(topic):
        raise RuntimeInputError(f"the topic {text.printable(topic, 60)} has a wildcard in it; name one topic")
    return Broker(found.hostname, port, topic, found.scheme == "mqtts", _login(login_file))


def _login(path: Path | None) -> tuple[str, str] | None:
    if path is None:
        user = os.environ.get(USER)
        return (user, os.environ.get(PASSWORD, "")) if user else None
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no text"
        raise RuntimeInputError(f"{path} cannot be read ({reason}); --mqtt-login takes a file") from error
    if len(lines) != 2 or not lines[0]:
        raise RuntimeInputError(
            f"{path} has {len(lines)} lines; expected the user in the first and the password in the second"
        )
    return lines[0], lines[1]


def discovery(to: Broker, variant: str) -> dict[str, Any]:
    """The message by which Home Assistant finds the sensor."""
    return {
        "name": to.topic,
        "unique_id": to.id,
        "state_topic": to.state,
        "value_template": "{{ value_json.label if value_json.label else 'none' }}",
        "json_attributes_topic": to.state,
        "availability_topic": to.availability,
        "icon": "mdi:image-search",
        "device": {
            "identifiers": [to.id],
            "name": to.topic,
            "manufacturer": "vgg-export",
            "model": variant,
            "sw_version": __version__,
        },
        "origin": {"name": "vgg-export", "sw_version": __version__},
    }


class Mqtt:
    """A sink that publishes each change. It connects in the background, and again whenever it was cut off;
    changes wait for that."""

    def __init__(self, to: Broker, variant: str) -> None:
        try:
            import paho.mqtt.client as paho
        except ImportError as error:
            raise RuntimeInputError(
                f"--mqtt needs paho-mqtt: {console.install('requirements-mqtt.txt')}"
            ) from error
        self._to, self._variant = to, variant
        self._lock = threading.Lock()
        self._failure: str | None = None
        self._last: tuple[str, Any] | None = None  # the newest state, and what paho says of it
        self._closed = False
        self._client = paho.Client(paho.CallbackAPIVersion.VERSION2, client_id=to.id)
        self._client.on_connect = self._connected
        self._client.on_connect_fail = lambda _client, _data: self._note(
            f"--mqtt: {to.host} port {to.port} cannot be reached"
        )
        self._client.will_set(to.availability, "offline", qos=1, retain=True)
        self._client.max_queued_messages_set(QUEUED)
        self._client.reconnect_delay_set(*BACKOFF_S)
        if to.tls:
            self._client.tls_set()
        if to.login:
            self._client.username_pw_set(*to.login)
        self._client.connect_async(to.host, to.port, KEEPALIVE_S)
        self._client.loop_start()

    def give(self, answer: Answer) -> None:
        """Publish the answer where it changed."""
        if not answer.changed:
            return
        state = {"label": answer.label, "probability": answer.probability}
        words = json.dumps(state | {"at": answer.at, "frame": answer.frame}, ensure_ascii=False)
        sent = self._client.publish(self._to.state, words, qos=1, retain=True)
        with self._lock:
            self._last = words, sent
        if sent.rc == 15:  # MQTT_ERR_QUEUE_SIZE
            raise SinkError(f"--mqtt: {QUEUED} changes wait for {self._to.host} already; this one is lost")

    def failure(self) -> str | None:
        """What went wrong since the last time."""
        with self._lock:
            found, self._failure = self._failure, None
            return found

    def close(self) -> None:
        """Say that nothing more comes, and go."""
        if self._closed:
            return
        self._closed = True
        with contextlib.suppress(RuntimeError, ValueError):  # there is no connection, or no room in the queue
            farewell = self._client.publish(self._to.availability, "offline", qos=1, retain=True)
            farewell.wait_for_publish(FAREWELL_S)
        self._client.disconnect()
        self._client.loop_stop()

    def _connected(self, client: Any, _data: Any, _flags: Any, reason: Any, _properties: Any) -> None:
        if reason.is_failure:
            self._note(f"--mqtt: {self._to.host} refuses the connection ({reason})")
            return
        message = json.dumps(discovery(self._to, self._variant))
        # not queued behind changes that wait
        client.publish(f"{DISCOVERY}/sensor/{self._to.id}/config", message, qos=0, retain=True)
        client.publish(self._to.availability, "online", qos=0, retain=True)
        with self._lock:
            last = self._last
        # a broker that was started anew has forgotten it; what still waits is sent by paho, in its order
        if last is not None and _was_sent(last[1]):
            client.publish(self._to.state, last[0], qos=1, retain=True)

    def _note(self, words: str) -> None:
        with self._lock:
            self._failure = self._failure or words  # the first reason, not what followed from it


def _was_sent(message: Any) -> bool:
    """Whether the broker has confirmed a message; paho raises where it never took it."""
    try:
        return bool(message.is_published())
    except (RuntimeError, ValueError):
        return False
