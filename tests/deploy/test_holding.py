"""One deployment at a time in a folder of a board: who waits, what it is told, and when it is free."""

import contextlib
import fcntl
import logging
import os
import select
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import loopback as shared
import pytest
from loopback import MISSING, TOOLS, Loopback, loopback

from vgg_export.core.errors import BoardError, DeployError
from vgg_export.deploy import holding, on_board, ssh
from vgg_export.options import DeployOptions

PATIENCE_S = 60.0

needs_sshd = pytest.mark.skipif(not TOOLS and not os.environ.get("VGG_EXPORT_REQUIRE_SSHD"), reason=MISSING)


class Holder:
    """The board's part in a process of its own, as ssh runs it."""

    def __init__(self, root: Path, silent_s: float = PATIENCE_S) -> None:
        source = Path(on_board.__file__).read_text(encoding="utf-8")
        self.process = subprocess.Popen(
            [sys.executable, "-c", source], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
        )
        request = {"do": "hold", "root": str(root), "silent_s": silent_s}
        self.send(ssh.as_line(request))

    def send(self, line: bytes) -> None:
        assert self.process.stdin
        self.process.stdin.write(line)
        self.process.stdin.flush()

    def answer(self) -> dict[str, Any]:
        """The next answer."""
        assert self.process.stdout
        while True:
            assert select.select([self.process.stdout], [], [], PATIENCE_S)[0], "no answer"
            line = self.process.stdout.readline()
            assert line, "it ended"
            if (found := ssh.answer_in(line.decode().rstrip("\n"))) is not None:
                return found

    def end(self) -> int:
        """Close its standard input, and wait for it."""
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.close()
        code = self.process.wait(PATIENCE_S)
        self.process.stdout.close()
        return code


def is_free(folder: Path) -> bool:
    """Whether nobody has a lock on the folder."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    return True


def test_the_second_waits_and_says_for_whom(tmp_path: Path) -> None:
    root = tmp_path / "board"
    first = Holder(root)
    assert first.answer() == {"held": True}
    assert not is_free(root)
    second = Holder(root)
    assert second.answer() == {"waiting": f"another deployment works in {root}"}
    assert second.process.stdout
    assert not select.select([second.process.stdout], [], [], 2 * on_board.TRY_AGAIN_S)[0]  # said once
    assert first.end() == 0
    assert second.answer() == {"held": True}
    assert second.end() == 0
    assert not root.exists()  # it made the folder, and nothing was brought


def test_other_folders_are_not_waited_for(tmp_path: Path) -> None:
    both = [Holder(tmp_path / name) for name in ("a", "b")]
    assert [one.answer() for one in both] == [{"held": True}, {"held": True}]
    assert [one.end() for one in both] == [0, 0]


@pytest.mark.parametrize("content", [None, "manifest"])
def test_a_folder_that_was_there_stays(content: str | None, tmp_path: Path) -> None:
    root = tmp_path / "board"
    root.mkdir()
    if content:
        (root / "manifest.json").write_text('{"format": "vgg-export-bundle"}')
    holder = Holder(root)
    assert holder.answer() == {"held": True}
    assert holder.end() == 0
    assert is_free(root)
    assert [p.name for p in root.iterdir()] == (["manifest.json"] if content else [])


def test_a_folder_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    holder = Holder(tmp_path)
    assert holder.answer() == {"held": False}
    assert is_free(tmp_path)
    assert holder.end() == 0
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


def test_a_sender_that_died_frees_the_folder_at_once_and_a_silent_one_soon(tmp_path: Path) -> None:
    """Where the network goes, the board may wait for hours for the connection's end."""
    tmp_path.joinpath("manifest.json").write_text('{"format": "vgg-export-bundle"}')
    killed = Holder(tmp_path)
    assert killed.answer() == {"held": True}
    killed.process.kill()
    killed.end()
    assert is_free(tmp_path)
    silent = Holder(tmp_path, silent_s=5)
    assert silent.answer() == {"held": True}
    for _ in range(14):  # longer than the limit, but heard of
        time.sleep(0.5)
        silent.send(b"\n")
    assert not is_free(tmp_path)
    assert silent.process.wait(PATIENCE_S) == 0
    assert is_free(tmp_path)


def test_one_that_waits_and_whose_sender_is_gone_ends(tmp_path: Path) -> None:
    first = Holder(tmp_path / "board")
    assert first.answer() == {"held": True}
    second = Holder(tmp_path / "board")
    assert "waiting" in second.answer()
    assert second.end() == 0
    third = Holder(tmp_path / "board", silent_s=2)
    assert "waiting" in third.answer()
    assert third.process.wait(PATIENCE_S) == 0
    assert not is_free(tmp_path / "board")
    assert first.end() == 0


