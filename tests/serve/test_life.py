"""The server as a process: what it prints, who may start it, and how it ends."""

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
from served import PICTURES
from shell import Demo, below, refuse

from cmcr.serve.http.guard import Guard
from cmcr.serve.metrics import Metrics


def test_it_says_where_it_is_and_ends_when_all_are_answered(demo: Demo) -> None:
    """SIGTERM under eight clients: not ready first, each accepted request answered, exit 0."""
    command = [
        *(sys.executable, "-m", "cmcr", "serve", "--store", str(demo.store), "--port", "0"),
        *("--encoder", "digits-clip", "--connection", "digits", "--in", PICTURES),
        *("--workers", "1", "--drain", "1", "--json", "--no-pipeline"),
    ]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True) as server:
        assert server.stderr is not None
        assert server.stdout is not None
        try:
            line = next(line for line in server.stderr if line.startswith("ready"))
            url = re.search(r"http://\S+", line)[0]  # type: ignore[index]
            codes, ready = asyncio.run(_stopped_under_load(url, server.pid))
            children = below(server.pid)
            assert server.wait(20) == 0, server.stderr.read()
            told = json.loads(server.stdout.read())
        finally:
            server.kill()
    assert told["url"] == url
    assert told["datasets"] == [PICTURES]
    assert len(codes) > 20
    assert set(codes) == {200}
    assert ready == [200, 503]
    assert not [pid for pid in children if Path(f"/proc/{pid}").exists()]


async def _stopped_under_load(url: str, pid: int) -> tuple[list[int], list[int]]:
    codes: list[int] = []
    ready: list[int] = []

    async def ask() -> None:
        body = {"model": "digits-clip@digits", "input": ["a seven", "nine"]}
        async with httpx.AsyncClient(base_url=url, timeout=30) as client:
            while True:
                try:
                    answer = await client.post("/v1/embeddings", json=body)
                except (httpx.ConnectError, httpx.RemoteProtocolError, httpx.ReadError):
                    return  # it takes no more
                codes.append(answer.status_code)

    async def stop() -> None:
        async with httpx.AsyncClient(base_url=url, timeout=30) as client:
            ready.append((await client.get("/readyz")).status_code)
            await asyncio.sleep(0.5)
            os.kill(pid, signal.SIGTERM)
            await asyncio.sleep(0.2)
            ready.append((await client.get("/readyz")).status_code)

    await asyncio.gather(stop(), *(ask() for _ in range(8)))
    return codes, ready


def test_what_cannot_be_served_is_said_at_once(demo: Demo, tmp_path: Path) -> None:
    short = tmp_path / "token"
    short.write_text("x")
    at = ("serve", "--store", str(demo.store), "--no-pipeline")
    assert "--token-file FILE" in refuse(2, *at, "--host", "0.0.0.0")
    assert "16 letters or more" in refuse(2, *at, "--token-file", short)
    assert "cannot be read" in refuse(2, *at, "--token-file", tmp_path / "none")
    assert "no space nobody" in refuse(2, *at, "--encoder", "nobody")
    assert "no connection 'nobody'" in refuse(2, *at, "--connection", "nobody", "--port", "0",
                                              "--encoder", "digits-clip")  # fmt: skip
    assert "no such folder of media" in refuse(2, *at, "--media", tmp_path / "none")
    assert "no store" in refuse(2, "serve", "--store", tmp_path / "none", "--no-pipeline")


def test_a_port_that_is_taken(demo: Demo) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        told = refuse(2, "serve", "--store", demo.store, "--no-pipeline", "--port", port)
    assert "in use" in told


def test_only_its_own_name_is_answered_without_a_token() -> None:
    sent = []

    async def ask(host: bytes) -> None:
        async def send(message: dict) -> None:
            sent.append(message)

        async def receive() -> dict:
            return {"type": "http.request", "body": b""}

        async def app(scope: dict, receive: object, send: object) -> None:
            await send({"type": "http.response.start", "status": 200})  # type: ignore[operator]

        guard = Guard(app, 100, None, {"localhost", "::1"}, Metrics())
        scope = {"type": "http", "path": "/", "method": "GET", "headers": [(b"host", host)]}
        await guard(scope, receive, send)  # type: ignore[arg-type]

    for host in (
        b"LOCALHOST:80",
        b"[::1]:80",
        b"[::1]",
        b"evil.example",
        b"127.0.0.1.evil.example:80",
    ):
        asyncio.run(ask(host))
    codes = [one["status"] for one in sent if one["type"] == "http.response.start"]
    assert codes == [200, 200, 200, 421, 421]
