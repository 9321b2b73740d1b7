"""Who may come in: API keys, a session for the page, and what a browser says of who sends it."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import time
from collections.abc import Sequence
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.requests import cookie_parser

SESSION = "longtake_session"
SESSION_S = 30 * 24 * 3600
_NO_CHANGE = ("GET", "HEAD", "OPTIONS")


class Access:
    """Tells who may come in. Without any keys everybody may, who comes to this host by its name.

    Args:
        keys: API keys.
        host: that the server listens on.
    """

    def __init__(self, keys: Sequence[str], host: str) -> None:
        self._keys = {_label(key): hashlib.sha256(key.encode()).digest() for key in keys}
        self._hosts = {"localhost", "127.0.0.1", "[::1]", host, f"[{host}]"}

    @property
    def closed(self) -> bool:
        """Whether a key is needed."""
        return bool(self._keys)

    def key(self, given: str) -> str | None:
        """The label of a key that is given; None if it is none. Takes as long for any."""
        digest = hashlib.sha256(given.encode("utf-8", "surrogateescape")).digest()
        found = None
        for label, known in self._keys.items():
            if hmac.compare_digest(digest, known):
                found = label
        return found

    def session(self, label: str) -> str:
        """A cookie's value, for a page of whoever has a key."""
        until = str(int(time.time()) + SESSION_S)
        return f"{label}.{until}.{self._signed(label, until)}"

    def asker(self, headers: Headers) -> str | None:
        """The label of the key that a request comes with; empty where none is needed; None: it may
        not come in."""
        if not self.closed:
            return ""
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            return self.key(given.strip())
        label, _, rest = cookie_parser(headers.get("cookie", "")).get(SESSION, "").partition(".")
        until, _, signature = rest.partition(".")
        known = label in self._keys and until.isascii() and until.isdigit() and len(until) < 15
        if not known or not hmac.compare_digest(
            signature.encode(), self._signed(label, until).encode()
        ):
            return None
        return label if int(until) > time.time() else None

    def trusts(self, method: str, headers: Headers) -> bool:
        """Whether a request is what its user meant: no other site's page sent it, and where no key
        is needed no other name leads here."""
        host = headers.get("host", "")
        if not self.closed and _without_port(host) not in self._hosts:
            return False
        if method in _NO_CHANGE:
            return True
        origin = headers.get("origin")
        if origin is not None and _host_of(origin) != host.lower():
            return False
        return headers.get("sec-fetch-site", "none") in ("none", "same-origin")

    def _signed(self, label: str, until: str) -> str:
        key = self._keys.get(label, b"")
        return hmac.new(key, f"session {label} {until}".encode(), "sha256").hexdigest()


def is_local(host: str) -> bool:
    """Whether nobody but this host can reach an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _label(key: str) -> str:
    return hashlib.sha256(b"longtake label " + key.encode()).hexdigest()[:12]


def _without_port(host: str) -> str:
    name, _, port = host.rpartition(":")
    return (name if name and port.isdigit() else host).lower().removesuffix(".")


def _host_of(origin: str) -> str:
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return ""
