"""What stands before every route: who may ask, how much may be sent, one line a request.

Pure ASGI, so that a body that is too large is refused while it comes and an answer passes through
as it is. Nothing of what is sent is written down.
"""

import hmac
import logging
import re
import time
from collections.abc import Awaitable, Callable, Collection, MutableMapping
from typing import Any

from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from cmcr.serve.limits import Gate
from cmcr.serve.metrics import Metrics
from cmcr.serve.schemas import ServiceError, error_body

log = logging.getLogger("cmcr.serve")

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

# Without a token.
OPEN = ("/livez", "/readyz", "/", "/page.js", "/page.css", "/docs", "/docs.js", "/openapi.json")
AT_ONCE = 16  # largest requests that are held at a time
_LAST = ((b"connection", b"close"),)  # of an answer after which the client has to look elsewhere
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
        gate: Gate | None = None,
        draining: Callable[[], bool] = lambda: False,
    ) -> None:
        self.app, self.body, self.hosts, self.metrics = app, body, hosts, metrics
        self.gate, self.draining = gate, draining
        self.token = None if token is None else token.encode()
        self.held = 0  # bytes of requests in work
        self.inside = 0  # requests with inputs in work, of which each has one or more

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began = time.perf_counter()
        headers = dict(scope["headers"])
        status = taken = 0

        async def limited() -> Message:
            nonlocal taken
            message = await receive()
            size = len(message.get("body", b""))
            taken += size
            self.held += size
            if taken > self.body:
                raise HTTPException(413, self._too_large)
            if self.held > AT_ONCE * self.body:
                raise HTTPException(429, "too much is being sent", {"Retry-After": "2"})
            return message

        async def told(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                more = _LAST if self.draining() else ()
                message["headers"] = [*message.get("headers", ()), *_HEADERS, *more]
            await send(message)

        refused = self._refused(scope["path"], headers)
        posted = scope["method"] == "POST"
        full = self._full() if posted and refused is None else None
        try:
            if refused is not None:
                code, message, more = refused
                answer = JSONResponse(error_body(code, message), code, headers=more)
                await answer(scope, receive, told)
            elif full is not None:
                await _passed_over(receive, self.body)
                answer = JSONResponse(full.body(), full.status, headers=full.headers)
                await answer(scope, receive, told)
            else:
                self.inside += posted
                try:
                    await self.app(scope, limited, told)
                finally:
                    self.inside -= posted
        finally:
            self.held -= taken
            route = getattr(scope.get("route"), "path", "other")
            self.metrics.requests.labels(route, str(status)).inc()
            took = 1000 * (time.perf_counter() - began)
            log.info("%s %s %s %.0f ms", scope["method"], route, status or "gone", took)

    def _refused(
        self, path: str, headers: dict[bytes, bytes]
    ) -> tuple[int, str, dict[str, str]] | None:
        host = re.sub(r":\d+$", "", headers.get(b"host", b"").decode("latin-1").lower()).strip("[]")
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

    def _full(self) -> ServiceError | None:
        """Why not even one input is taken, which is said before anything of it is parsed."""
        if self.gate is None:
            return None
        try:
            self.gate.refuse(1 + max(self.inside - self.gate.inside, 0))
        except ServiceError as error:
            self.metrics.failures.labels(error.code).inc()
            return error
        return None

    @property
    def _too_large(self) -> str:
        return f"a request has {self.body >> 20} MiB at most"


async def _passed_over(receive: Receive, most: int) -> None:
    """The body is read and let go, so that the connection can be used again."""
    taken, more = 0, True
    while more and taken <= most:
        message = await receive()
        taken += len(message.get("body", b""))
        more = message.get("more_body", False)
