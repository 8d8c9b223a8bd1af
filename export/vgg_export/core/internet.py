"""Finds out within seconds whether a server can be reached."""

import logging
import threading
import urllib.error
import urllib.parse
import urllib.request

log = logging.getLogger(__name__)


DECIDE_SECONDS = 4.0


def reachable(url: str, seconds: float = DECIDE_SECONDS) -> str | None:
    """Why ``url`` does not answer within ``seconds``; None when it does. A name look-up that hangs is not
    waited for."""
    answer: list[str | None] = []

    def ask() -> None:
        try:
            with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=seconds):
                answer.append(None)
        except (OSError, ValueError) as error:
            answer.append(str(getattr(error, "reason", error)) or type(error).__name__)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(seconds)
    return answer[0] if answer else f"no answer within {seconds:g} s"
