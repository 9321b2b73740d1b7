"""Access control: API keys, browser sessions, and protection against cross-site requests."""

from __future__ import annotations

import hashlib
import ipaddress
from collections.abc import Sequence
from urllib.parse import urlsplit

from itsdangerous import BadSignature, TimestampSigner
from starlette.requests import HTTPConnection

SESSION_COOKIE = "longtake_session"
SESSION_S = 30 * 24 * 3600
_SAFE_METHODS = ("GET", "HEAD", "OPTIONS")


class Access:
    """Access rules of a server. Without API keys, every client on this host is allowed.

    Each key signs the sessions that were opened with it, so removing a key ends them.

    Args:
        keys: The API keys; may be empty.
        host: Address that the server listens on.
    """

    def __init__(self, keys: Sequence[str], host: str) -> None:
        self._labels = {_digest(key): _label(key) for key in keys}
        self._signers = {
            _label(key): TimestampSigner(
                key, salt=SESSION_COOKIE, key_derivation="hmac", digest_method=hashlib.sha256
            )
            for key in keys
        }
        self._hosts = {"localhost", "127.0.0.1", "[::1]", host, f"[{host}]"}

    @property
    def needs_key(self) -> bool:
        """Whether requests need an API key."""
        return bool(self._labels)

    def label_of_key(self, key: str) -> str | None:
        """The label of an API key; None if the server has no such key.

        Digests are compared, so the time it takes reveals nothing about the keys.
        """
        return self._labels.get(_digest(key))

    def new_session(self, label: str) -> str:
        """The value of a session cookie for the key with this label."""
        return self._signers[label].sign(label).decode()

    def label_of(self, connection: HTTPConnection) -> str | None:
        """The label of the key that a request was sent with.

        Returns:
            An empty label if no key is needed; None if the request has neither a valid key nor a
            valid session.
        """
        if not self.needs_key:
            return ""
        scheme, _, key = connection.headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            return self.label_of_key(key.strip())
        cookie = connection.cookies.get(SESSION_COOKIE, "")
        label = cookie.partition(".")[0]
        signer = self._signers.get(label)
        if signer is None:
            return None
        try:
            signer.unsign(cookie, max_age=SESSION_S)
        except BadSignature:
            return None
        return label

    def is_trusted(self, method: str, connection: HTTPConnection) -> bool:
        """Whether a request does not come from another site's page.

        Without API keys, the Host header must also name this host, which prevents DNS rebinding.
        Starlette's TrustedHostMiddleware does not fit: it answers in plain text, which OpenAI's
        clients do not parse, and refuses ``localhost.`` with its trailing dot.
        """
        host = connection.headers.get("host", "")
        if not self.needs_key and _without_port(host) not in self._hosts:
            return False
        if method in _SAFE_METHODS:
            return True
        origin = connection.headers.get("origin")
        if origin is not None and _host_of(origin) != host.lower():
            return False
        return connection.headers.get("sec-fetch-site", "none") in ("none", "same-origin")


def is_local(host: str) -> bool:
    """Whether an address is reachable from this host only."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()


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
