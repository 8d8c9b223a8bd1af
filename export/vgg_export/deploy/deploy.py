"""Takes a bundle to a board and brings the results back.

Copies the files that changed, makes the virtual environment, installs the packages, then runs the doctor and
the comparison.
"""

import dataclasses
import hashlib
import json
import logging
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from vgg_export.core.errors import BoardError, DeployError
from vgg_export.core.files import atomic_file, explain_write_errors, sha256, work_folder, write_json
from vgg_export.core.progress import Progress
from vgg_export.options import DeployOptions
from vgg_runtime.bundle import manifest as m
from vgg_runtime.errors import BundleError

from . import board as boards
from . import holding, on_board, service, ssh, wheels
from .board import Board
from .transfer import Local, Place, bring

log = logging.getLogger(__name__)

# what a virtual environment with onnxruntime, numpy and Pillow takes, pip's temporary copies included
ENVIRONMENT_BYTES = 350_000_000
PYTHON = "venv/bin/python"
MQTT = "runtime/requirements-mqtt.txt"
RESULT, REPORT, DOCTOR, DOCTOR_TEXT = "result.json", "report.html", "doctor.json", "doctor.txt"
EXIT_OK, EXIT_FAILED, EXIT_INTERRUPTED = 0, 1, 130

Show = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Deployed:
    """What was done.

    ``root`` is the absolute path of the folder on the board, and ``copied`` the paths of the copied files
    below it. ``code`` is the worse exit code of the doctor and the comparison, and ``written`` are the result
    files on this computer.
    """

    root: str
    copied: tuple[str, ...]
    code: int
    written: tuple[Path, ...]


def run(options: DeployOptions, show: Show, progress: Progress) -> Deployed:
    """Bring the bundle to the board, run it there, bring the results back.

    Args:
        show: called with each line that the board prints.

    Raises:
        BoardError: the board cannot be reached or used.
        DeployError: a step on the board failed.
    """
    if options.asked_of_service:
        with ssh.connect(options) as connection:
            return Deployed(options.root, (), service.ask(options, connection, show), ())
    whole = m.read(options.bundle)
    chosen = _chosen(whole, options.variants)
    if options.service:
        chosen.variant(options.service_words[0])  # must be there
    _verify(options.bundle, chosen, progress)
    if options.run and not options.service:
        with explain_write_errors(options.output_folder):
            options.output_folder.mkdir(parents=True, exist_ok=True)
    with ssh.connect(options) as connection:
        board = boards.survey(connection)
        log.info("%s: %s", options.name, board.in_words())
        with holding.held(connection, board.python, options.root):
            files = _files(options.bundle, whole, chosen, connection.folder)
            place = Place(connection, board.python, options.root, board.rsync)
            environment = place.ask("environment", packages=_packages(options))[-1]
            ready = environment["works"] and environment["stamp"] == _stamp(options, board)
            keep = sorted({*(entry.path for entry in whole.all_files()), *(file.path for file in files)})
            place, copied = bring(place, files, keep, 0 if ready else ENVIRONMENT_BYTES, progress)
            _log_copied(copied, files)
            if ready:
                log.info("the virtual environment is up to date")
            else:
                _install(place, board, options, progress, works=environment["works"])
            code, written = EXIT_OK, tuple[Path, ...]()
            if options.service:
                _start_service(place, chosen, options)
            elif options.run:
                code, written = _measure(place, chosen, options, show)
    return Deployed(place.root, tuple(file.path for file in copied), code, written)


def _start_service(place: Place, chosen: m.Manifest, options: DeployOptions) -> None:
    """Install the service that the options ask for, and start it."""
    arguments = options.service_words
    largest = max(build.bytes for build in chosen.variant(arguments[0]).builds)
    lingers = service.install(place.connection, place.root, arguments, largest)
    if lingers:
        log.info("the service runs, and starts with the board; --status, --logs and --stop ask about it")
    else:
        log.warning(
            "the service runs until this user has no session any more, because it may not linger; run 'sudo"
            " loginctl enable-linger' for that user there"
        )


def _chosen(whole: m.Manifest, wanted: str | None) -> m.Manifest:
    """The manifest with the wanted variants only. The first one stays: the others are compared with it."""
    if wanted is None:
        return whole
    names = {whole.variants[0].id, *(variant.id for variant in whole.chosen(wanted))}
    return dataclasses.replace(
        whole, variants=tuple(variant for variant in whole.variants if variant.id in names)
    )


