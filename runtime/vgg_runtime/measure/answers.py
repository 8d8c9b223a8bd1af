"""What a child process says to the one that started it, an event a line; ``process.py`` is the other end. It
imports next to nothing, since all that a child imports counts as its model's memory."""

import json
import sys
from typing import Any

NO_MEMORY = "did not fit: out of memory"


def say(event: str, **fields: Any) -> None:
    """One event, at once."""
    sys.stdout.write(json.dumps({"event": event, **fields}) + "\n")
    sys.stdout.flush()


def in_words(error: BaseException) -> str:
    """Whatever was raised, in its own words."""
    return " ".join(str(error).split())[:300] or type(error).__name__


def failure(error: BaseException) -> str:
    """Why a model cannot be run; onnxruntime has several words for a memory that is too small."""
    text = " ".join(str(error).split())
    no_memory = isinstance(error, MemoryError) or "bad_alloc" in text or "Failed to allocate" in text
    return NO_MEMORY if no_memory else in_words(error)
