"""The names and addresses of this machine: where the page listens, and by which names it may be opened."""

import contextlib
import errno
import ipaddress
import re
import socket

from vgg_runtime.errors import RuntimeInputError

EVERY = {False: "0.0.0.0", True: "::"}  # every address of this machine, by whether it is one of IPv6
_LABEL = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]*[A-Za-z0-9_])?"
_NAME = re.compile(rf"{_LABEL}(?:\.{_LABEL})*\.?")
# RFC 3986, 3.2.2 and RFC 6874: only an address of IPv6 stands in brackets, and only that has a zone
_IN_HEADER = re.compile(
    r"(?:\[(?P<six>[0-9A-Fa-f]*:[0-9A-Fa-f:.]*(?:%[A-Za-z0-9._-]+)?)\]|(?P<other>[^\[\]:]*))(?::[0-9]{0,5})?"
)


def alone(flag: str, given: str) -> str:
    """A host that was typed, a name as browsers send it (``münchen.local`` as ``xn--mnchen-3ya.local``).

    Raises:
        RuntimeInputError: it is no name or address alone: it has a scheme, a port, a path, or nothing.
    """
    if is_address(given):
        return given
    if _NAME.fullmatch(name := _as_sent(given)):
        return name
    raise RuntimeInputError(
        f"{flag} takes a host's name or address alone, such as board.lan or 192.168.1.7, without http://, a"
        f" port, a path or brackets, found {given[:80]!r}; a port goes into --port"
    )


def _as_sent(name: str) -> str:
    """A name in the ASCII form in which browsers send it; "" where it has none."""
    try:
        return name if name.isascii() else name.encode("idna").decode("ascii")
    except UnicodeError:  # a part is empty, too long, or has what no name may have
        return ""


def same(name: str) -> str:
    """A name as it is compared: neither capital letters nor the dot of a full name count."""
    return name.lower().removesuffix(".")


def in_header(host: str) -> str:
    """The name or address in a Host header, without port and brackets; "" where it is not written as one."""
    found = _IN_HEADER.fullmatch(host)
    return (found["six"] or found["other"] or "") if found else ""


def is_address(name: str) -> bool:
    """Whether a name is an IP address. Only a link-local one of IPv6 may have a zone (``fe80::1%eth0``)."""
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return False
    zone = address.scope_id if isinstance(address, ipaddress.IPv6Address) else None
    return zone is None or (address.is_link_local and bool(re.fullmatch(r"[A-Za-z0-9._-]+", zone)))


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def bracketed(name: str) -> str:
    """A host as a URL has it: IPv6 in brackets."""
    return f"[{name}]" if ":" in name else name


def own_names(host: str) -> tuple[str, ...]:
    """The host names and addresses at which others reach this machine when the page is open to the
    network."""
    name = _as_sent(socket.gethostname())
    names = [name, f"{name}.local"] if name else []
    if host not in EVERY.values():
        return (host, *names)
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        # no packet is sent; the system only chooses the address that it would use
        probe.connect(("192.0.2.1", 9))
        names.insert(0, probe.getsockname()[0])
    return tuple(names)


def listen(host: str, port: int) -> socket.socket:
    """A TCP socket that listens on ``host`` and ``port``.

    Raises:
        RuntimeInputError: the port is taken or not for this user, or the host is not this machine's own.
    """
    try:
        return _listening(host, port)
    except OSError as error:
        said = f"cannot listen on {host} port {port} ({error.strerror})"
        if error.errno in (errno.EADDRINUSE, errno.EACCES):
            raise RuntimeInputError(f"{said}; choose another --port") from error
        every = EVERY[":" in host and host != EVERY[True]]
        raise RuntimeInputError(
            f"{said}: it is no address of this machine's own; if others reach it by that one, use --host"
            f" {every} --name {host}"
        ) from error


def _listening(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
        listening.listen(64)
    except BaseException:
        listening.close()
        raise
    return listening
