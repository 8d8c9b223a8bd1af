"""Child processes that answer in JSON, an event a line."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import IO


def start(module: str, complaints: IO[str] | int) -> "subprocess.Popen[bytes]":
    """A child process of this very copy of the runtime, whatever else is installed; spoken to through its
    standard streams."""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    command = [sys.executable, "-P", "-m", module]
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=complaints, env=environment
    )


def explain_death(code: int, complaint: str) -> str:
    """One sentence for a child's non-zero return code (negative: the signal) and what it wrote to standard
    error."""
    if code == -signal.SIGKILL:
        return "did not fit: the process was killed, as the system does when memory runs out"
    if code == -signal.SIGILL:
        return (
            "onnxruntime uses an instruction this CPU lacks (1.21.0 does on a Pi 4): install another"
            " version, see requirements.txt"
        )
    last = complaint.strip().splitlines()[-1][:200] if complaint.strip() else "it said nothing"
    if code < 0:
        return f"the process died of {signal.Signals(-code).name}: {last}"
    return f"the process ended with code {code}: {last}"
