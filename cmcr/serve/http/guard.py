"""What stands before every route: who may ask, how much may be sent, one line a request.

Pure ASGI, so that a body that is too large is refused while it comes and an answer passes through
as it is. Nothing of what is sent is written down.
"""

import hmac
import logging
import time
from collections.abc import Awaitable, Callable, Collection, MutableMapping
from typing import Any

from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from cmcr.serve.metrics import Metrics
from cmcr.serve.schemas import error_body

log = logging.getLogger("cmcr.serve")

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

OPEN = ("/livez", "/readyz", "/", "/page.js", "/page.css")  # without a token
_HEADERS = (
    (b"content-security-policy", b"default-src 'self'; img-src 'self' blob: data:; "
     b"media-src 'self' blob:; style-src 'self'; script-src 'self'; frame-ancestors 'none'"),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
)  # fmt: skip


class Guard:
    """Around an ASGI application. `hosts` are the names it may be called by, None for any."""

    def __init__(
        self,
        app: Any,
        body: int,
        token: str | None,
        hosts: Collection[str] | None,
        metrics: Metrics,
    ) -> None:
        self.app, self.body, self.hosts, self.metrics = app, body, hosts, metrics
        self.token = None if token is None else token.encode()

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began = time.perf_counter()
        headers = dict(scope["headers"])
        status = 0

        async def told(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), *_own(scope["path"])]
            await send(message)

        refused = self._refused(scope["path"], headers)
        try:
            if refused is not None:
                code, message, more = refused
                answer = JSONResponse(error_body(code, message), code, headers=more)
                await answer(scope, receive, told)
            else:
                await self.app(scope, self._limited(receive), told)
        finally:
            route = getattr(scope.get("route"), "path", "other")
            self.metrics.requests.labels(route, str(status)).inc()
            took = 1000 * (time.perf_counter() - began)
            log.info("%s %s %s %.0f ms", scope["method"], route, status or "gone", took)

    def _refused(
        self, path: str, headers: dict[bytes, bytes]
    ) -> tuple[int, str, dict[str, str]] | None:
        host = headers.get(b"host", b"").decode("latin-1").rsplit(":", 1)[0].strip("[]")
        if self.hosts is not None and host not in self.hosts:
            return 421, "this server is not called by that name", {}
        if self.token is not None and path not in OPEN:
            scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
            right = hmac.compare_digest(given.strip(), self.token)
            if scheme.lower() != b"bearer" or not right:
                return 401, "a bearer token is needed", {"WWW-Authenticate": "Bearer"}
        length = headers.get(b"content-length", b"0")
        if not length.isdigit():
            return 400, "the length of the request is no number", {}
        if int(length) > self.body:
            return 413, self._too_large, {"Connection": "close"}
        return None

    @property
    def _too_large(self) -> str:
        return f"a request has {self.body >> 20} MiB at most"

    def _limited(self, receive: Receive) -> Receive:
        taken = 0

        async def limited() -> Message:
            nonlocal taken
            message = await receive()
            taken += len(message.get("body", b""))
            if taken > self.body:
                raise HTTPException(413, self._too_large)
            return message

        return limited


def _own(path: str) -> list[tuple[bytes, bytes]]:
    return [] if path == "/docs" else list(_HEADERS)