def _verify(bundle: Path, chosen: m.Manifest, progress: Progress) -> None:
    """Check the files here first, so that damage on this computer is not blamed on the network.

    Raises:
        BundleError: one is missing or damaged, is no regular file, or is a link that leads out of the bundle.
    """
    m.ensure_file_inside(bundle, bundle / m.FILE_NAME)  # the manifest lists itself nowhere
    entries = chosen.all_files()
    with progress.task("checking the bundle", len(entries)) as task:
        m.verify(bundle, entries, lambda _: task.advance())


def _files(bundle: Path, whole: m.Manifest, chosen: m.Manifest, folder: Path) -> list[Local]:
    """The files that the board needs, the manifest last: without it the folder is not a bundle yet.

    Where variants were left out, ``folder`` takes a manifest without them.
    """
    files = [
        Local(entry.path, bundle / entry.path, entry.sha256, entry.bytes) for entry in chosen.all_files()
    ]
    path = bundle / m.FILE_NAME
    if chosen != whole:
        path = folder / m.FILE_NAME
        write_json(path, chosen.to_json())
    # the doctor compares the board's memory with the peaks in the report
    if (report := bundle / m.REPORT_NAME).exists():
        try:
            m.ensure_file_inside(bundle, report)
            files.append(local(m.REPORT_NAME, report))
        except BundleError:
            log.warning("%s is not sent: it leads out of the bundle, or is no regular file", report)
    return [*files, local(m.FILE_NAME, path)]


def local(path: str, source: Path) -> Local:
    """A file of this computer under its path on the board."""
    return Local(path, source, sha256(source), source.stat().st_size)


def _log_copied(copied: list[Local], files: list[Local]) -> None:
    if copied:
        size = sum(file.bytes for file in copied) / 1e6
        log.info(
            "%d of %d files copied (%.1f MB): %s",
            len(copied),
            len(files),
            size,
            _shortened([file.path for file in copied]),
        )
    else:
        log.info("all %d files were there already; nothing was copied", len(files))


def _shortened(names: list[str], most: int = 3) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _requirements(options: DeployOptions) -> list[str]:
    """The files of requirements, relative to the bundle."""
    words = options.service_words
    publishes = any(word.split("=")[0] == "--mqtt" for word in words)
    if publishes and not (options.bundle / MQTT).is_file():
        raise DeployError(f"this bundle has no {MQTT}: an older vgg-export made it; make it again")
    return [
        "runtime/requirements.txt",
        *(["runtime/requirements-web.txt"] if options.web else []),
        *([MQTT] if publishes else []),
    ]


def _packages(options: DeployOptions) -> list[str]:
    """The names of the distributions that the requirements ask for."""
    lines = [
        line
        for name in _requirements(options)
        for line in (options.bundle / name).read_text(encoding="utf-8").splitlines()
    ]
    return [found[0] for line in lines if (found := re.match(r"[A-Za-z0-9][A-Za-z0-9._-]*", line))]


def _stamp(options: DeployOptions, board: Board) -> str:
    """A hash of the requirements and the board's Python. When it changes, the packages are installed anew."""
    content = [(options.bundle / name).read_text(encoding="utf-8") for name in _requirements(options)]
    return hashlib.sha256(json.dumps([content, board.version]).encode()).hexdigest()


def _install(place: Place, board: Board, options: DeployOptions, progress: Progress, *, works: bool) -> None:
    """Make the virtual environment where none works yet, and install the packages in it.

    Raises:
        BoardError: the board cannot make one, cannot reach the package index, or has no room.
        DeployError: pip failed there for another reason.
    """
    if not works:
        if not board.venv:
            package = (
                f"python3.{board.version[1]}-venv"
                if board.python.endswith(f"3.{board.version[1]}")
                else "python3-venv"
            )
            raise BoardError(
                f"{place.name} cannot make virtual environments; run 'sudo apt install {package}' there"
            )
        with progress.task(f"making the virtual environment on {place.name}", None):
            made = place.connection.work(place.root, [board.python, "-m", "venv", "--clear", "venv"])
        if made.code:
            raise wheels.explain_install(place.name, f"{made.out}\n{made.err}", wheels=True)
    command = [
        PYTHON,
        "-m",
        "pip",
        "install",
        "-q",
        "--disable-pip-version-check",
        "--no-input",
        "--retries",
        "2",
    ]
    command += [argument for name in _requirements(options) for argument in ("-r", name)]
    if options.wheels:
        command += ["--no-index", "-f", _bring_wheels(place, board, options, progress)]
    with progress.task(f"installing {', '.join(_packages(options))} on {place.name}", None):
        done = place.connection.work(place.root, command)
    if done.code:
        raise wheels.explain_install(place.name, done.err, wheels=options.wheels)
    place.ask("installed", stamp=_stamp(options, board))


