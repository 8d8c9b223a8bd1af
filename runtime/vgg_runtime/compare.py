"""The command line of the device: it compares all variants of a bundle."""

import argparse
import dataclasses
import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path

from . import __version__, console, output
from .board import device
from .bundle import builds, manifest
from .bundle.images import find, match_folders, too_many_unreadable
from .bundle.opened import Bundle
from .bundle.preprocess import open_image
from .doctor import diagnosis
from .errors import ImageError, RuntimeInputError
from .live import arguments
from .measure import measure, tuning
from .measure.kept import Store
from .measure.running import Options
from .report import tables
from .result import Result

REPORTED_EVERY = 500  # pictures, while they are looked at
# what only a comparison can be asked
COMPARED = (
    *("image", "images", "variants", "budget", "rounds", "cool_down", "silence", "top5", "html", "serve"),
    *("port", "host", "name", "tune", "sure", "wide", "strict", "ship"),
)


def main(typed: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0 all well, 1 a self-check or a variant failed, 2 unusable
    input, 130 interrupted."""
    return console.ended(lambda: _run(_parser().parse_args(typed)))


def _parser() -> argparse.ArgumentParser:
    parser = console.Parser(
        prog="compare.py",
        description="Run every variant of a bundle and compare their predictions, latency, size, memory,"
        " load time and agreement.",
        epilog="examples: python compare.py --image cat.jpg --variants baseline,quantized --json result.json;"
        " python compare.py --live compact --source http://camera.local:8080/stream",
    )
    console.add_bundle(parser)
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "--image",
        type=console.path,
        action="append",
        default=[],
        metavar="FILE",
        help="a picture to classify; may be repeated (default: the bundle's samples)",
    )
    what.add_argument(
        "--images",
        type=console.path,
        metavar="DIR",
        help="a folder of pictures to classify; class folders in it give an accuracy",
    )
    parser.add_argument(
        "--strict",
        action="store_true",
        help="refuse even one picture that cannot be read (default: in a folder up to 5 %%, or a single one,"
        " are left out)",
    )
    parser.add_argument("--variants", metavar="A,B", help="the variants to run, by name (default: all)")
    parser.add_argument(
        "--threads",
        type=console.threads,
        metavar="N",
        help="threads of onnxruntime (default: the cores that this process may use); auto tries 1, 2 and 4"
        " for each variant",
    )
    parser.add_argument(
        "--budget",
        type=console.seconds,
        default=10.0,
        metavar="SECONDS",
        help="seconds of timed runs per variant (default: 10)",
    )
    parser.add_argument(
        "--rounds",
        type=console.positive,
        default=3,
        metavar="N",
        help="rounds in which the variants take turns, so that a hot board slows all alike (default: 3)",
    )
    parser.add_argument(
        "--cool-down",
        type=console.seconds,
        default=30.0,
        metavar="SECONDS",
        help="longest wait before a turn, in which the board may cool down to its temperature at the start"
        " (default: 30)",
    )
    parser.add_argument(
        "--silence",
        type=console.seconds,
        default=300.0,
        metavar="SECONDS",
        help="end a variant that has not answered for this long (default: 300)",
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
    parser.add_argument(
        "--wide", action="store_true", help="show every column, also where lines get longer than the terminal"
    )
    parser.add_argument("--top5", action="store_true", help="show the five most probable classes")
    parser.add_argument(
        "--json",
        type=console.path,
        metavar="FILE",
        help="write the whole result as JSON, with every timed run",
    )
    parser.add_argument(
        "--html",
        type=console.path,
        metavar="FILE",
        help="write the result as a web page that needs no server",
    )
    parser.add_argument(
        "--doctor",
        action="store_true",
        help="measure nothing; check this board and the bundle, and say what to do about each fault",
    )
    parser.add_argument(
        "--diff",
        type=console.path,
        nargs=2,
        metavar=("A.json", "B.json"),
        help="compare two results that --json wrote; measure nothing",
    )
    parser.add_argument(
        "--ship",
        type=console.path,
        metavar="DIR",
        help="measure nothing; write a folder (or a file that ends in .zip) that holds one variant and"
        " classify.py: the one that --variants names, else the recommended one",
    )
    parser.add_argument(
        "--serve", action="store_true", help="serve a web page that classifies pictures with every variant"
    )
    parser.add_argument("--port", type=console.port, metavar="N", help="port of the page (default: 8000)")
    parser.add_argument(
        "--host",
        metavar="ADDRESS",
        help="address on which the page is served; 0.0.0.0 opens it to the network (default:"
        " 127.0.0.1, this machine only)",
    )
    parser.add_argument(
        "--name",
        action="append",
        default=[],
        metavar="HOST",
        help="another name by which the page may be opened, as a router gives to this machine; repeatable",
    )
    arguments.add(parser.add_argument_group("live"))
    parser.add_argument("--version", action="version", version=__version__)
    return parser


def _run(options: argparse.Namespace) -> int:
    if options.diff:
        return _diff(options)
    folder = options.bundle or console.default_bundle()
    if options.doctor:
        return _doctor(options, folder)
    bundle = Bundle(folder, tuning.for_here(manifest.read(folder), options.target, options.root))
    if options.sure:
        bundle = bundle.using(dataclasses.replace(bundle.manifest, sure=True))
    if options.live is not None:
        return _live(options, bundle)
    _refuse(options, arguments.NAMES, "belongs to --live VARIANT")
    if options.ship:
        return _ship(options, bundle)
    if options.serve:
        return _serve(options, bundle)
    if options.port is not None or options.host or options.name:
        raise RuntimeInputError("--port, --host and --name belong to --serve")
    if options.target:
        _refuse(options, ("tune",), "finds what is fastest on this core; it does not go with --target")
    return _compare(options, bundle)


def _compare(options: argparse.Namespace, bundle: Bundle) -> int:
    threads = device.usable_cores() if options.threads is None else options.threads or None
    variants = _chosen(bundle.manifest, options.variants)
    bundle.check(_needed(options, bundle.manifest, variants), lambda e: console.glimpse(f"checking {e.path}"))
    console.clear_report()
    images = _images(options, bundle)
    output.check_writable(*filter(None, (options.json, options.html)))
    if options.tune:
        cores = threads or device.usable_cores()
        bundle = tuning.tune(bundle, variants, cores, options.root, console.say)
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
    with Store([image.digest for image in images], options.root, console.say_aside) as store:
        try:
            result = measure.compare(bundle, variants, images, settings, console.report, store)
        except KeyboardInterrupt:
            if store.keeps:
                console.say_aside("The answers so far are kept; the same command goes on from there.")
            raise
        console.clear_report()
        _write(result, images, options)
        if all(len(row.predictions) == len(images) for row in result.variants):  # none died among them
            store.clear()
    return console.EXIT_FAILED if any(row.error for row in result.variants) else console.EXIT_OK


def _write(result: Result, images: Sequence[measure.Shown], options: argparse.Namespace) -> None:
    """Print the result, and write the documents that were asked for."""
    try:  # a full disk behind one of them must not lose the measurement
        _print(result, top5=options.top5, wide=options.wide)
    finally:
        try:
            if options.json:
                output.write(options.json, result.pieces())
        finally:
            if options.html:
                from .report import page

                output.write(options.html, page.report(result, [image.path for image in images]))


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
    names = ("target", "tune", "memory", "sure", "strict", "ship")
    _refuse(options, names, "does not go with --diff, which measures nothing")
    from .report import diff

    before, after = (diff.read(path) for path in options.diff)
    console.shown(diff.diff(before, after, console.width(wide=options.wide)))
    return console.EXIT_OK


def _doctor(options: argparse.Namespace, folder: Path) -> int:
    names = (
        *("image", "images", "html", "variants", "top5", "serve", "host", "port", "name", "target", "tune"),
        *("strict", "ship"),
    )
    unmeasured = ("memory", "sure", "budget", "rounds", "cool_down", "silence", "wide")
    _refuse(options, unmeasured, "does not go with --doctor, which measures nothing")
    _refuse(options, ("live", *arguments.NAMES), "does not go with --doctor")
    _refuse(options, names, "does not go with --doctor, which looks at the board and the whole bundle")
    return diagnosis.command(
        folder,
        options.threads or device.usable_cores(),
        options.json,
        lambda line: console.glimpse(line) if line else console.clear_report(),
    )


def _ship(options: argparse.Namespace, bundle: Bundle) -> int:
    names = (
        *("image", "images", "json", "html", "tune", "serve", "host", "port", "name", "top5", "memory"),
        *("sure", "wide", "strict", "budget", "rounds", "cool_down", "silence", "threads"),
    )
    _refuse(options, names, "does not go with --ship, which measures nothing")
    from .classify import choice, ship

    chosen = bundle.manifest.chosen(options.variants) if options.variants else []
    if len(chosen) > 1:
        raise RuntimeInputError(f"--ship takes one variant, found {len(chosen)} in --variants")
    core = builds.target_named(options.target) if options.target else None
    variant = chosen[0] if chosen else choice.recommended(bundle.manifest, core)
    console.say(ship.in_words(ship.ship(bundle, variant, options.ship)))
    return console.EXIT_OK


def _serve(options: argparse.Namespace, bundle: Bundle) -> int:
    """Serve the page; options that the page offers itself are refused."""
    _refuse(
        options,
        ("image", "images", "json", "html", "variants", "tune", "strict", "ship"),
        "does not go with --serve; choose pictures and variants on the page",
    )
    from .web import app

    listed = bundle.manifest
    models = dict.fromkeys(entry for variant in listed.variants for entry in variant.build.files)
    bundle.check([listed.labels, listed.expected, *models], lambda e: console.glimpse(f"checking {e.path}"))
    console.clear_report()
    port = 8000 if options.port is None else options.port
    threads = options.threads or device.usable_cores()
    host = options.host or "127.0.0.1"
    app.run(
        lambda hosts: app.Server(bundle, threads, hosts, options.memory),
        host,
        port,
        console.say,
        options.name,
    )
    return console.EXIT_OK


def _live(options: argparse.Namespace, bundle: Bundle) -> int:
    """Classify a stream with one variant. The exit code is also 0 when SIGTERM ended it, as service managers
    do."""
    _refuse(options, COMPARED, "does not go with --live")
    from .live import command

    if options.live == arguments.RECOMMENDED:
        from .classify import choice

        core = builds.target_named(options.target) if options.target else None
        options.live = choice.recommended(bundle.manifest, core).id
    return command.run(options, bundle)


def _refuse(options: argparse.Namespace, names: Sequence[str], reason: str) -> None:
    """Raise for the first of these options that was given."""
    parser = _parser()
    for name in names:
        if getattr(options, name) != parser.get_default(name):
            raise RuntimeInputError(f"--{name.replace('_', '-')} {reason}")


def _chosen(bundle: manifest.Manifest, wanted: str | None) -> list[manifest.Variant]:
    if wanted is None:
        return list(bundle.variants)
    return bundle.chosen(wanted)


def _images(options: argparse.Namespace, bundle: Bundle) -> list[measure.Shown]:
    """The pictures to classify, with class indices where known. Each has been decoded once, so that none
    fails later.

    Raises:
        ImageError: too many pictures of a folder cannot be read, or one with --strict or one that was named;
            the first one is told, the others are counted.
    """
    if options.images:
        listing = find(options.images, (*bundle.labels, *(bundle.manifest.class_ids or ())))
        if words := listing.in_words():
            console.say_aside(f"{options.images}: {words}")
        found = listing.found
        folders = {f.folder for f in found if f.folder}
        classes = match_folders(folders, bundle.labels, bundle.manifest.class_ids)
        images = [measure.Shown(f.path, classes[f.folder] if f.folder else None) for f in found]
    else:
        images = [measure.Shown(path) for path in options.image]
    fitted = manifest.read_fitted(bundle.folder)
    images = [dataclasses.replace(image, digest=_short_hash(image.path)) for image in images]
    images = [dataclasses.replace(image, fitted=image.digest in fitted) for image in images]
    if not images:
        images = [
            measure.Shown(bundle.folder / sample.file.path, sample.label, sample.fitted)
            for sample in bundle.manifest.samples
        ]
    bad: dict[Path, str] = {}
    largest = max((v.preprocessing for v in bundle.manifest.variants), key=lambda spec: spec.resize_px)
    for k, image in enumerate(images, 1):
        if k % REPORTED_EVERY == 0:
            console.report(f"reading pictures: {k}/{len(images)}")
        try:
            open_image(image.path, largest)
        except ImageError as error:
            bad[image.path] = str(error)
    if not bad:
        return images
    if options.strict or not options.images or too_many_unreadable(len(bad), len(images)):
        more = f" ({len(bad) - 1} more pictures cannot be read either)" if len(bad) > 1 else ""
        raise ImageError(next(iter(bad.values())) + more)
    console.say_aside(
        f"{len(bad)} of {len(images)} pictures cannot be read and are left out; the first:"
        f" {next(iter(bad.values()))}"
    )
    return [image for image in images if image.path not in bad]


def _short_hash(path: Path) -> str | None:
    """The first 16 hex digits of a file's sha256; None when it cannot be read (decoding it then raises the
    error)."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:16]
    except OSError:
        return None


def _print(result: Result, *, top5: bool, wide: bool) -> None:
    recommended = result.recommended.variant if result.recommended else None
    console.shown(tables.whole(result, console.width(wide=wide), top5=top5), recommended)


if __name__ == "__main__":
    sys.exit(main())
