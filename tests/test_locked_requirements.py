"""The device's locked requirements, as pip takes them for the boards and Pythons that are promised."""

import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

LOCKED = ROOT / "runtime/requirements-locked.txt"
PLATFORMS = ("manylinux_2_28", "manylinux_2_27", "manylinux_2_17", "manylinux2014")


def fetch(python: str, machine: str, requirements: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    """Every wheel that a board of another kind would install, checked against the hashes."""
    command = [sys.executable, "-m", "pip", "download", "-q", "--disable-pip-version-check"]
    command += ["--require-hashes", "--only-binary=:all:", "--python-version", python]
    command += ["--implementation", "cp", "--abi", f"cp{python.replace('.', '')}", "--abi", "abi3"]
    command += [
        "--abi",
        "none",
        *(word for name in PLATFORMS for word in ("--platform", f"{name}_{machine}")),
    ]
    command += ["-d", str(folder), "-r", str(requirements)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.release
@pytest.mark.parametrize("machine", ["aarch64", "x86_64"])
@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13"])
def test_they_are_complete_for_every_python_and_machine(python: str, machine: str, tmp_path: Path) -> None:
    done = fetch(python, machine, LOCKED, tmp_path)
    assert done.returncode == 0, done.stderr
    named = {line.split("==")[0] for line in LOCKED.read_text().splitlines() if "==" in line}
    assert {path.name.split("-")[0] for path in tmp_path.iterdir()} == named
    assert any(machine in path.name for path in tmp_path.iterdir())


@pytest.mark.release
def test_a_file_with_another_hash_is_refused(tmp_path: Path) -> None:
    other = tmp_path / "other.txt"
    words = LOCKED.read_text().split("sha256:")
    other.write_text("sha256:".join([words[0], *("0" * 64 + word[64:] for word in words[1:])]))
    done = fetch("3.11", "aarch64", other, tmp_path / "wheels")
    assert done.returncode != 0
    assert "HASH" in done.stderr.upper()
