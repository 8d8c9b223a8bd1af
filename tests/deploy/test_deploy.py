"""``vgg-export deploy`` to a real sshd on the loopback device, and every way in which a board can refuse."""

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import command_environment, interruptible
from loopback import MISSING, TOOLS, Loopback, loopback, script

from vgg_export.core.errors import BoardError, DeployError, HubError, OptionsError
from vgg_export.core.progress import Quiet
from vgg_export.deploy import board, deploy, on_board, ssh, transfer, wheels
from vgg_export.options import DeployOptions
from vgg_runtime.bundle import manifest
from vgg_runtime.errors import BundleError

HOSTILE = 'it\'s "a" $(touch pwned) `touch pwned` & *; path\\'
QUICK = ("--budget", "0.1")

if not TOOLS and os.environ.get("VGG_EXPORT_REQUIRE_SSHD"):  # .ci/run sets it

    def test_there_is_an_ssh_server() -> None:
        pytest.fail(MISSING)


needs_sshd = pytest.mark.skipif(not TOOLS and not os.environ.get("VGG_EXPORT_REQUIRE_SSHD"), reason=MISSING)

Deploy = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loopback]:
    with loopback(tmp_path_factory.mktemp("board")) as there:
        yield there


@pytest.fixture
def there(machine: Loopback) -> Loopback:
    """The board as it was in the beginning, but with what earlier tests brought to it."""
    machine.reset()
    return machine


def start(there: Loopback, folder: Path, *arguments: str | Path) -> subprocess.Popen[str]:
    """The command in its own session, so that ssh finds no terminal to ask on."""
    command = [sys.executable, "-m", "vgg_export", "deploy", *there.arguments, *map(str, arguments)]
    environment = command_environment() | there.environment
    return subprocess.Popen(
        command,
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **interruptible(),
    )


def finish(running: subprocess.Popen[str]) -> subprocess.CompletedProcess[str]:
    out, err = running.communicate(timeout=400)
    assert "Traceback" not in out + err
    return subprocess.CompletedProcess(running.args, running.returncode, out, err)


@pytest.fixture
def to_board(there: Loopback, tmp_path: Path) -> Deploy:
    return lambda *arguments: finish(start(there, tmp_path, *arguments))


