"""The systemd user service: its unit is checked by systemd itself where that is installed, and the commands
run through a real sshd with a stand-in for systemctl. ``test_real_service.py`` has a real systemd run it."""

import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import export_in
from loopback import MISSING, TOOLS, Loopback, loopback, script

from vgg_export.core.errors import OptionsError
from vgg_export.deploy import service
from vgg_export.options import DeployOptions
from vgg_runtime.bundle import manifest

ANALYZE = shutil.which("systemd-analyze")
needs_systemd = pytest.mark.skipif(
    not ANALYZE and not os.environ.get("VGG_EXPORT_REQUIRE_SYSTEMD"), reason="needs systemd-analyze"
)
needs_sshd = pytest.mark.skipif(not TOOLS and not os.environ.get("VGG_EXPORT_REQUIRE_SSHD"), reason=MISSING)
MOST_EXPOSED = 3.0  # of systemd-analyze security, 0 to 10


def test_a_word_of_the_command_is_quoted_as_systemd_reads_it() -> None:
    text = service.unit("/srv/pi/my models", ["compact", "--source", 'a "b" 100% $HOME \\'], 2_000_000)
    (line,) = re.findall(r"^ExecStart=(.*)$", text, re.MULTILINE)
    assert line == (
        '"/srv/pi/my models/venv/bin/python" "/srv/pi/my models/runtime/compare.py" "--live" "compact"'
        ' "--source" "a \\"b\\" 100%% $$HOME \\\\"'
    )
    assert "WorkingDirectory=/srv/pi/my models\n" in text


def test_the_memory_follows_the_model() -> None:
    def limit(model_bytes: int) -> int:
        (found,) = re.findall(r"^MemoryMax=(\d+)$", service.unit("/x", ["a"], model_bytes), re.MULTILINE)
        return int(found)

    assert limit(2_000_000) == service.LEAST_MEMORY_BYTES
    assert limit(100_000_000) == service.PROGRAM_BYTES + 300_000_000


@needs_systemd
def test_systemd_takes_the_unit_and_finds_it_little_exposed(tmp_path: Path) -> None:
    root = tmp_path / "bundle"
    (root / "venv/bin").mkdir(parents=True)
    (root / "venv/bin/python").write_text("#!/bin/sh\n")
    (root / "venv/bin/python").chmod(0o755)
    unit = tmp_path / service.UNIT
    unit.write_text(service.unit(str(root), ["compact", "--source", "a b"], 2_000_000))
    environment = os.environ | {"XDG_RUNTIME_DIR": str(tmp_path)}
    checked = subprocess.run(
        [ANALYZE or "", "--user", "verify", unit],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    assert checked.returncode == 0
    assert service.UNIT not in checked.stderr
    judged = subprocess.run(
        [ANALYZE or "", "security", "--offline=true", "--no-pager", unit],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    (exposed,) = re.findall(r"Overall exposure level for \S+: ([\d.]+)", judged.stdout)
    assert float(exposed) < MOST_EXPOSED


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"service": "compact", "run": False}, "--service and --no-run do not go together"),
        ({"stop": True, "logs": True}, "--stop and --logs do not go together"),
        ({"service": "--source camera"}, "--service takes a variant and options of compare.py --live"),
        ({"service": ""}, "--service takes a variant"),
        ({"service": "compact 'a"}, "--service cannot be read"),
    ],
)
def test_options_that_do_not_go_together(options: dict[str, object], said: str) -> None:
    with pytest.raises(OptionsError, match=said):
        DeployOptions("pi", **options)  # type: ignore[arg-type]


# Through ssh


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loopback]:
    with loopback(tmp_path_factory.mktemp("board")) as there:
        yield there


Deploy = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def to_board(machine: Loopback, tmp_path: Path) -> Deploy:
    machine.reset()

    def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
        named = ("deploy", *machine.arguments, *arguments)
        return export_in(tmp_path, *named, timeout_s=500, **machine.environment)

    return run


def systemctl(machine: Loopback, *body: str) -> None:
    """A systemctl, loginctl and journalctl on the board that write down what they are asked."""
    for name in ("systemctl", "loginctl", "journalctl"):
        script(machine.bin / name, f'echo "{name} $*" >> "$HOME/asked"', *body)


@needs_sshd
@pytest.mark.release
def test_a_service_is_installed_asked_and_stopped(
    machine: Loopback, to_board: Deploy, bundle_folder: Path
) -> None:
    systemctl(machine)
    live = "scaled --source camera --stable 2s --log 'answers of today.jsonl'"
    done = to_board("--bundle", bundle_folder, "--path", "my app", "--service", live)
    assert done.returncode == 0, done.stderr
    unit = (machine.home / ".config/systemd/user" / service.UNIT).read_text()
    model_bytes = manifest.read(bundle_folder).variant("scaled").build.bytes
    assert unit == service.unit(str(machine.home / "my app"), shlex.split(live), model_bytes)
    assert '"answers of today.jsonl"' in unit
    asked = (machine.home / "asked").read_text()
    assert f"systemctl --user enable {service.UNIT}" in asked
    assert f"systemctl --user restart {service.UNIT}" in asked
    assert "loginctl enable-linger" in asked
    for option, said in (
        ("--status", "systemctl --user show -p"),
        ("--logs", "journalctl --user"),
        ("--stop", "systemctl --user disable --now"),
    ):
        (machine.home / "asked").unlink()
        assert to_board(option).returncode == 0
        assert said in (machine.home / "asked").read_text()


@pytest.mark.release
@needs_sshd
def test_a_service_that_does_not_start_says_why(
    machine: Loopback, to_board: Deploy, bundle_folder: Path
) -> None:
    systemctl(
        machine,
        'case "$*" in *restart*) exit 1;; esac',
        'case "$*" in *status*) echo "Nov 27 10:00:00 pi python[7]: Error: no camera";; esac',
    )
    done = to_board("--bundle", bundle_folder, "--path", "my app", "--service", "scaled --source camera")
    assert done.returncode == 1
    assert "the service does not start on 127.0.0.1: Error: no camera" in done.stderr
    systemctl(machine, 'case "$*" in *daemon-reload*) echo "Failed to connect to bus" >&2; exit 1;; esac')
    done = to_board("--bundle", bundle_folder, "--path", "my app", "--service", "scaled --source camera")
    assert done.returncode == 2
    assert "runs no systemd for users (Failed to connect to bus)" in done.stderr
    unknown = to_board("--bundle", bundle_folder, "--service", "none --source camera")
    assert unknown.returncode == 2
    assert "there is no variant 'none'" in unknown.stderr
