"""A server that ends well: not ready first, then every accepted request answered, then exit 0.

run(app, service, "127.0.0.1", 8765, drain=2, told=print)
"""

import asyncio
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import uvicorn

from cmcr.errors import UsageError
from cmcr.serve.service import Service

# uvloop takes one new connection of a socket each time around its loop; these are all the same one.
_AT_ONCE = 16
_LAST = 3  # seconds that answers may take beyond the deadline


def bind(host: str, port: int) -> socket.socket:
    """A socket of that address, on which nothing is taken before the server is ready.

    Raises UsageError for one that cannot be had.
    """
    bound = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((host, port))
    except OSError as error:
        bound.close()
        raise UsageError(
            f"cannot serve on {host}:{port}: {error.strerror or error}",
            fix="give another --port, 0 for any that is free",
        ) from error
    return bound


def run(
    app: Any, service: Service, bound: socket.socket, drain: float, told: Callable[[], None]
) -> None:
    """Serve until SIGINT or SIGTERM; `told` is called when the server is ready.

    Then it is not ready for `drain` seconds, in which it answers as before, and takes no more
    connections after that.
    """
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        lifespan="on",
        timeout_graceful_shutdown=round(service.limits.deadline + _LAST),
    )
    with ExitStack() as stack:
        more = [stack.enter_context(bound.dup()) for _ in range(_AT_ONCE - 1)]
        _Server(config, service, drain, told).run(sockets=[bound, *more])


class _Server(uvicorn.Server):
    def __init__(
        self, config: uvicorn.Config, service: Service, drain: float, told: Callable[[], None]
    ) -> None:
        super().__init__(config)
        self.service, self.drain, self.told = service, drain, told

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self.told()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        both = (signal.SIGINT, signal.SIGTERM)
        for number in both:
            loop.add_signal_handler(number, self._drain, loop)
        try:
            yield
        finally:
            for number in both:
                loop.remove_signal_handler(number)

    def _drain(self, loop: asyncio.AbstractEventLoop) -> None:
        if not self.service.draining:
            self.service.draining = True
            loop.call_later(self.drain, setattr, self, "should_exit", True)
        else:
            self.should_exit = True