@pytest.fixture(scope="module")
def first(
    machine: Loopback, bundle_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[subprocess.CompletedProcess[str], Path]:
    """The one deployment with packages from the index, to a path that a shell would trip over."""
    machine.reset()
    folder = tmp_path_factory.mktemp("pc")
    return finish(start(machine, folder, "--bundle", bundle_folder, "--path", HOSTILE, *QUICK)), folder


@pytest.fixture
def root(first: object, there: Loopback, bundle_folder: Path, to_board: Deploy) -> Path:
    """Where the bundle is on the board, whole and with a virtual environment."""
    done = to_board("--bundle", bundle_folder, "--path", HOSTILE, "--no-run")
    assert done.returncode == 0, done.stderr
    return there.home / HOSTILE


def change(bundle: Path, path: str, content: bytes) -> None:
    """Another file in a bundle, as a later build would have it."""
    (bundle / path).write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()

    def changed(entry: manifest.FileEntry) -> manifest.FileEntry:
        return manifest.FileEntry(path, digest, len(content)) if entry.path == path else entry

    old = manifest.read(bundle)
    new = dataclasses.replace(old, expected=changed(old.expected), files=tuple(map(changed, old.files)))
    (bundle / manifest.FILE_NAME).write_text(json.dumps(new.to_json()))


def copied(done: subprocess.CompletedProcess[str]) -> int:
    """How many files the log says were copied."""
    assert done.returncode == 0, done.stderr
    if "nothing was copied" in done.stderr:
        return 0
    found = re.search(r"(\d+) of \d+ files copied", done.stderr)
    assert found, done.stderr
    return int(found[1])


@needs_sshd
def test_everything_in_one_command(
    first: tuple[subprocess.CompletedProcess[str], Path], machine: Loopback, bundle_folder: Path
) -> None:
    done, folder = first
    assert done.returncode == 0, done.stderr
    bundle = manifest.read(bundle_folder)
    root = machine.home / HOSTILE
    manifest.verify(root, bundle.all_files())
    result = json.loads((folder / "results/127.0.0.1/result.json").read_text())
    assert [row["variant"] for row in result["variants"]] == [v.id for v in bundle.variants]
    assert all(row["p50_ms"] and row["error"] is None for row in result["variants"])
    assert result["bundle"]["path"] == str(root)
    assert (folder / "results/127.0.0.1/report.html").read_text().startswith("<!")
    assert "quantized" in done.stdout  # the board's own table
    assert "peak" in done.stdout
    assert [p.name for p in machine.home.glob("[!.]*")] == [HOSTILE]  # no shell was tricked
    assert {p.name for p in root.iterdir()} <= {*(p.name for p in bundle_folder.iterdir()), "venv", ".deploy"}
    assert not (root / ".deploy/incoming").exists()
    assert machine.sessions() == []  # logged out


@needs_sshd
def test_the_second_time_nothing_is_copied_or_installed(
    root: Path, bundle_folder: Path, to_board: Deploy
) -> None:
    before = {p: p.stat().st_mtime_ns for p in root.rglob("*") if p.is_file() and p.parent.name != ".deploy"}
    done = to_board("--bundle", bundle_folder, "--path", HOSTILE, "--no-run")
    assert copied(done) == 0
    assert "the virtual environment is up to date" in done.stderr
    assert "installing" not in done.stderr
    assert {p: p.stat().st_mtime_ns for p in before} == before


@pytest.mark.release
@needs_sshd
@pytest.mark.parametrize("rsync", [True, False])
def test_a_changed_file_goes_alone(
    rsync: bool, root: Path, bundle_copy: Path, there: Loopback, to_board: Deploy
) -> None:
    if not rsync:
        hide_rsync(there)
    change(bundle_copy, "README.md", b"# another, %d\n" % rsync)
    before = {p: p.stat().st_ino for p in (root / "models").iterdir()}
    done = to_board("--bundle", bundle_copy, "--path", HOSTILE, "--no-run")
    assert copied(done) == 2  # it and the manifest
    assert "README.md, manifest.json" in done.stderr
    assert (root / "README.md").read_bytes() == b"# another, %d\n" % rsync
    assert {p: p.stat().st_ino for p in before} == before


def hide_rsync(there: Loopback) -> None:
    """A board without rsync: everything else that is needed, in one folder."""
    for name in ("sh", "uname", "getconf", "tr", "cat", "rm", "env", "readlink"):
        script(there.bin / name, f'exec {shutil.which(name)} "$@"')
    there.login(PATH=f"{there.bin}:{sys.base_prefix}/bin")
    if (Path(sys.base_prefix) / "bin/rsync").exists():  # Debian's own Python lives beside it
        script(there.bin / "python3", f'exec {sys.base_prefix}/bin/python3 "$@"')
        there.login(PATH=str(there.bin))


@pytest.mark.release
@needs_sshd
@pytest.mark.parametrize("rsync", [True, False])
def test_a_file_that_was_damaged_there_is_noticed_and_copied_again(
    rsync: bool, root: Path, bundle_folder: Path, there: Loopback, to_board: Deploy
) -> None:
    if not rsync:
        hide_rsync(there)
    model = root / "models/quantized.onnx"
    content = bytearray(model.read_bytes())
    content[1000] ^= 1  # of the same size, and as new as it gets
    model.write_bytes(content)
    done = to_board("--bundle", bundle_folder, "--path", HOSTILE, "--no-run")
    assert copied(done) == 1
    assert "models/quantized.onnx" in done.stderr
    manifest.verify(root, manifest.read(bundle_folder).all_files())


@pytest.mark.release
@needs_sshd
def test_only_the_chosen_variants_are_needed_there(
    root: Path, bundle_copy: Path, to_board: Deploy, tmp_path: Path
) -> None:
    """They make a smaller bundle. Files of an earlier deployment stay until the bundle has them no more;
    files of others are never removed."""
    shutil.rmtree(root / "models")
    (root / "mine.txt").write_text("a note")
    done = to_board(
        "--bundle", bundle_copy, "--path", HOSTILE, "--variants", "quantized", "--output", "out", *QUICK
    )
    assert (
        copied(done) == 6
        # graphs and weights of two, a graph for other cores, the manifest; the first stays: the others are
        # related to it
    )
    assert [v.id for v in manifest.read(root).variants] == ["baseline", "quantized"]
    rows = json.loads((tmp_path / "out/result.json").read_text())["variants"]
    assert [row["variant"] for row in rows] == ["baseline", "quantized"]
    assert rows[0]["speedup"] == 1
    names = {"baseline.onnx", "baseline.data", "quantized.onnx", "quantized.data", "quantized.pi5.onnx"}
    done = to_board("--bundle", bundle_copy, "--path", HOSTILE, "--no-run", "--variants", "scaled")
    assert {p.name for p in (root / "models").iterdir()} == names | {"scaled.onnx", "scaled.data"}
    whole = manifest.read(bundle_copy)
    less = dataclasses.replace(whole, variants=tuple(v for v in whole.variants if v.id != "scaled"))
    (bundle_copy / manifest.FILE_NAME).write_text(json.dumps(less.to_json()))
    done = to_board("--bundle", bundle_copy, "--path", HOSTILE, "--no-run")
    assert copied(done) == 1  # the manifest
    assert {p.name for p in (root / "models").iterdir()} == names
    assert (root / "mine.txt").read_text() == "a note"


@pytest.mark.release
@needs_sshd
def test_what_the_report_recorded_is_there_for_the_doctor(
    root: Path, bundle_copy: Path, to_board: Deploy
) -> None:
    report = bundle_copy / manifest.REPORT_NAME
    report.write_text("<!DOCTYPE html> a report")
    there = root / manifest.REPORT_NAME
    assert copied(to_board("--bundle", bundle_copy, "--path", HOSTILE, "--no-run")) == 1
    assert there.read_text() == report.read_text()
    report.unlink()
    assert copied(to_board("--bundle", bundle_copy, "--path", HOSTILE, "--no-run")) == 0
    assert not there.exists()  # one of an older bundle would be wrong


@needs_sshd
@pytest.mark.release
def test_a_board_without_internet_gets_its_wheels(
    there: Loopback, bundle_copy: Path, to_board: Deploy, tmp_path: Path
) -> None:
    there.without_internet()
    arguments = ("--bundle", bundle_copy, "--path", "offline", "--variants", "quantized", *QUICK)
    done = to_board(*arguments)
    assert done.returncode == 2, done.stderr
    assert "127.0.0.1 cannot reach the package index: it has no internet; use --wheels" in done.stderr
    assert done.stderr.count("Error: ") == 1
    assert not (there.home / "offline/venv" / on_board.STAMP).exists()
    done = to_board(*arguments, "--wheels", "--web")
    assert done.returncode == 0, done.stderr
    assert "nothing was copied" in done.stderr  # of the bundle; the wheels are apart
    assert not (there.home / "offline/.deploy/wheels").exists()
    assert (
        json.loads((tmp_path / "results/127.0.0.1/result.json").read_text())["variants"][0]["error"] is None
    )
    python = there.home / "offline/venv/bin/python"
    assert subprocess.run([python, "-c", "import uvicorn"], check=False).returncode == 0
    again = to_board(*arguments, "--web", "--no-run")
    assert "the virtual environment is up to date" in again.stderr


@pytest.mark.release
@needs_sshd
def test_a_failed_self_check_is_brought_back_with_exit_code_1(
    root: Path, bundle_copy: Path, to_board: Deploy, tmp_path: Path
) -> None:
    with np.load(bundle_copy / "expected.npz") as arrays:
        wrong = {name: values + 1 if values.ndim == 2 else values for name, values in arrays.items()}
    np.savez_compressed(tmp_path / "wrong.npz", **wrong)
    change(bundle_copy, "expected.npz", (tmp_path / "wrong.npz").read_bytes())
    done = to_board("--bundle", bundle_copy, "--path", HOSTILE, *QUICK)
    assert done.returncode == 1, done.stderr
    rows = json.loads((tmp_path / "results/127.0.0.1/result.json").read_text())["variants"]
    assert all(row["error"] for row in rows)


@pytest.mark.release
@needs_sshd
def test_a_doctor_is_asked_where_there_is_one(
    root: Path, bundle_copy: Path, to_board: Deploy, tmp_path: Path
) -> None:
    real = (bundle_copy / "runtime/compare.py").read_bytes()
    doctor = b"import sys\nif '--help' in sys.argv:\n    sys.exit(print('--doctor'))\n"
    doctor += (
        b"if '--doctor' in sys.argv:\n    print('fails: no cooling')\n    open(sys.argv[-1],"
        b" 'w').write('{}')\n    sys.exit(1)\n"
    )
    change(bundle_copy, "runtime/compare.py", doctor + real)
    done = to_board("--bundle", bundle_copy, "--path", HOSTILE, "--variants", "quantized", *QUICK)
    assert done.returncode == 1, done.stderr
    assert "fails: no cooling" in done.stdout
    assert (tmp_path / "results/127.0.0.1/doctor.txt").read_text() == "fails: no cooling\n"
    assert (tmp_path / "results/127.0.0.1/doctor.json").read_text() == "{}"
    assert (tmp_path / "results/127.0.0.1/result.json").is_file()


@pytest.mark.release
@needs_sshd
def test_a_comparison_that_cannot_be_made_is_one_sentence(
    root: Path, bundle_copy: Path, to_board: Deploy, tmp_path: Path
) -> None:
    """The doctor ran before the comparison, and its result is kept."""
    real = (bundle_copy / "runtime/compare.py").read_bytes()
    change(
        bundle_copy,
        "runtime/compare.py",
        b"import sys\nif '--html' in sys.argv:\n    sys.exit('Error: no such thing')\n" + real,
    )
    done = to_board("--bundle", bundle_copy, "--path", HOSTILE, *QUICK)
    assert done.returncode == 1
    assert done.stderr.count("Error: ") == 1
    assert "wrote no result.json: no such thing" in done.stderr
    assert {p.name for p in (tmp_path / "results/127.0.0.1").iterdir()} == {"doctor.txt", "doctor.json"}


@pytest.mark.release
@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGHUP])
@needs_sshd
def test_ctrl_c_here_stops_what_runs_there(
    end: signal.Signals, root: Path, bundle_folder: Path, there: Loopback, tmp_path: Path
) -> None:
    """As closing the terminal does."""
    running = start(there, tmp_path, "--bundle", bundle_folder, "--path", HOSTILE, "--budget", "300")
    assert running.stderr
    for line in running.stderr:
        if "1/3 baseline" in line:
            break
    os.killpg(running.pid, end)
    done = finish(running)
    assert done.returncode == 130
    assert "Interrupted" in done.stderr
    assert "may still run" not in done.stderr
    wait_until(lambda: not there.running())
    wait_until(lambda: not there.sessions())


