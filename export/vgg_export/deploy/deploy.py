"""A bundle onto a board and its results back: copy what changed, virtual environment, packages, doctor,
comparison."""

import dataclasses
import hashlib
import json
import logging
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from vgg_export.core.errors import BoardError, DeployError
from vgg_export.core.files import atomic_file, explain_write_errors, sha256, write_json
from vgg_export.core.progress import Progress
from vgg_export.options import DeployOptions
from vgg_runtime.bundle import manifest as m

from . import board as boards
from . import on_board, ssh, wheels
from .board import Board
from .transfer import Local, Place, bring

log = logging.getLogger(__name__)

# of a virtual environment with onnxruntime, numpy and Pillow, and pip's copies meanwhile
ENVIRONMENT_BYTES = 350_000_000
PYTHON = "venv/bin/python"
RESULT, REPORT, DOCTOR, DOCTOR_TEXT = "result.json", "report.html", "doctor.json", "doctor.txt"
EXIT_OK, EXIT_FAILED, EXIT_INTERRUPTED = 0, 1, 130

Show = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Deployed:
    """What was done. ``code``: of the doctor and the comparison there, the worse; ``written``: the results on
    this computer."""

    root: str
    copied: tuple[str, ...]
    code: int
    written: tuple[Path, ...]


def run(options: DeployOptions, show: Show, progress: Progress) -> Deployed:
    """Bring the bundle to the board, run it there, bring the results back.

    Args:
        show: takes each line that the board prints.

    Raises:
        BoardError: the board cannot be reached or used.
        DeployError: something failed there.
    """
    whole = m.read(options.bundle)
    chosen = _chosen(whole, options.variants)
    _verify(options.bundle, chosen, progress)
    if options.run:
        with explain_write_errors(options.output_folder):
            options.output_folder.mkdir(parents=True, exist_ok=True)
    with ssh.connect(options) as connection:
        board = boards.survey(connection)
        log.info("%s: %s", options.name, board.in_words())
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
        code, written = _measure(place, chosen, options, show) if options.run else (EXIT_OK, ())
    return Deployed(place.root, tuple(file.path for file in copied), code, written)


def _chosen(whole: m.Manifest, wanted: str | None) -> m.Manifest:
    """A bundle of fewer variants. Its first stays: it is what the others are related to."""
    if wanted is None:
        return whole
    names = {whole.variants[0].id, *(variant.id for variant in whole.chosen(wanted))}
    return dataclasses.replace(
        whole, variants=tuple(variant for variant in whole.variants if variant.id in names)
    )


def _verify(bundle: Path, chosen: m.Manifest, progress: Progress) -> None:
    """A file that is damaged here must not be taken for one that the network damaged."""
    entries = chosen.all_files()
    with progress.task("checking the bundle", len(entries)) as task:
        m.verify(bundle, entries, lambda _: task.advance())


def _files(bundle: Path, whole: m.Manifest, chosen: m.Manifest, folder: Path) -> list[Local]:
    """What has to be there, the manifest at the end: it makes a bundle of the rest. One of fewer variants is
    a bundle too."""
    files = [
        Local(entry.path, bundle / entry.path, entry.sha256, entry.bytes) for entry in chosen.all_files()
    ]
    path = bundle / m.FILE_NAME
    if chosen != whole:
        path = folder / m.FILE_NAME
        write_json(path, chosen.to_json())
    # its peaks are what the doctor compares the board's memory with
    if (report := bundle / m.REPORT_NAME).is_file():
        files.append(local(m.REPORT_NAME, report))
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
    return ["runtime/requirements.txt", *(["runtime/requirements-web.txt"] if options.web else [])]


def _packages(options: DeployOptions) -> list[str]:
    """The names of the distributions that the requirements ask for."""
    lines = [
        line
        for name in _requirements(options)
        for line in (options.bundle / name).read_text(encoding="utf-8").splitlines()
    ]
    return [found[0] for line in lines if (found := re.match(r"[A-Za-z0-9][A-Za-z0-9._-]*", line))]


def _stamp(options: DeployOptions, board: Board) -> str:
    """Changes when something else would have to be installed."""
    content = [(options.bundle / name).read_text(encoding="utf-8") for name in _requirements(options)]
    return hashlib.sha256(json.dumps([content, board.version]).encode()).hexdigest()


def _install(place: Place, board: Board, options: DeployOptions, progress: Progress, *, works: bool) -> None:
    """The virtual environment and the packages in it."""
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
    """The folder of wheels there."""
    bundle = options.bundle.resolve()
    cache = bundle.parent / f".{bundle.name}.work" / "wheels"
    paths = wheels.fetch(board, [bundle / name for name in _requirements(options)], cache, progress)
    folder = f"{on_board.OWN}/wheels"
    bring(place, [local(f"{folder}/{path.name}", path) for path in paths], None, ENVIRONMENT_BYTES, progress)
    return folder


def _measure(
    place: Place, chosen: m.Manifest, options: DeployOptions, show: Show
) -> tuple[int, tuple[Path, ...]]:
    """The doctor if this bundle has one, then the comparison; the worse exit code, and the files that were
    written."""
    place.ask("forget", paths=[f"{on_board.OWN}/{name}" for name in (RESULT, REPORT, DOCTOR)])
    code = EXIT_OK
    written: list[Path] = []
    helped = place.connection.work(place.root, [PYTHON, "runtime/compare.py", "--help"])
    if "--doctor" in helped.out:
        code, written = _doctor(place, options, show)
    compared, said = _compare(place, chosen.variants, options, show)
    for name in (RESULT, REPORT):
        text = place.ask("fetch", path=f"{on_board.OWN}/{name}")[-1]["text"]
        if text is None:
            raise DeployError(
                f"the comparison on {place.name} left no {name}: {said or 'it printed no reason'}"
            )
        written.append(_save(options.output_folder / name, text))
    return max(code, compared), tuple(written)


def _doctor(place: Place, options: DeployOptions, show: Show) -> tuple[int, list[Path]]:
    """What the board lacks; a doctor that finds something does not keep the comparison from being tried."""
    command = [PYTHON, "runtime/compare.py", "--doctor", "--json", f"{on_board.OWN}/{DOCTOR}"]
    done = place.connection.work(place.root, command, show, _complain)
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
    """The comparison: 0, or 1 when a variant or a self-check failed there; and its last complaint.

    Raises:
        DeployError: it could not be made.
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
    done = place.connection.work(place.root, command, show, _complain)
    said = ssh.last_line(done.err).removeprefix("Error: ")
    if done.code in (EXIT_OK, EXIT_FAILED):
        return done.code, said
    if done.code == EXIT_INTERRUPTED:
        raise KeyboardInterrupt
    reason = said or f"exit code {done.code}"
    if done.code > 128:  # the kernel's signal, most often for want of memory
        reason = (
            f"it was killed by signal {done.code - 128}, most often because memory ran out; choose"
            " smaller --variants"
        )
    raise DeployError(f"the comparison on {place.name} could not be made: {reason}")


def _complain(line: str) -> None:
    """What the board's program says of its progress, without each file that it checks; its error becomes the
    sentence that this program ends with."""
    if line and not line.startswith(("Error: ", "checking ")):
        log.info("  %s", line)


def _save(path: Path, text: str) -> Path:
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path
