"""How a child process reports to its parent: one JSON event per line, which ``process.py`` reads. This module
imports next to nothing, because everything that a child imports counts as its model's memory."""

import json
import sys
from typing import Any

TIMED_PICTURES = 64  # the first ones that a process is asked; as many as a P90 needs
NO_MEMORY = "did not fit: out of memory"


def say(event: str, **fields: Any) -> None:
    """Write one event to standard output and flush it."""
    sys.stdout.write(json.dumps({"event": event, **fields}) + "\n")
    sys.stdout.flush()


def in_words(error: BaseException) -> str:
    """The message of an error in one line of at most 300 characters, else the name of its type."""
    return " ".join(str(error).split())[:300] or type(error).__name__


def failure(error: BaseException) -> str:
    """Why a model cannot be run. onnxruntime reports too little memory in several ways; they all become one
    message."""
    text = " ".join(str(error).split())
    no_memory = isinstance(error, MemoryError) or "bad_alloc" in text or "Failed to allocate" in text
    return NO_MEMORY if no_memory else in_words(error)
