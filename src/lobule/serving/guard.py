"""Who may ask: before a request reaches anything else.

A page from elsewhere, open in the same browser, must reach nothing here: the Host header must be
one of ours (DNS rebinding), a request that a browser calls cross-site is refused, and all but
/healthz needs the token that the server was started with.
"""

from __future__ import annotations

import asyncio
import hmac
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from urllib.parse import parse_qsl, quote, urlencode

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lobule.serving.limits import Limits, Refused, too_many_bytes

ERROR_SCHEMA = "lobule.error/1"

HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' data: blob:; connect-src 'self'; form-action 'self'; base-uri 'none'; "
    "frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    # with "no-referrer" a browser would send "Origin: null" with our own forms
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
    "cache-control": "no-store",
}
"""What every response carries."""

DRAIN = (256 * 2**20, 10.0)
"""Bytes and seconds for which the rest of a request's body is read once it has its answer."""

OPEN = frozenset({"/healthz"})
"""Paths that need no token."""


@dataclass(frozen=True)
class Access:
    """Who may ask. hosts: accepted values of Host, lower case, with port. token: None for none.

    cookie: name of the cookie that carries the token for a browser.
    """

    hosts: frozenset[str]
    token: str | None
    cookie: str = "lobule_token"


def error_body(refused: Refused, name: str | None = None) -> dict[str, str | int | None]:
    """Return what a refusal says in JSON."""
    return {
        "schema": ERROR_SCHEMA,
        "status": refused.status,
        "code": refused.code,
        "what": refused.what,
        "fix": refused.fix,
        "name": name,
    }


class Guard:
    """ASGI middleware around the whole application."""

    def __init__(self, app: ASGIApp, access: Access, limits: Limits) -> None:
        """Stand before `app`."""
        self.app = app
        self.access = access
        self.limits = limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or answer it here."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        names = {key.lower() for key, _ in scope["headers"]}
        left = bool(names & {b"content-length", b"transfer-encoding"})
        seen = 0

        async def counted() -> Message:
            nonlocal left, seen
            message = await receive()
            left = message.get("more_body", False)
            seen += len(message.get("body", b""))
            if seen > self.limits.upload_bytes:
                raise too_many_bytes(self.limits)
            return message

        async def answered(message: Message) -> None:
            if message["type"] == "http.response.start":
                _add_headers(message, {"connection": "close"} if left else {})
            elif left and not message.get("more_body", False):
                # many a client looks for an answer when it has sent all: let it, within bounds
                await send({**message, "more_body": True})
                await _drain(receive)
                message = {"type": "http.response.body", "body": b""}
            await send(message)

        try:
            told = self._told(scope)
            if told is not None:
                await _redirect(answered, told, self._cookie())
                return
        except Refused as refused:
            await _refuse(answered, refused)
            return
        await self.app(scope, counted, answered)

    def _told(self, scope: Scope) -> str | None:
        """Check a request; return where to go where its address held the token."""
        headers: dict[str, list[str]] = {}
        for key, value in scope["headers"]:
            headers.setdefault(key.decode("latin-1").lower(), []).append(value.decode("latin-1"))
        self._check_origin(headers)
        length = headers.get("content-length", ["0"])[0]
        if not length.isdigit() or int(length) > self.limits.upload_bytes:
            raise too_many_bytes(self.limits)
        if self.access.token is None or scope["path"] in OPEN:
            return None
        query = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
        asked = [value for key, value in query if key == "token"]
        if scope["method"] == "GET" and len(asked) == 1 and self._matches(asked[0]):
            rest = urlencode([(key, value) for key, value in query if key != "token"])
            # one slash: two would name another host
            path = quote(scope["path"].lstrip("/\\\t\r\n "))
            return f"/{path}" + (f"?{rest}" if rest else "")
        if not any(self._matches(token) for token in self._tokens(headers)):
            raise Refused(
                401, "token", "this request has no valid token",
                fix="open the address that `lobule serve` printed, or send it as "
                "'Authorization: Bearer TOKEN'",
            )  # fmt: skip
        return None

    def _check_origin(self, headers: Mapping[str, list[str]]) -> None:
        host = headers.get("host", [])
        if len(host) != 1 or host[0].lower() not in self.access.hosts:
            raise Refused(
                421, "host", "the request is for a host that this server is not",
                fix="use the address that `lobule serve` printed, or name the host with "
                "--allow-host",
            )  # fmt: skip
        origin = headers.get("origin", [])
        site = headers.get("sec-fetch-site", ["none"])[0]
        ours = {f"{scheme}://{host[0].lower()}" for scheme in ("http", "https")}
        if any(o.lower() not in ours for o in origin) or site in ("cross-site", "same-site"):
            raise Refused(
                403, "cross-site", "the request comes from a page of another site",
                fix="use the server's own page, or a program that sends no Origin",
            )  # fmt: skip

    def _tokens(self, headers: Mapping[str, list[str]]) -> list[str]:
        found = []
        for value in headers.get("authorization", []):
            kind, _, token = value.partition(" ")
            if kind.lower() == "bearer":
                found.append(token.strip())
        for value in headers.get("cookie", []):
            # cookies are shared by all ports of a host, and parsers stop at others' odd ones
            named = (pair.strip().partition("=") for pair in value.split(";"))
            found += [token for name, _, token in named if name == self.access.cookie]
        return found

    def _matches(self, token: str) -> bool:
        known = self.access.token or ""
        return hmac.compare_digest(token.encode("utf-8", "replace"), known.encode())

    def _cookie(self) -> str:
        return f"{self.access.cookie}={self.access.token}; Path=/; HttpOnly; SameSite=Strict"


async def _redirect(send: Send, where: str, cookie: str) -> None:
    headers = [(b"location", where.encode("latin-1", "replace")), (b"set-cookie", cookie.encode())]
    await send({"type": "http.response.start", "status": 303, "headers": headers})
    await send({"type": "http.response.body", "body": b""})


def _add_headers(start: Message, more: Mapping[str, str]) -> None:
    headers = MutableHeaders(scope=start)
    for key, value in {**HEADERS, **more}.items():
        headers.setdefault(key, value)


async def _drain(receive: Receive) -> None:
    """Read and drop what is left of a request's body, up to DRAIN."""
    most, seconds = DRAIN
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            more = True
            while more and most > 0:
                message = await receive()
                more = message.get("more_body", False)
                most -= len(message.get("body", b""))


async def _refuse(send: Send, refused: Refused) -> None:
    body = json.dumps(error_body(refused)).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
    ]
    if refused.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    await send({"type": "http.response.start", "status": refused.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
