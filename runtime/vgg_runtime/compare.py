"""The command line of the device: it compares all variants of a bundle."""

import argparse
import dataclasses
import hashlib
import io
import json
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

from . import __version__, output
from .board import device
from .bundle import builds, manifest
from .bundle.images import find, match_folders
from .bundle.opened import Bundle
from .bundle.preprocess import open_image
from .doctor import diagnosis
from .errors import ImageError, RuntimeInputError
from .measure import measure, tuning
from .measure.running import Options
from .report import tables
from .result import Result

EXIT_OK, EXIT_FAILED, EXIT_INPUT, EXIT_INTERRUPTED = 0, 1, 2, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0 all well, 1 a self-check or a variant failed, 2 unusable
    input, 130 interrupted."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # a terminal without UTF-8 gets escapes, not a traceback
            stream.reconfigure(errors="backslashreplace")
    warnings.simplefilter("ignore")  # Pillow warns of damaged EXIF; what matters raises an error
    options = _parser().parse_args(arguments)
    try:
        return _run(options)
    except RuntimeInputError as error:
        print(f"Error: {error}", file=sys.stderr)
        return EXIT_INPUT
    except BrokenPipeError:
        # the program that read our output has ended
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_INPUT
    except KeyboardInterrupt:
        print("\nInterrupted.", file=sys.stderr)
        return EXIT_INTERRUPTED
    except MemoryError:
        print(
            "Error: this program itself did not fit into memory; close other programs, or measure one variant"
            " at a time with --variants",
            file=sys.stderr,
        )
        return EXIT_FAILED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="compare.py",
        description="Run every variant of a bundle and compare their predictions, latency, size, memory,"
        " load time and agreement.",
        epilog="examples: python compare.py --image cat.jpg --variants baseline,quantized --json result.json;"
        " python compare.py --live compact --source http://camera.local:8080/stream",
    )
    parser.add_argument(
        "--bundle",
        type=Path,
        metavar="DIR",
        help="the folder that 'vgg-export all' wrote (default: the bundle that holds this file, else"
        " ./artifacts)",
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "--image",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="a picture to classify; may be repeated (default: the bundle's samples)",
    )
    what.add_argument(
        "--images",
        type=Path,
        metavar="DIR",
        help="a folder of pictures to classify; class folders in it give an accuracy",
    )
    parser.add_argument("--variants", metavar="A,B", help="the variants to run, by name (default: all)")
    parser.add_argument(
        "--threads",
        type=_threads,
        metavar="N",
        help="threads of onnxruntime (default: the cores that this process may use); auto tries 1, 2 and 4"
        " for each variant",
    )
    parser.add_argument(
        "--budget",
        type=_seconds,
        default=10.0,
        metavar="SECONDS",
        help="seconds of timed runs per variant (default: 10)",
    )
    parser.add_argument(
        "--rounds",
        type=_positive,
        default=3,
        metavar="N",
        help="rounds in which the variants take turns, so that a hot board slows all alike (default: 3)",
    )
    parser.add_argument(
        "--cool-down",
        type=_seconds,
        default=30.0,
        metavar="SECONDS",
        help="longest wait before a turn, in which the board may cool down to its temperature at the start"
        " (default: 30)",
    )
    parser.add_argument(
        "--silence",
        type=_seconds,
        default=300.0,
        metavar="SECONDS",
        help="end a variant that has not answered for this long (default: 300)",
    )
    parser.add_argument(
        "--memory",
        choices=builds.MEMORY_MODES,
        default=builds.AUTO,
        help="lean keeps float weights in the pages of their file, which the system can drop; fast packs a"
        " copy of them; auto is fast where memory allows it (default: auto)",
    )
    parser.add_argument(
        "--target",
        metavar="CORE",
        help="use the builds for this core, e.g. pi4 (default: the core of this machine)",
    )
    parser.add_argument(
        "--tune",
        action="store_true",
        help="time all builds of each variant on this board first, and remember the fastest",
    )
    parser.add_argument(
        "--sure",
        action="store_true",
        help="recommend only what is sure to lose little: a loss counts with its standard error (default: the"
        " estimate decides, and what is not sure about it is said)",
    )
    # tests lay out /proc and /sys of another board here
    parser.add_argument("--root", type=Path, default=Path("/"), help=argparse.SUPPRESS)
    parser.add_argument("--top5", action="store_true", help="show the five most probable classes")
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="write the whole result as JSON, with every timed run"
    )
    parser.add_argument(
        "--html", type=Path, metavar="FILE", help="write the result as a web page that needs no server"
    )
    parser.add_argument(
        "--doctor",
        action="store_true",
        help="measure nothing; check this board and the bundle, and say what to do about each fault",
    )
    parser.add_argument(
        "--diff",
        type=Path,
        nargs=2,
        metavar=("A.json", "B.json"),
        help="compare two results that --json wrote; measure nothing",
    )
    parser.add_argument(
        "--serve", action="store_true", help="serve a web page that classifies pictures with every variant"
    )
    parser.add_argument("--port", type=_port, metavar="N", help="port of the page (default: 8000)")
    parser.add_argument(
        "--host",
        metavar="ADDRESS",
        help="address on which the page is served; 0.0.0.0 opens it to the network (default:"
        " 127.0.0.1, this machine only)",
    )
    _add_live(parser.add_argument_group("live"))
    parser.add_argument("--version", action="version", version=__version__)
    return parser