def _bring_wheels(place: Place, board: Board, options: DeployOptions, progress: Progress) -> str:
    """Copy the wheels to the board; returns their folder there, relative to the bundle."""
    bundle = options.bundle.resolve()
    cache = work_folder(bundle) / "wheels"
    paths = wheels.fetch(board, [bundle / name for name in _requirements(options)], cache, progress)
    folder = f"{on_board.OWN}/wheels"
    bring(place, [local(f"{folder}/{path.name}", path) for path in paths], None, ENVIRONMENT_BYTES, progress)
    return folder


def _measure(
    place: Place, chosen: m.Manifest, options: DeployOptions, show: Show
) -> tuple[int, tuple[Path, ...]]:
    """Run the doctor, if this bundle has one, and then the comparison.

    Returns:
        The worse exit code of the two, and the files that were written.

    Raises:
        DeployError: the comparison failed.
    """
    place.ask("forget", paths=[f"{on_board.OWN}/{name}" for name in (RESULT, REPORT, DOCTOR)])
    code = EXIT_OK
    written: list[Path] = []
    usage = place.connection.work(place.root, [PYTHON, "runtime/compare.py", "--help"])
    if "--doctor" in usage.out:
        code, written = _doctor(place, options, show)
    compared, complaint = _compare(place, chosen.variants, options, show)
    for name in (RESULT, REPORT):
        text = place.ask("fetch", path=f"{on_board.OWN}/{name}")[-1]["text"]
        if text is None:
            raise DeployError(
                f"the comparison on {place.name} wrote no {name}: {complaint or 'it printed no reason'}"
            )
        written.append(_save(options.output_folder / name, text))
    return max(code, compared), tuple(written)


def _doctor(place: Place, options: DeployOptions, show: Show) -> tuple[int, list[Path]]:
    """Run the doctor; returns 0 or 1, and the files that were written.

    The comparison is tried even where the doctor finds something.
    """
    command = [PYTHON, "runtime/compare.py", "--doctor", "--json", f"{on_board.OWN}/{DOCTOR}"]
    done = place.connection.work(place.root, command, show, _log_line)
    if done.code == EXIT_INTERRUPTED:
        raise KeyboardInterrupt
    show("")
    written = [_save(options.output_folder / DOCTOR_TEXT, done.out + "\n")]
    if (text := place.ask("fetch", path=f"{on_board.OWN}/{DOCTOR}")[-1]["text"]) is not None:
        written.append(_save(options.output_folder / DOCTOR, text))
    if done.code not in (EXIT_OK, EXIT_FAILED):
        log.warning(
            "the doctor could not finish: %s",
            ssh.last_line(done.err).removeprefix("Error: ") or f"exit code {done.code}",
        )
    return (EXIT_FAILED if done.code else EXIT_OK), written


def _compare(
    place: Place, variants: Sequence[m.Variant], options: DeployOptions, show: Show
) -> tuple[int, str]:
    """Run the comparison.

    Returns:
        Its exit code (1 when a variant or a self-check failed, else 0), and its last line on standard error.

    Raises:
        DeployError: it ended in another way.
    """
    command = [
        PYTHON,
        "runtime/compare.py",
        "--json",
        f"{on_board.OWN}/{RESULT}",
        "--html",
        f"{on_board.OWN}/{REPORT}",
    ]
    command += (
        ["--variants", ",".join(variant.id for variant in variants)] if options.variants is not None else []
    )
    command += ["--budget", f"{options.budget_s:g}"] if options.budget_s else []
    done = place.connection.work(place.root, command, show, _log_line)
    complaint = ssh.last_line(done.err).removeprefix("Error: ")
    if done.code in (EXIT_OK, EXIT_FAILED):
        return done.code, complaint
    if done.code == EXIT_INTERRUPTED:
        raise KeyboardInterrupt
    reason = complaint or f"exit code {done.code}"
    if done.code > 128:  # 128 and the number of the signal that ended it
        reason = (
            f"it was killed by signal {done.code - 128}, most often because memory ran out; choose"
            " smaller --variants"
        )
    raise DeployError(f"the comparison on {place.name} failed: {reason}")


def _log_line(line: str) -> None:
    """Log a line of progress from the board's program.

    Lines about single files are left out, and so is its error: this program ends with that one.
    """
    if line and not line.startswith(("Error: ", "checking ")):
        log.info("  %s", line)


def _save(path: Path, text: str) -> Path:
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path
