"""``compare.py --live``: opens what was asked for, runs the stream, shows the summary."""

import argparse
import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from vgg_runtime import console, output
from vgg_runtime.board import device
from vgg_runtime.bundle.manifest import Variant
from vgg_runtime.bundle.opened import Bundle
from vgg_runtime.errors import RuntimeInputError
from vgg_runtime.measure import measure
from vgg_runtime.report import tables

from . import arguments, mqtt, sinks, sources, stream, text
from .answers import Answer

STANDARD_OUTPUT = Path("-")


def run(options: argparse.Namespace, bundle: Bundle) -> int:
    """Classify the stream; returns the exit code.

    Raises:
        RuntimeInputError: an option, the source or a sink cannot be used.
    """
    if options.threads == 0:
        raise RuntimeInputError(
            "--threads auto does not go with --live; find the number with compare.py --threads auto and name"
            " it"
        )
    arguments.refuse_alone(vars(options))
    variant = bundle.manifest.variant(options.live)
    lines = options.json == STANDARD_OUTPUT
    if options.change and not (lines or options.log):
        raise RuntimeInputError("--change belongs to --json - or --log, which write answers")
    source = sources.open_source(options.source or "camera", options.fps, reconnect=options.reconnect)
    output.check_writable(*filter(None, (None if lines else options.json,)))
    needed = [bundle.manifest.labels, bundle.manifest.expected, *variant.build.files]
    bundle.check(needed, lambda e: console.glimpse(f"checking {e.path}"))
    console.clear_report()
    # what a program reads must not mix with what a person reads
    say = console.say_aside if lines else console.say
    notice = tables.notice(measure.about(bundle), console.width())
    if notice:
        say(notice)
    if isinstance(source, sources.Folder) and (words := source.left_out()):
        console.say_aside(f"{source.name}: {words}")
    with _opened(options, variant, lines=lines) as opened:
        result = stream.run(bundle, variant, source, _settings(options), say, opened)
    say("\n" + "\n\n".join(filter(None, (text.summary(result, console.width()), notice))))
    if options.json and not lines:
        output.write(options.json, json.dumps(result.to_json(), indent=1, allow_nan=False))
    codes = {"error": console.EXIT_FAILED, "interrupted": console.EXIT_INTERRUPTED}
    return codes.get(result.live.ended, console.EXIT_OK)


def _settings(options: argparse.Namespace) -> stream.Settings:
    watched = sys.stdout.isatty()
    return stream.Settings(
        threads=options.threads or device.usable_cores(),
        frames=options.frames,
        seconds=options.seconds,
        every_s=options.every or (arguments.EVERY_S if watched else arguments.EVERY_S_ALONE),
        width=console.width() if watched else None,
        memory=options.memory,
        max_fps=options.max_fps,
        region=options.region,
        stability=arguments.stability(options),
    )


@contextlib.contextmanager
def _opened(options: argparse.Namespace, variant: Variant, *, lines: bool) -> Iterator[list[sinks.Sink]]:
    """The sinks that were asked for; closed at the end."""
    found: list[sinks.Sink] = []
    only: Callable[[sinks.Sink], sinks.Sink] = _Changed if options.change else _as_it_is
    with contextlib.ExitStack() as stack:

        def use(sink: sinks.Sink, which: Callable[[sinks.Sink], sinks.Sink]) -> None:
            stack.callback(sink.close)
            found.append(which(sink))

        if lines:
            use(sinks.Lines(), only)
        if options.log:
            use(sinks.Log(options.log, options.log_bytes or arguments.LOG_BYTES), only)
        if options.on_change:
            use(sinks.Command(arguments.command(options.on_change)), _as_it_is)
        if options.mqtt:
            use(mqtt.Mqtt(mqtt.broker(options.mqtt, options.mqtt_login), variant.id), _as_it_is)
        yield found


def _as_it_is(sink: sinks.Sink) -> sinks.Sink:
    return sink


class _Changed:
    """Hands on only the answers that changed."""

    def __init__(self, sink: sinks.Sink) -> None:
        self._sink = sink

    def give(self, answer: Answer) -> None:
        if answer.changed:
            self._sink.give(answer)

    def failure(self) -> str | None:
        return self._sink.failure()

    def close(self) -> None:
        self._sink.close()