def _add_live(group: "argparse._ArgumentGroup") -> None:
    add = group.add_argument
    add(
        "--live",
        metavar="VARIANT",
        help="classify the newest frame of a stream with this variant, again and again until Ctrl-C",
    )
    add(
        "--source",
        metavar="FROM",
        help="where the frames come from: a folder (again and again), a file or pipe of JPEGs, - for standard"
        " input, http://… (MJPEG), /dev/video0 (needs ffmpeg) or camera (picamera2 or rpicam-vid); default:"
        " camera",
    )
    add(
        "--fps",
        type=_rate,
        metavar="N",
        help="frames per second of a folder, a file or a camera (default: 30)",
    )
    add("--frames", type=_count, metavar="N", help="end after N classified frames")
    add("--seconds", type=_duration, metavar="N", help="end after N seconds")
    add("--every", type=_seconds, metavar="SECONDS", help="seconds between two lines (default: 5)")


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a whole number, found {text!r}") from None


def _positive(text: str) -> int:
    value = _whole(text)
    if not 1 <= value <= 1024:
        raise argparse.ArgumentTypeError(f"expected 1 to 1024, found {text}")
    return value


def _threads(text: str) -> int:
    """A number of threads; 0 stands for auto."""
    return 0 if text == "auto" else _positive(text)