@pytest.mark.release
@needs_sshd
def test_a_broken_connection_is_one_sentence(
    root: Path, bundle_folder: Path, there: Loopback, tmp_path: Path
) -> None:
    running = start(there, tmp_path, "--bundle", bundle_folder, "--path", HOSTILE, "--budget", "5")
    assert running.stderr
    for line in running.stderr:
        if "1/3 baseline" in line:
            break
    for pid in there.sessions():
        os.kill(pid, signal.SIGKILL)
    done = finish(running)
    assert done.returncode == 1
    assert "the connection to 127.0.0.1 broke; run the same command again to resume" in done.stderr
    wait_until(lambda: not there.running())


def wait_until(true: Callable[[], bool], seconds: float = 60) -> None:
    import time

    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.1)


@pytest.mark.release
@needs_sshd
def test_a_login_script_that_talks_does_no_harm(
    root: Path, bundle_copy: Path, there: Loopback, to_board: Deploy
) -> None:
    there.login(_then="echo Welcome to this board; printf 'have a nice day'")
    change(bundle_copy, "README.md", b"# for a board that talks\n")
    done = to_board("--bundle", bundle_copy, "--path", HOSTILE, "--no-run")
    assert copied(done) == 2
    assert "rsync did not work" in done.stderr  # it cannot stand that
    assert (root / "README.md").read_bytes() == b"# for a board that talks\n"


