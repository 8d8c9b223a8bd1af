"""Addresses as they may be shown: without users, passwords and tokens."""

import base64
import re
import unicodedata
import urllib.parse
from collections.abc import Iterator

from .text import printable

HIDDEN = "…"  # stands for what must not be shown
LONGEST = 80  # characters of an address that are shown
# schemes, one within the other as in ffmpeg:async:rtsp://…, or as a path's name has them, with one slash;
# host; path; what is asked
_PARTS = re.compile(r"((?:[a-zA-Z][\w+.-]*:)*//|(?:[a-zA-Z][\w+.-]+:)+/)?([^/?#]*)([^?#]*)(.*)", re.DOTALL)
# a host and a port, or the words that stand for a port where an error says what is expected
_PLACE = re.compile(r"(?:\[[\w:.%]*\]|[\w.-]*)(?::([0-9]{0,5}|PORT)|\[:PORT\])?")
# cameras take a login in the path, too: /user=admin_password=…_channel=1.sdp
_NAMED = re.compile(
    r"(pass\w{0,20}|pwd?|psw|token|key|secret|auth\w{0,20}|sig(nature)?|session\w{0,9}|login\w{0,9})\s*[=:]",
    re.IGNORECASE,
)
# within a sentence; a password may hold blanks, where a host follows it
_ADDRESS = re.compile(r"(?<![\w+.-])(?:[\w+.-]+:){1,8}/{1,2}(?:[^/\s'\"();@]*:[^/'\"();@]*@)?\S*")
_WORD = re.compile(r"[^\s'\"()]+")
_BEHIND = "'\"),.;:"  # what may follow an address in a sentence
_SHORTEST = 3  # characters of a value that is hidden: a shorter one is found in any sentence


def without_secrets(address: str) -> str:
    """An address as it may be shown: without user, password, what comes behind a question mark or hash, and
    what follows a name such as password= in the path. Of what is meant as one but is none, such as a password
    with a slash in it, only the scheme is shown.
    """
    return printable(_shown(address), LONGEST)


def hidden_in(sentence: str) -> str:
    """A sentence whose addresses are as they may be shown; the rest of it stays as it is."""
    return _WORD.sub(_word, _ADDRESS.sub(_safe, sentence))


def secrets(address: str) -> tuple[str, ...]:
    """What must not be shown of an address, the longest first: as it is written, as it is meant, and as a
    server may repeat it.

    Raises:
        ValueError: it is no address.
    """
    found = urllib.parse.urlsplit(address[max(0, address.find("//")) :])
    # urllib decodes a host, and says what it cannot use of it
    login, meant = (host.rpartition("@")[0] for host in (found.netloc, _meant(found.netloc)))
    parts = {address, login, *re.split("[:@]", meant), found.username or ""}
    parts |= {found.query, found.fragment, *_values(found.query)}
    parts |= {value for name in _NAMED.finditer(found.path) for value in _ends(found.path[name.end() :])}
    parts |= {urllib.parse.unquote(part) for part in parts}
    parts |= {urllib.parse.quote(part, safe="", errors="replace") for part in parts}
    parts.add(base64.b64encode(urllib.parse.unquote(login).encode(errors="replace")).decode())
    parts = {part for part in parts if len(part) >= _SHORTEST}
    parts |= {found.password or "", urllib.parse.unquote(found.password or "")} - {""}
    return tuple(sorted(parts, key=len, reverse=True))


def holds_login(address: str) -> bool:
    """Whether there is a user or a password in an address, or may be one."""
    scheme, host, path, asked = _parts(address)
    login, place = _divided(scheme, host)
    return bool(login) or not _is_clear(scheme, login, place, path, asked)


def _shown(address: str) -> str:
    scheme, host, path, asked = _parts(address)
    login, place = _divided(scheme, host)
    if not _is_clear(scheme, login, place, path, asked):
        return f"{scheme}{HIDDEN}"
    front = f"{scheme}{HIDDEN}@{place}" if login else f"{scheme}{place}"
    if name := _NAMED.search(path):
        return f"{front}{path[: name.end()]}{HIDDEN}"
    return f"{front}{path}" + (f"{asked[0]}{HIDDEN}" if asked else "")


def _parts(address: str) -> tuple[str, str, str, str]:
    """Scheme, host with user and password, path, and what is asked."""
    parts = _PARTS.fullmatch(address)
    assert parts  # it fits any text
    scheme, host, path, asked = (part or "" for part in parts.groups())
    return scheme, host, path, asked


def _divided(scheme: str, host: str) -> tuple[str, str]:
    """User and password, and the host. A file's name, which has no scheme, may have an @ in it."""
    login, _, place = host.rpartition("@")
    return (login, place) if scheme or ":" in _meant(login) else ("", host)


def _is_clear(scheme: str, login: str, place: str, path: str, asked: str) -> bool:
    """Whether it is certain where user and password end, and that no name of a secret is written so that it
    is not found."""
    if scheme or login:
        port = _PLACE.fullmatch(place)
        if not port or ((port[1] or "").isdigit() and int(port[1]) > 65535):
            return False
    elif _has_login(_meant(place)):
        return False
    if "@" in _meant(path + asked) and (login or ":" in _meant(place + path)):
        return False  # the password may have a slash in it
    name = _NAMED.search(path)
    return not _NAMED.search(_meant(path[: name.start()] if name else path))


def _has_login(text: str) -> bool:
    """Whether there is a colon and an @ behind it."""
    return 0 <= text.find(":") < text.rfind("@")


def _meant(text: str) -> str:
    """Text with what its percent signs stand for, and with plain signs in place of wide ones."""
    for _ in range(3):
        text = unicodedata.normalize("NFKC", urllib.parse.unquote(text))
    return text


def _safe(found: re.Match[str]) -> str:
    address = found[0].rstrip(_BEHIND)
    return _shown(address) + found[0][len(address) :]


def _word(found: re.Match[str]) -> str:
    """A word; one that has a user and a password in it, and no scheme, as an address."""
    is_one = not _ADDRESS.search(found[0]) and _has_login(_meant(found[0]))
    return _safe(found) if is_one else found[0]


def _values(query: str) -> Iterator[str]:
    """Each value as it is written, and as a form means it."""
    yield from (part.partition("=")[2] or part for part in re.split("[&;]", query))
    yield from (value for _, value in urllib.parse.parse_qsl(query))


def _ends(path: str) -> tuple[str, str, str]:
    """What may be the value that a path begins with."""
    return path, re.split("[&;/]", path)[0], re.split(r"[&;/]|_\w+=", path)[0]