def _count(text: str) -> int:
    value = _whole(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected at least 1, found {text}")
    return value


def _number(text: str, most: float, unit: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a number of {unit}, found {text!r}") from None
    if not 0 < value <= most:
        raise argparse.ArgumentTypeError(f"expected more than 0 and at most {most:.0f} {unit}, found {text}")
    return value


def _seconds(text: str) -> float:
    return _number(text, 86400, "seconds")


def _duration(text: str) -> float:
    return _number(text, 366 * 86400, "seconds")


def _rate(text: str) -> float:
    return _number(text, 1000, "frames a second")


def _port(text: str) -> int:
    value = _whole(text)
    if not 0 <= value <= 65535:
        raise argparse.ArgumentTypeError(f"expected 0 to 65535, found {text}")
    return value


def _run(options: argparse.Namespace) -> int:
    if options.diff:
        return _diff(options)
    folder = options.bundle or default_bundle()
    if options.doctor:
        return _doctor(options, folder)
    bundle = Bundle(folder, tuning.for_here(manifest.read(folder), options.target, options.root))
    if options.sure:
        bundle = bundle.using(dataclasses.replace(bundle.manifest, sure=True))
    if options.live is not None:
        return _live(options, bundle)
    _refuse(options, ("source", "fps", "frames", "seconds", "every"), "belongs to --live VARIANT")
    if options.serve:
        return _serve(options, bundle)
    if options.port is not None or options.host:
        raise RuntimeInputError("--port and --host belong to --serve")
    if options.target:
        _refuse(options, ("tune",), "finds what is fastest on this core; it does not go with --target")
    return _compare(options, bundle)


def _compare(options: argparse.Namespace, bundle: Bundle) -> int:
    threads = device.usable_cores() if options.threads is None else options.threads or None
    variants = _chosen(bundle.manifest, options.variants)
    bundle.check(_needed(options, bundle.manifest, variants), lambda e: _report(f"checking {e.path}"))
    images = _images(options, bundle)
    output.check_writable(*filter(None, (options.json, options.html)))
    if options.tune:
        cores = threads or device.usable_cores()
        bundle = tuning.tune(bundle, variants, cores, options.root, _report_line)
        variants = _chosen(bundle.manifest, options.variants)
    settings = Options(
        threads=threads,
        budget_s=options.budget,
        rounds=options.rounds,
        cool_down_s=options.cool_down,
        silence_s=options.silence,
        memory=options.memory,
        root=options.root,
    )
    result = measure.compare(bundle, variants, images, settings, _report)
    _clear_report()
    _print(result, top5=options.top5)  # first: a full disk must not lose the measurement
    if options.json:
        output.write(options.json, json.dumps(result.to_json(), indent=1, allow_nan=False))
    if options.html:
        from .report import page

        output.write(options.html, page.report(result, [image.path for image in images]))
    return EXIT_FAILED if any(row.error for row in result.variants) else EXIT_OK


def _needed(
    options: argparse.Namespace, bundle: manifest.Manifest, variants: Sequence[manifest.Variant]
) -> list[manifest.FileEntry]:
    """The files of the bundle that a comparison reads."""
    models = [
        entry
        for variant in variants
        for build in (variant.builds if options.tune else (variant.build,))
        for entry in build.files
    ]
    samples = [] if options.image or options.images else [sample.file for sample in bundle.samples]
    fixed = [bundle.labels, bundle.expected, manifest.splits_entry(bundle)]
    return [*fixed, *dict.fromkeys(models), *samples]


def _diff(options: argparse.Namespace) -> int:
    _refuse(options, ("target", "tune", "memory", "sure"), "does not go with --diff, which measures nothing")
    from .report import diff

    print(diff.diff(*(diff.read(path) for path in options.diff)))
    return EXIT_OK


def _doctor(options: argparse.Namespace, folder: Path) -> int:
    names = ("image", "images", "html", "variants", "top5", "serve", "host", "port", "target", "tune")
    _refuse(options, ("memory", "sure"), "does not go with --doctor, which measures nothing")
    _refuse(options, names, "does not go with --doctor, which looks at the board and the whole bundle")
    return diagnosis.command(
        folder,
        options.threads or device.usable_cores(),
        options.json,
        lambda line: _report(line) if line else _clear_report(),
    )


def _serve(options: argparse.Namespace, bundle: Bundle) -> int:
    """Serve the page; options that the page offers itself are refused."""
    _refuse(
        options,
        ("image", "images", "json", "html", "variants", "tune"),
        "does not go with --serve; choose pictures and variants on the page",
    )
    from .web import app

    listed = bundle.manifest
    models = dict.fromkeys(entry for variant in listed.variants for entry in variant.build.files)
    bundle.check([listed.labels, listed.expected, *models], lambda e: _report(f"checking {e.path}"))
    _clear_report()
    port = 8000 if options.port is None else options.port
    threads = options.threads or device.usable_cores()
    host = options.host or "127.0.0.1"
    app.run(
        lambda hosts: app.Server(bundle, threads, hosts, options.memory),
        host,
        port,
        _report_line,
    )
    return EXIT_OK


def _live(options: argparse.Namespace, bundle: Bundle) -> int:
    """Classify a stream with one variant. The exit code is also 0 when SIGTERM ended it, as service managers
    do."""
    compared = (
        "image",
        "images",
        "variants",
        "budget",
        "rounds",
        "cool_down",
        "silence",
        "top5",
        "html",
        "serve",
        "port",
        "host",
        "tune",
        "sure",
    )
    _refuse(options, compared, "does not go with --live")
    if options.threads == 0:
        raise RuntimeInputError(
            "--threads auto does not go with --live; find the number with compare.py --threads auto and name"
            " it"
        )
    variant = bundle.manifest.variant(options.live)
    from .live import sources, stream, text

    source = sources.open_source(options.source or "camera", options.fps)
    output.check_writable(*filter(None, (options.json,)))
    needed = [bundle.manifest.labels, bundle.manifest.expected, *variant.build.files]
    bundle.check(needed, lambda e: _report(f"checking {e.path}"))
    _clear_report()
    threads = options.threads or device.usable_cores()
    settings = stream.Settings(threads, options.frames, options.seconds, options.every or 5.0, options.memory)
    notice = tables.notice(measure.about(bundle))
    if notice:
        _report_line(notice)
    result = stream.run(bundle, variant, source, settings, _report_line)
    print("\n" + "\n\n".join(filter(None, (text.summary(result), notice))), flush=True)
    if options.json:
        output.write(options.json, json.dumps(result.to_json(), indent=1, allow_nan=False))
    return {"error": EXIT_FAILED, "interrupted": EXIT_INTERRUPTED}.get(result.live.ended, EXIT_OK)


def _refuse(options: argparse.Namespace, names: Sequence[str], reason: str) -> None:
    """Raise for the first of these options that was given."""
    parser = _parser()
    for name in names:
        if getattr(options, name) != parser.get_default(name):
            raise RuntimeInputError(f"--{name.replace('_', '-')} {reason}")


def _report_line(line: str) -> None:
    print(line, flush=True)


def default_bundle() -> Path:
    """The folder of the bundle that holds this copy of the runtime, else ./artifacts."""
    own = Path(__file__).resolve().parents[2]
    return own if (own / manifest.FILE_NAME).is_file() else Path("artifacts")


def _chosen(bundle: manifest.Manifest, wanted: str | None) -> list[manifest.Variant]:
    if wanted is None:
        return list(bundle.variants)
    return bundle.chosen(wanted)


def _images(options: argparse.Namespace, bundle: Bundle) -> list[measure.Shown]:
    """The pictures to classify, with class indices where known. Each has been decoded once, so that none
    fails later.

    Raises:
        ImageError: a picture cannot be read; the first one is named, the others are counted.
    """
    if options.images:
        listing = find(options.images, (*bundle.labels, *(bundle.manifest.class_ids or ())))
        if words := listing.in_words():
            print(f"{options.images}: {words}", file=sys.stderr)
        found = listing.found
        folders = {f.folder for f in found if f.folder}
        classes = match_folders(folders, bundle.labels, bundle.manifest.class_ids)
        images = [measure.Shown(f.path, classes[f.folder] if f.folder else None) for f in found]
    else:
        images = [measure.Shown(path) for path in options.image]
    fitted = manifest.read_fitted(bundle.folder)
    images = [dataclasses.replace(image, fitted=_short_hash(image.path) in fitted) for image in images]
    if not images:
        images = [
            measure.Shown(bundle.folder / sample.file.path, sample.label, sample.fitted)
            for sample in bundle.manifest.samples
        ]
    bad = []
    for image in images:
        try:
            open_image(image.path)
        except ImageError as error:
            bad.append(str(error))
    if bad:
        more = f" ({len(bad) - 1} more pictures cannot be read either)" if len(bad) > 1 else ""
        raise ImageError(bad[0] + more)
    return images


def _short_hash(path: Path) -> str | None:
    """The first 16 hex digits of a file's sha256; None when it cannot be read (decoding it then raises the
    error)."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:16]
    except OSError:
        return None


def _print(result: Result, *, top5: bool) -> None:
    notice = tables.notice(result.bundle)
    parts = (
        notice,
        tables.header(result),
        tables.predictions(result, top5=top5),
        tables.comparison(result),
        tables.explanations(result),
        tables.built(result),
        tables.losses(result),
        notice,
    )
    print("\n\n".join(part for part in parts if part))


def _report(line: str) -> None:
    """Show progress on standard error; a terminal overwrites the line before."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{line}", end="", file=sys.stderr, flush=True)
    else:
        print(line, file=sys.stderr, flush=True)


def _clear_report() -> None:
    if sys.stderr.isatty():
        print("\r\x1b[K", end="", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