def test_a_folder_that_its_last_holder_removed_is_made_again(tmp_path: Path) -> None:
    """The lock of a folder that is gone would keep nobody out of the new one."""
    root = tmp_path / "board"
    root.mkdir()
    mine = os.open(root, os.O_RDONLY)
    fcntl.flock(mine, fcntl.LOCK_EX)
    holder = Holder(root)
    assert "waiting" in holder.answer()
    root.rmdir()
    os.close(mine)
    assert holder.answer() == {"held": True}
    assert not is_free(root)
    assert holder.end() == 0


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    holder = Holder(tmp_path / "file/board")
    assert holder.answer() == {"error": "Not a directory", "full": False, "file": f"{tmp_path}/file/board"}
    assert holder.end() == 0


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loopback]:
    with loopback(tmp_path_factory.mktemp("board")) as there:
        yield there


@pytest.fixture
def connection(machine: Loopback, monkeypatch: pytest.MonkeyPatch) -> Iterator[ssh.Connection]:
    machine.reset()
    for name, value in machine.environment.items():
        monkeypatch.setenv(name, value)
    host, _, port, _, key = machine.arguments
    with ssh.connect(DeployOptions(host, Path("artifacts"), port=int(port), identity=Path(key))) as found:
        yield found


@needs_sshd
def test_a_folder_is_ours_while_the_block_runs(
    connection: ssh.Connection, machine: Loopback, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(holding, "SIGN_OF_LIFE_S", 0.5)
    monkeypatch.setattr(holding, "SILENT_S", 5.0)
    root = machine.home / "ours"
    with holding.held(connection, "python3", "ours"):
        time.sleep(7)  # longer than it waits for a sign of life
        assert not is_free(root)
        (root / "manifest.json").write_text('{"format": "vgg-export-bundle"}')
    assert is_free(root)


def is_sleeping(pid: Path) -> bool:
    """Whether the shell of that number has become the program: what comes before has happened."""
    try:
        return Path(f"/proc/{int(pid.read_text())}/exe").readlink().name == "sleep"
    except (OSError, ValueError):
        return False


@needs_sshd
def test_a_program_that_goes_on_without_its_connection_is_waited_for(
    connection: ssh.Connection, machine: Loopback, caplog: pytest.LogCaptureFixture
) -> None:
    """pip would change what the next deployment's pip changes."""
    caplog.set_level(logging.INFO)
    root = machine.home / "program"
    (root / on_board.OWN).mkdir(parents=True)
    for interrupted in (False, True):
        started = threading.Thread(target=connection.work, args=(str(root), ["sleep", "600"]), daemon=True)
        started.start()
        pid, end = root / on_board.PID, time.monotonic() + PATIENCE_S
        while not (pid.is_file() and is_sleeping(pid)):
            assert time.monotonic() < end
            time.sleep(0.05)
        number = int(pid.read_text())
        waiter = Holder(root)
        said = f"a program of an earlier deployment still runs in {root} (process {number})"
        assert waiter.answer() == {"waiting": said}
        os.kill(number, signal.SIGKILL if interrupted else signal.SIGINT)
        assert waiter.answer() == {"held": True}
        assert waiter.end() == 0
        started.join(PATIENCE_S)
        pid.unlink()


def step(root: Path, do: str, **request: Any) -> subprocess.Popen[bytes]:
    """A step of the board in a process of its own, which reads on."""
    source = Path(on_board.__file__).read_text(encoding="utf-8").replace("SILENT_S = 60.0", "SILENT_S = 2.0")
    running = subprocess.Popen([sys.executable, "-c", source], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert running.stdin
    running.stdin.write(ssh.as_line({"do": do, "root": str(root), **request}))
    running.stdin.flush()
    return running


def test_a_step_whose_sender_is_gone_is_waited_for_and_ends_soon(tmp_path: Path) -> None:
    """It would write into what the next deployment has checked."""
    tmp_path.joinpath("manifest.json").write_text('{"format": "vgg-export-bundle"}')
    incoming = tmp_path / on_board.INCOMING / "x"
    incoming.parent.mkdir(parents=True)
    incoming.write_bytes(b"another's")
    with incoming.open("rb") as before:
        running = step(tmp_path, "receive", files=[("x", 9, "0" * 64)])
        end = time.monotonic() + PATIENCE_S
        while is_free(tmp_path / on_board.OWN):
            assert time.monotonic() < end
            time.sleep(0.02)
        waiter = Holder(tmp_path)
        said = f"a program of an earlier deployment still runs in {tmp_path}"
        assert waiter.answer() == {"waiting": said}
        refused = step(tmp_path, "prepare")
        assert b"another deployment is at work in" in refused.communicate(timeout=PATIENCE_S)[0]
        assert waiter.answer() == {"held": True}  # without a byte from its sender it gave up
        assert running.wait(PATIENCE_S) == -signal.SIGALRM
        assert waiter.end() == 0
        assert before.read() == b"another's"  # a file of its own


@needs_sshd
def test_a_folder_that_is_lost_is_noticed(connection: ssh.Connection, machine: Loopback) -> None:
    """As when this computer slept, and another deployment may have begun."""
    with holding.held(connection, "python3", "lost"):
        assert connection.run("echo here").out == "here"
        assert connection.holder
        connection.holder.kill()
        connection.holder.wait()
        with pytest.raises(DeployError, match="does not keep the folder for this command any more"):
            connection.run("echo here")
    assert connection.run("echo here").out == "here"


def test_a_board_with_one_session_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is told that nothing keeps others out, and the deployment goes on; never through another port."""
    monkeypatch.setattr(shared, "_SSHD_CONFIG", shared._SSHD_CONFIG + "MaxSessions 1\n")
    with loopback(tmp_path) as there:
        for name, value in there.environment.items():
            monkeypatch.setenv(name, value)
        host, _, port, _, key = there.arguments
        options = DeployOptions(host, Path("artifacts"), port=int(port), identity=Path(key))
        with ssh.connect(options) as found, holding.held(found, "python3", "board"):
            assert "lets one ssh session run at a time (MaxSessions)" in caplog.text
            assert found.run("echo here").out == "here"
            assert not found.holder


@needs_sshd
def test_programs_run_where_the_board_has_no_flock(connection: ssh.Connection, machine: Loopback) -> None:
    (machine.home / "bare" / on_board.OWN).mkdir(parents=True)
    for name in ("sh", "cat", "echo"):
        path = shutil.which(name)
        assert path
        (machine.bin / name).symlink_to(path)
    machine.login(PATH=str(machine.bin))
    done = connection.work("bare", ["echo", "works"])
    assert (done.code, done.out, done.err) == (0, "works", "")


@needs_sshd
def test_what_the_board_says_instead_is_one_sentence(connection: ssh.Connection, machine: Loopback) -> None:
    (machine.home / "file").write_text("")
    with (
        pytest.raises(
            BoardError, match=r"file/board on 127\.0\.0\.1: Not a directory; choose another folder"
        ),
        holding.held(connection, "python3", "file/board"),
    ):
        pass
    with (
        pytest.raises(
            DeployError, match=r"127\.0\.0\.1 did not finish the step 'hold' \(.*no-python.*\); run"
        ),
        holding.held(connection, "no-python", "board"),
    ):
        pass


@contextlib.contextmanager
def interrupted_after(seconds: float) -> Iterator[None]:
    """The block gets what Ctrl-C sends, this process alone."""
    main = threading.main_thread().ident
    assert main
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a worker of tests ignores it
    timer = threading.Timer(seconds, signal.pthread_kill, args=(main, signal.SIGINT))
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()
        signal.signal(signal.SIGINT, before)


@needs_sshd
def test_ctrl_c_on_the_terminal_does_not_reach_ssh(connection: ssh.Connection) -> None:
    """It goes to the whole group of the program's processes; the folder is ours until what runs there has
    been stopped."""
    running = connection.start("sleep 1", subprocess.DEVNULL)
    assert os.getpgid(running.pid) != os.getpgid(0)
    running.communicate()
    with holding.held(connection, "python3", "ours"):
        assert connection.holder
        assert os.getpgid(connection.holder.pid) != os.getpgid(0)


@needs_sshd
def test_an_interrupted_program_that_cannot_be_stopped_is_told_of(
    connection: ssh.Connection, caplog: pytest.LogCaptureFixture
) -> None:
    """The interruption is what ends the command, with its own exit code."""
    with interrupted_after(2), pytest.raises(KeyboardInterrupt):
        connection.run("sleep 8", stop="exit 1")
    assert "what was started on 127.0.0.1 may still run there: it could not be stopped" in caplog.text
    with holding.held(connection, "python3", "lost"):
        assert connection.holder
        losing = threading.Timer(1, connection.holder.kill)
        losing.start()
        with interrupted_after(3), pytest.raises(KeyboardInterrupt):
            connection.run("sleep 8", stop="exit 1")
        losing.join()
    assert "may still run there: 127.0.0.1 does not keep the folder for this command" in caplog.text


@needs_sshd
def test_an_interrupted_wait_leaves_nothing_behind(connection: ssh.Connection, machine: Loopback) -> None:
    root = machine.home / "busy"
    first = Holder(root)
    assert first.answer() == {"held": True}
    with (
        interrupted_after(3),
        pytest.raises(KeyboardInterrupt),
        holding.held(connection, "python3", str(root)),
    ):
        pytest.fail("it was not free")
    end = time.monotonic() + PATIENCE_S
    while machine.running():
        assert time.monotonic() < end, machine.running()
        time.sleep(0.1)
    assert not is_free(root)
    assert first.end() == 0