def in_process(there: Loopback, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> deploy.Deployed:
    monkeypatch.setenv("PATH", there.environment["PATH"])
    host, _, port, _, key = there.arguments
    options = DeployOptions(host, bundle, port=int(port), identity=Path(key), path=HOSTILE, run=False)
    return deploy.run(options, lambda line: None, Quiet())


@pytest.mark.release
@needs_sshd
@pytest.mark.parametrize("times", [1, 2])
def test_what_the_network_damages_is_sent_again_once(
    times: int,
    root: Path,
    bundle_copy: Path,
    there: Loopback,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    change(bundle_copy, "README.md", b"# sent %d times\n" % times)
    hide_rsync(there)
    sent = []
    stream = transfer._stream

    def damaging(place: transfer.Place, files: list[transfer.Local], counted: transfer.Megabytes) -> None:
        sent.append([file.path for file in files])
        if len(sent) <= times:
            other = bundle_copy.parent / "other"
            other.write_bytes(b"x" * files[0].bytes)
            files = [dataclasses.replace(files[0], source=other), *files[1:]]
        stream(place, files, counted)

    monkeypatch.setattr(transfer, "_stream", damaging)
    with (
        contextlib.nullcontext()
        if times == 1
        else pytest.raises(DeployError, match=r"README\.md arrived damaged on 127\.0\.0\.1 twice")
    ):
        in_process(there, bundle_copy, monkeypatch)
    assert sent == [["README.md", "manifest.json"], ["README.md"]]
    assert "README.md arrived damaged; copying again" in caplog.text
    # nothing damaged is ever placed
    assert ((root / "README.md").read_bytes() == b"# sent 1 times\n") == (times == 1)
    manifest.verify(root, manifest.read(root).all_files())


@pytest.mark.release
@needs_sshd
def test_an_interrupted_copy_goes_on(
    root: Path, bundle_copy: Path, there: Loopback, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(root / "models")
    hide_rsync(there)
    stream = transfer._stream

    def broken(place: transfer.Place, files: list[transfer.Local], counted: transfer.Megabytes) -> None:
        stream(place, files[:2], counted)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(transfer, "_stream", broken)
        with pytest.raises(KeyboardInterrupt):
            in_process(there, bundle_copy, patch)
    assert not (root / "models").exists()
    sent: list[transfer.Local] = []

    def noted(place: transfer.Place, files: list[transfer.Local], counted: transfer.Megabytes) -> None:
        sent.extend(files)
        stream(place, files, counted)

    monkeypatch.setattr(transfer, "_stream", noted)
    done = in_process(there, bundle_copy, monkeypatch)
    models = [
        entry.path for entry in manifest.read(bundle_copy).all_files() if entry.path.startswith("models/")
    ]
    assert [file.path for file in sent] == models[2:]  # the first two had arrived
    assert len(done.copied) == len(models) == 7
    manifest.verify(root, manifest.read(bundle_copy).all_files())


@needs_sshd
def test_two_at_once_take_turns(
    root: Path, bundle_folder: Path, bundle_copy: Path, there: Loopback, tmp_path: Path
) -> None:
    """Neither disturbs what the other one measures, and the board has one of the two bundles as a whole. Both
    begin while a third one is at work."""
    change(bundle_copy, "README.md", b"# of the other one\n")
    given = ("--path", HOSTILE, *QUICK, "--variants")
    with locked(root):
        both = {
            "scaled": start(there, tmp_path, "--bundle", bundle_folder, *given, "scaled"),
            "quantized": start(
                there, tmp_path, "--bundle", bundle_copy, *given, "quantized", "--output", "other"
            ),
        }
        said = {name: until_it_waits(running) for name, running in both.items()}
    done = {name: finish(running) for name, running in both.items()}
    assert [one.returncode for one in done.values()] == [0, 0], [one.stderr for one in done.values()]
    assert all(f"another deployment works in {root} on 127.0.0.1" in line for line in said.values()), said
    for name, output in (("scaled", "results/127.0.0.1"), ("quantized", "other")):
        rows = json.loads((tmp_path / output / "result.json").read_text())["variants"]
        assert [(row["variant"], row["error"]) for row in rows] == [("baseline", None), (name, None)]
    there_now = manifest.read(root)
    assert there_now.variants[1].id in both
    manifest.verify(root, there_now.all_files())


@contextlib.contextmanager
def locked(root: Path) -> Iterator[None]:
    """The folder as another deployment has it."""
    descriptor = os.open(root, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        yield
    finally:
        os.close(descriptor)


def until_it_waits(running: subprocess.Popen[str]) -> str:
    """The line in which it says so."""
    assert running.stderr
    return next(line for line in running.stderr if "waiting until it has ended" in line)


@pytest.fixture
def small_disk(there: Loopback) -> Iterator[Path]:
    """A real file system of 24 MB in the board's home."""
    folder = there.home / "small"
    folder.mkdir(exist_ok=True)
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", folder], capture_output=True, check=False
    ).returncode:
        pytest.skip("no right to mount a file system here")
    yield folder
    subprocess.run(["umount", folder], check=True)


@pytest.mark.release
@needs_sshd
@pytest.mark.parametrize("rsync", [True, False])
def test_a_full_disk_there_is_one_sentence(
    rsync: bool,
    small_disk: Path,
    there: Loopback,
    bundle_copy: Path,
    to_board: Deploy,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    change(bundle_copy, "README.md", os.urandom(30_000_000))
    done = to_board("--bundle", bundle_copy, "--path", "small/bundle", "--no-run")
    assert done.returncode == 2
    assert re.search(
        r"has 2\d MB free in .*/small/bundle, but 38\d MB are needed; free some space", done.stderr
    ), done.stderr
    if not rsync:
        hide_rsync(there)
    monkeypatch.setattr(deploy, "ENVIRONMENT_BYTES", -1_000_000_000)  # so that it is tried
    host, _, port, _, key = there.arguments
    monkeypatch.setenv("PATH", there.environment["PATH"])
    options = DeployOptions(
        host, bundle_copy, port=int(port), identity=Path(key), path="small/bundle", run=False
    )
    with pytest.raises(BoardError, match=r"the disk of 127\.0\.0\.1 is full"):
        deploy.run(options, lambda line: None, Quiet())
    assert not (small_disk / "bundle/manifest.json").exists()


def python(answer: dict[str, object]) -> str:
    """A shell script for python3 that answers the survey with ``answer``."""
    about = {"python": [3, 11, 2], "bits": 64, "libc": ["glibc", "2.36"], "venv": True} | answer
    return (
        f"case \"$2\" in *find_spec*) echo '{json.dumps(about)}';; *) exec"
        f' {sys.base_prefix}/bin/python3 "$@";; esac'
    )


UNSUITABLE = {
    "another system": (
        {"uname": 'test "$1" = -s && echo Darwin || echo arm64'},
        "runs Darwin; a bundle needs 64-bit Linux",
    ),
    "32-bit kernel": (
        {"uname": 'test "$1" = -s && echo Linux || echo armv7l'},
        "runs a 32-bit system .armv7l., .* install the 64-bit",
    ),
    "32-bit userland": ({"getconf": "echo 32"}, "runs a 32-bit system"),
    "32-bit Python": ({"python3": python({"bits": 32})}, "runs a 32-bit system"),
    "another machine": (
        {"uname": 'test "$1" = -s && echo Linux || echo riscv64'},
        "is riscv64, for which there is no onnxruntime",
    ),
    "old Python": (
        {"python3": python({"python": [3, 9, 2]})},
        r"has Python 3\.9\.2; 3\.11 or newer is needed: Raspberry Pi OS Bookworm",
    ),
    "no Python": ({}, "has no python3; install it there"),
    "no venv": (
        {"python3": python({"venv": False})},
        "cannot make virtual environments; run 'sudo apt install python3-venv'",
    ),
}


@needs_sshd
@pytest.mark.parametrize("case", UNSUITABLE)
def test_an_unsuitable_board_is_one_sentence(
    case: str, there: Loopback, bundle_folder: Path, to_board: Deploy
) -> None:
    programs, sentence = UNSUITABLE[case]
    hide_rsync(there)
    script(
        there.bin / "python3", 'exec /usr/bin/env -i "$0.real" "$@"' if case == "no Python" else python({})
    )
    for name, lines in programs.items():
        script(there.bin / name, lines)
    there.login(PATH=str(there.bin))
    done = to_board("--bundle", bundle_folder, "--path", "unsuitable", "--no-run")
    assert done.returncode == 2, done.stderr
    assert re.search(f"Error: 127.0.0.1 {sentence}", done.stderr), done.stderr
    assert done.stderr.count("Error: ") == 1
    assert case == "no venv" or not (there.home / "unsuitable").exists()


@pytest.mark.release
@needs_sshd
def test_a_folder_that_holds_something_else_is_left_alone(
    there: Loopback, bundle_folder: Path, to_board: Deploy
) -> None:
    (there.home / "Documents").mkdir()
    (there.home / "Documents/manifest.json").write_text('{"name": "a web page"}')
    (there.home / "file").write_text("")
    try:
        done = to_board("--bundle", bundle_folder, "--path", "Documents", "--no-run")
        assert done.returncode == 2
        assert "is not empty and holds no bundle; name another folder with --path" in done.stderr
        assert [p.name for p in (there.home / "Documents").iterdir()] == ["manifest.json"]
        done = to_board("--bundle", bundle_folder, "--path", "file/below", "--no-run")
        assert done.returncode == 2
        assert re.search(r"file/below\S* on 127\.0\.0\.1: Not a directory; choose another", done.stderr), (
            done.stderr
        )
    finally:
        shutil.rmtree(there.home / "Documents")
        (there.home / "file").unlink()


def refused(done: subprocess.CompletedProcess[str], sentence: str) -> None:
    assert done.returncode == 2, done.stderr
    assert re.search(f"Error: .*{sentence}", done.stderr), done.stderr
    assert done.stderr.count("Error: ") == 1


@needs_sshd
def test_no_connection_is_one_sentence(there: Loopback, bundle_folder: Path, to_board: Deploy) -> None:
    given = ("--bundle", bundle_folder)
    refused(
        to_board(*given, "--identity", there.folder / "stranger"),
        f"refused the login: .*'ssh-copy-id -p {there.port} .*@127.0.0.1'",
    )
    refused(to_board(*given, "--port", "9"), "no ssh server answers on that port")
    (there.folder / "stranger.open").write_bytes((there.folder / "user").read_bytes())
    (there.folder / "stranger.open").chmod(0o644)
    refused(to_board(*given, "--identity", there.folder / "stranger.open"), "others can read the key file")
    known = there.folder / "known_hosts"
    right = known.read_text()
    try:
        known.write_text("")
        refused(to_board(*given), r"host key of 127\.0\.0\.1 is not known here; connect once with 'ssh -p ")
        key = " ".join((there.folder / "stranger.pub").read_text().split()[:2])
        known.write_text(f"[127.0.0.1]:{there.port} {key}\n")
        refused(
            to_board(*given),
            rf"is not the one that this computer remembers; .*ssh-keygen -R .\[127.0.0.1\]:{there.port}",
        )
        assert key in known.read_text()  # host keys are the user's business
    finally:
        known.write_text(right)


@pytest.mark.release
@needs_sshd
def test_a_secret_is_asked_for_once(root: Path, bundle_copy: Path, there: Loopback, tmp_path: Path) -> None:
    """This holds for any number of files and sessions, and for rsync. The secret is the passphrase of a key,
    for which ssh asks as for a password."""
    key, asked = tmp_path / "locked", tmp_path / "asked"
    shutil.copy(there.folder / "user", key)
    key.chmod(0o600)
    subprocess.run(
        ["ssh-keygen", "-q", "-p", "-P", "", "-N", "a secret", "-f", key], check=True, capture_output=True
    )
    script(tmp_path / "ask", f'echo "$1" >> {asked}', 'echo "a secret"')
    change(bundle_copy, "README.md", b"# behind a lock\n")
    command = [
        sys.executable,
        "-m",
        "vgg_export",
        "deploy",
        there.arguments[0],
        "--port",
        str(there.port),
        "--identity",
        str(key),
    ]
    command += ["--bundle", str(bundle_copy), "--path", HOSTILE, "--no-run"]
    secrets = {"SSH_ASKPASS": str(tmp_path / "ask"), "SSH_ASKPASS_REQUIRE": "force"}
    environment = command_environment() | there.environment | secrets
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=100, check=False
    )
    assert copied(done) == 2
    assert len(asked.read_text().splitlines()) == 1


@pytest.mark.skipif(not shutil.which("ssh"), reason="needs ssh")
def test_a_name_that_nobody_knows(vgg_export: Deploy, bundle_folder: Path) -> None:
    refused(
        vgg_export("deploy", "pi@board.invalid", "--bundle", bundle_folder),
        r"the name board\.invalid is not known in this network",
    )


def test_a_pc_without_ssh(bundle_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(BoardError, match="this computer has no ssh; install it"):
        deploy.run(DeployOptions("pi@board", bundle_folder, run=False), lambda line: None, Quiet())


def test_a_damaged_bundle_is_not_copied(bundle_copy: Path, vgg_export: Deploy) -> None:
    (bundle_copy / "labels.txt").write_text("damaged")
    refused(
        vgg_export("deploy", "pi@board.invalid", "--bundle", bundle_copy),
        "labels.txt differs from the manifest",
    )
    refused(
        vgg_export("deploy", "pi@board.invalid", "--bundle", bundle_copy, "--variants", "tiny"),
        "there is no variant 'tiny'",
    )


def sent(bundle: Path, folder: Path) -> set[str]:
    """The paths of the files that a deployment would send."""
    whole = manifest.read(bundle)
    return {file.path for file in deploy._files(bundle, whole, whole, folder)}


def test_only_files_of_the_bundle_s_own_are_sent(
    bundle_copy: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A report is listed nowhere, so a stranger's may be a link to a file of this computer."""
    report, own = bundle_copy / manifest.REPORT_NAME, bundle_copy / "another.html"
    report.unlink(missing_ok=True)
    usual = {*(entry.path for entry in manifest.read(bundle_copy).all_files()), manifest.FILE_NAME}
    assert sent(bundle_copy, tmp_path) == usual
    own.write_text("<!DOCTYPE html>")
    report.symlink_to(own.name)
    assert sent(bundle_copy, tmp_path) == {*usual, manifest.REPORT_NAME}
    assert caplog.text == ""
    report.unlink()
    (tmp_path / "secret").write_text("mine")
    odd: list[Callable[[], object]] = [
        lambda: report.symlink_to(tmp_path / "secret"),
        lambda: report.symlink_to("../secret"),
        lambda: os.mkfifo(report),
        report.mkdir,
    ]
    for make in odd:
        make()
        assert sent(bundle_copy, tmp_path) == usual
        assert f"{report} is not sent: it leads out of the bundle, or is no regular file" in caplog.text
        caplog.clear()
        report.rmdir() if report.is_dir() else report.unlink()


@pytest.mark.parametrize("name", [manifest.FILE_NAME, "labels.txt"])
def test_a_link_out_of_the_bundle_is_refused_before_the_board_is_asked(
    name: str, bundle_copy: Path, tmp_path: Path
) -> None:
    (bundle_copy / name).rename(tmp_path / name)
    (bundle_copy / name).symlink_to(tmp_path / name)
    with pytest.raises(BundleError, match=f"{name} is a link that leads out of the bundle; do not use"):
        deploy.run(DeployOptions("pi@board.invalid", bundle_copy, run=False), lambda line: None, Quiet())


def test_what_the_board_refuses_is_one_sentence(tmp_path: Path) -> None:
    connection = ssh.Connection(DeployOptions("pi@board"), tmp_path)
    with pytest.raises(BoardError, match=r"^on board, '//x' is no path inside the bundle's folder; do not"):
        connection.raise_for(
            {"do": "look"},
            [{"refused": "'//x' is no path inside the bundle's folder; do not use this bundle"}],
            ssh.Answer(0, "", ""),
        )


@pytest.mark.parametrize(
    ("host", "extra", "sentence"),
    [
        ("-oProxyCommand=touch x", {}, "expected HOST or USER@HOST"),
        ("pi@", {}, "expected HOST or USER@HOST"),
        ("pi@-v", {}, "expected HOST or USER@HOST"),
        ("pi board", {}, "expected HOST or USER@HOST"),
        ("pi@board:22", {}, "a port goes into --port"),
        ("board:folder", {}, "a folder on the board into --path"),
        ("pi", {"path": ""}, "--path takes a folder"),
        ("pi", {"path": "a\nb"}, "--path takes a folder"),
        ("pi", {"path": "a:b"}, "without colons"),
        ("pi", {"identity": Path("/nowhere/key")}, "there is no key file"),
        ("pi", {"budget_s": 0.0}, "--budget must be above 0"),
    ],
)
def test_options_that_cannot_be(host: str, extra: dict[str, object], sentence: str) -> None:
    with pytest.raises(OptionsError, match=sentence):
        DeployOptions(host, **extra)  # type: ignore[arg-type]


def test_where_things_go() -> None:
    assert DeployOptions("pi@fe80::1").output_folder == Path("results/fe80::1")
    assert DeployOptions("board.local", path="~/models").root == "models"
    assert DeployOptions("board.local", path="/opt/models").root == "/opt/models"


@pytest.mark.parametrize(
    ("said", "sentence"),
    [
        ("ssh: connect to host board port 22: No route to host", "board does not answer; is it switched on"),
        ("ssh: connect to host board port 22: Connection timed out", "board does not answer"),
        (
            "Received disconnect from 10.0.0.7 port 22:2: Too many authentication failures",
            "too many keys were offered; .* --identity",
        ),
        (
            "kex_exchange_identification: Connection closed by remote host\n",
            "no connection to board: kex_exchange_identification",
        ),
        ("", "ssh gave no reason"),
    ],
)
def test_what_ssh_says_is_explained(said: str, sentence: str) -> None:
    assert re.search(sentence, ssh.explain(said, DeployOptions("pi@board")))


@pytest.mark.parametrize(
    ("said", "sentence"),
    [
        (
            "ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device",
            "the disk of pi is full",
        ),
        (
            "SSLError(SSLCertVerificationError(1, '[SSL: CERTIFICATE_VERIFY_FAILED] certificate is not yet"
            " valid'))",
            "its clock is wrong",
        ),
        (
            "Max retries exceeded ... Temporary failure in name resolution\nERROR: No matching"
            " distribution found for numpy",
            "--wheels",
        ),
        (
            "ERROR: No matching distribution found for onnxruntime\n",
            "pip found no onnxruntime for the Python of pi; use one there",
        ),
        (
            "ERROR: Wheel is invalid\n",
            "pip failed on pi: ERROR: Wheel is invalid; run the same command again",
        ),
    ],
)
def test_what_pip_says_is_explained(said: str, sentence: str) -> None:
    assert re.search(sentence, str(wheels.explain_install("pi", said, wheels=False)))


def pi(machine: str = "aarch64", glibc: tuple[int, int] | None = (2, 36)) -> board.Board:
    return board.Board(
        machine, "Raspberry Pi 5", "/usr/bin/python3", (3, 11, 2), glibc, venv=True, rsync=True
    )


def test_wheels_are_those_of_the_boards_system() -> None:
    names = wheels.platforms(pi())
    assert names[0] == "manylinux_2_36_aarch64"
    assert {
        "manylinux_2_28_aarch64",
        "manylinux_2_27_aarch64",
        "manylinux_2_17_aarch64",
        "manylinux2014_aarch64",
    } <= set(names)
    with pytest.raises(BoardError, match="another C library"):
        wheels.platforms(pi(glibc=None))


def test_wheels_for_another_machine_are_fetched_once(
    bundle_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    requirements = [bundle_folder / "runtime/requirements.txt"]
    names = [path.name for path in wheels.fetch(pi(), requirements, tmp_path / "wheels", Quiet())]
    for package in ("onnxruntime", "numpy", "pillow"):
        (name,) = (name for name in names if name.startswith(f"{package}-"))
        assert "cp311" in name
        assert name.endswith("_aarch64.whl")
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(wheels, "_download", None)  # not needed again
    assert [path.name for path in wheels.fetch(pi(), requirements, tmp_path / "wheels", Quiet())] == names


@pytest.mark.parametrize(("version", "error"), [((3, 11, 2), HubError), ((3, 7, 0), DeployError)])
def test_wheels_that_cannot_be_had(
    version: tuple[int, int, int], error: type[Exception], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The PC has no internet either, or no wheels exist for the board's Python."""
    (tmp_path / "requirements.txt").write_text("onnxruntime>=1.20\n")
    if error is HubError:
        for name, value in {
            "CONFIG_FILE": "/dev/null",
            "INDEX_URL": "http://127.0.0.1:9/simple",
            "FIND_LINKS": "",
            "EXTRA_INDEX_URL": "",
        }.items():
            monkeypatch.setenv(f"PIP_{name}", value)
    old = dataclasses.replace(pi(), version=version)
    with pytest.raises(
        error, match=r"cannot reach the package index either|no wheels for the board's system and Python"
    ):
        wheels.fetch(old, [tmp_path / "requirements.txt"], tmp_path / "wheels", Quiet())
    assert not list((tmp_path / "wheels").iterdir())
