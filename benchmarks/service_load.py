"""What `cmcr serve` does under load, and with clients that break what they send or go away.

    python benchmarks/service_load.py                              # each part, small: two minutes
    python benchmarks/service_load.py nothing --seconds 20         # and --peer, LitServe installed
    python benchmarks/service_load.py overload --seconds 60
    python benchmarks/service_load.py broken --requests 2000
    python benchmarks/service_load.py memory --requests 10000
    python benchmarks/service_load.py dropped --requests 2000
    python benchmarks/service_load.py stop --rounds 20

Clients share the cores with the server. Ends with 1 where something that is promised did not hold.

nothing    texts through an encoder that does nothing, 64 clients that ask again as soon as they
           are answered; how slow the slowest hundredth is, and what the server takes when idle
overload   twice as many requests as 64 clients get answered, whatever is answered
broken     one picture or sound of ten has bytes changed or cut off; all others have to be right
memory     resident memory of all its processes, compared with what it was after a tenth
dropped    connections that end before they are answered: at once, halfway through, a while later
stop       SIGTERM under 64 clients; each line of its log has to be an answer that somebody got

All but the first are of the digits world; `--store` takes one that is there, else it is made.
"""

import argparse
import asyncio
import base64
import contextlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np

from cmcr.embeddings import Key, open_dataset

CLIENTS = 64
MOST = {"broken": 0.99999, "store": 0.9999}  # the least cosines
MIB = 1 << 20
PICTURES, SOUNDS = "digits-clip/image:handwriting-test", "digits-clap/audio:speech-test"
NOTHING = """
import torch
from cmcr.extract.encoders.registry import EncoderSpec

class Nothing:
    name, modalities, dim = "nothing", frozenset(["text"]), 16
    device = torch.device("cpu")

    def fingerprint(self):
        return {"checkpoint_sha256": "0" * 64, "preprocessing": "nothing"}

    def preprocess(self, modality, item):
        return torch.ones(16)

    def encode(self, modality, batch):
        return batch / 4

def load(*, variant, checkpoint, device):
    return Nothing()

SPEC = EncoderSpec(load, ("text",), 16, "none", lambda: True)
"""
PEER = """
import sys
import litserve, torch

class Nothing(litserve.LitAPI):
    def setup(self, device):
        pass

    def decode_request(self, request):
        assert isinstance(request["input"], str)
        return torch.ones(16)

    def batch(self, inputs):
        return torch.stack(inputs)

    def predict(self, batch):
        return batch / 4

    def unbatch(self, output):
        return list(output)

    def encode_response(self, output):
        return {"embedding": output.tolist()}

if __name__ == "__main__":
    api = Nothing(max_batch_size=64, batch_timeout=0.001)
    server = litserve.LitServer(api, accelerator="cpu")
    server.run(port=int(sys.argv[1]), generate_client_file=False, log_level="warning")
"""


class Failed(Exception):  # noqa: N818
    """Something that is promised did not hold."""


def main() -> None:
    """Measure what is asked for, and print a line each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}")
    parser.add_argument("--requests", type=int, default=400)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--store", type=Path, help="of `cmcr run digits`; it is only read")
    parser.add_argument("--peer", action="store_true", help="LitServe too, which is installed")
    options = parser.parse_args()
    failed = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for part in options.parts or PARTS:
            try:
                print(f"{part:9} {PARTS[part](options, folder)}", flush=True)
            except Failed as error:
                failed += 1
                print(f"{part:9} FAILED: {error}", flush=True)
    sys.exit(bool(failed))


# A server, and clients of it


class Server(NamedTuple):
    """`cmcr serve` as a process."""

    port: int
    process: subprocess.Popen
    log: Path

    def resident(self) -> int:
        """Bytes of all its processes, pages that they share counted for each."""
        pages = 0
        for pid in family(self.process.pid):
            with contextlib.suppress(OSError):
                pages += int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    def seconds(self) -> float:
        """CPU time that all its processes have taken."""
        ticks = 0
        for pid in family(self.process.pid):
            with contextlib.suppress(OSError):
                told = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                ticks += int(told[11]) + int(told[12])
        return ticks / os.sysconf("SC_CLK_TCK")


def family(pid: int) -> list[int]:
    """A process and all below it."""
    parents = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            told = (folder / "stat").read_text().rpartition(")")[2].split()
            parents[int(folder.name)] = int(told[1])
    found = [pid]
    for one in found:
        found += [child for child, parent in parents.items() if parent == one]
    return found


@contextlib.contextmanager
def serving(
    store: Path, *options: str, temporary: Path, environment: Mapping[str, str] | None = None
) -> Iterator[Server]:
    """A server of a store that is ready; its temporary files would lie in `temporary`."""
    command = [sys.executable, "-m", "cmcr", "serve", "--store", str(store), "--port", "0",
               "--json", "--no-pipeline", "--drain", "0.5", *options]  # fmt: skip
    temporary.mkdir(exist_ok=True)
    log = temporary.with_suffix(".log")
    added = {"TMPDIR": str(temporary), **(environment or {})}
    with (
        log.open("w") as errors,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True,
                         env=os.environ | added) as process,
    ):  # fmt: skip
        assert process.stdout is not None
        told = ""
        try:
            for line in process.stdout:
                told += line
                with contextlib.suppress(json.JSONDecodeError):
                    url = str(json.loads(told)["url"])
                    yield Server(int(url.rpartition(":")[2]), process, log)
                    break
            else:
                raise Failed(f"the server did not start: {log.read_text()[-2000:]}")
        finally:
            process.terminate()


class Link:
    """One connection that is kept: HTTP as far as it is needed here, and cheap."""

    def __init__(self, port: int) -> None:
        self.port = port
        self._pair: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *about: object) -> None:
        self.close()

    def close(self) -> None:
        """End it; the next request makes another."""
        if self._pair is not None:
            self._pair[1].close()
            self._pair = None

    async def connected(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Its two ends. Raises OSError where nobody listens."""
        if self._pair is not None and self._pair[0].at_eof():  # closed where nothing was asked
            self.close()
        if self._pair is None:
            self._pair = await asyncio.open_connection("127.0.0.1", self.port, limit=1 << 24)
        return self._pair

    async def ask(self, path: str, body: bytes | None = None) -> tuple[int, bytes]:
        """Status and content. Raises OSError or EOFError where the connection ends before."""
        reader, writer = await self.connected()
        try:
            writer.write(request(path, body))
            head = await reader.readuntil(b"\r\n\r\n")
            headers = head.lower()
            content = await reader.readexactly(
                int(headers.partition(b"content-length:")[2].partition(b"\r\n")[0])
            )
        except BaseException:
            self.close()
            raise
        if b"\r\nconnection: close" in headers:
            self.close()
        return int(head.split(b" ", 2)[1]), content


def request(path: str, body: bytes | None) -> bytes:
    """The bytes of a request."""
    if body is None:
        return f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode()
    head = (
        f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


class Load(NamedTuple):
    """What clients were answered, and when."""

    seconds: float
    latencies: list[float]  # of those with 200
    codes: Counter[int]

    @property
    def rate(self) -> float:
        """Answered with 200, a second."""
        return len(self.latencies) / self.seconds


Answered = Callable[[int, int, bytes], None]  # the number of a request, its status, its content


async def closed(
    port: int,
    bodies: Sequence[bytes],
    numbers: Iterator[int],
    answered: Answered | None = None,
    path: str = "/v1/embeddings",
    clients: int = CLIENTS,
) -> Load:
    """Clients that ask again as soon as they are answered; request N has body N."""
    latencies, codes = [], Counter[int]()

    async def client() -> None:
        async with Link(port) as link:
            for number in numbers:
                began = time.perf_counter()
                status, content = await link.ask(path, bodies[number % len(bodies)])
                codes[status] += 1
                if status == 200:
                    latencies.append(time.perf_counter() - began)
                if answered is not None:
                    answered(number, status, content)

    began = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(clients)))
    return Load(time.perf_counter() - began, latencies, codes)


def until(seconds: float) -> Iterator[int]:
    """Numbers of requests for so long."""
    end, number = time.perf_counter() + seconds, 0
    while time.perf_counter() < end:
        yield number
        number += 1


def percentile(values: Sequence[float], share: float) -> float:
    """0 where there are none."""
    return sorted(values)[min(int(share * len(values)), len(values) - 1)] if values else 0.0


def fetched(port: int, *paths: str) -> list[bytes]:
    """What GET gives."""

    async def fetch() -> list[bytes]:
        async with Link(port) as link:
            return [(await link.ask(path))[1] for path in paths]

    return asyncio.run(fetch())


# What is sent


def digits(options: argparse.Namespace, folder: Path) -> Path:
    """The store of the digits world."""
    if options.store is not None:
        return Path(options.store)
    store = folder / "digits"
    if not store.exists():
        command = [sys.executable, "-m", "cmcr", "run", "digits", "--store", str(store)]
        subprocess.run(command, check=True, capture_output=True)
    return store


class Sent(NamedTuple):
    """Requests, and the vectors that answer them."""

    bodies: list[bytes]
    vectors: np.ndarray


def packed(model: str, given: Any) -> bytes:
    """The body of a request with one input."""
    return json.dumps({"model": model, "input": given}).encode()


def vector(content: bytes) -> np.ndarray:
    """Of the answer to a request with one input, of unit length."""
    found = np.array(json.loads(content)["data"][0]["embedding"], np.float32)
    return np.asarray(found / np.linalg.norm(found))


def good(store: Path, port: int, each: int = 40) -> Sent:
    """Pictures, sounds and words, with what they are answered alone, which the store has too."""
    words = [f"a {word}" for word in ("zero", "one", "two", "three", "four", "five", "six")]
    bodies, there = [], []
    for place, model, modality, suffix in ((PICTURES, "digits-clip", "image", "png"),
                                           (SOUNDS, "digits-clap", "audio", "wav")):  # fmt: skip
        media = fetched(port, *(f"/v1/media/{place}/{row}" for row in range(each)))
        for content in media:
            given = {modality: base64.b64encode(content).decode(), "format": suffix}
            bodies.append(packed(model, given))
        there.append(open_dataset(store, Key.parse(place)).embeddings()[:each].astype(np.float32))
    bodies += [packed("digits-clap@digits", word) for word in words]
    vectors = np.zeros((len(bodies), 64), np.float32)

    def keep(number: int, status: int, content: bytes) -> None:
        vectors[number] = vector(content)

    asyncio.run(closed(port, bodies, iter(range(len(bodies))), keep, clients=1))
    stored = np.concatenate(there)
    stored /= np.linalg.norm(stored, axis=1, keepdims=True)
    least = float((vectors[: len(stored)] * stored).sum(axis=1).min())
    if least < MOST["store"]:
        raise Failed(f"a vector is not the store's: cosine {least:.6f}")
    return Sent(bodies, vectors)


def spoilt(body: bytes, chance: random.Random) -> bytes:
    """The same request with its media cut short, or some bytes of them changed."""
    asked = json.loads(body)
    ((modality, encoded),) = [(key, of) for key, of in asked["input"].items() if key != "format"]
    content = bytearray(base64.b64decode(encoded))
    if chance.random() < 0.5:
        del content[chance.randrange(len(content)) :]
    for _ in range(chance.choice([0, 1, 8, 64])):
        if content:
            content[chance.randrange(len(content))] = chance.randrange(256)
    asked["input"][modality] = base64.b64encode(content).decode()
    return json.dumps(asked).encode()


# The parts


def nothing(options: argparse.Namespace, folder: Path) -> str:
    """An encoder that does nothing."""
    package, store = folder / "package", folder / "nothing"
    about = package / "nothing-1.dist-info"
    about.mkdir(parents=True)
    (package / "nothing.py").write_text(NOTHING)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: nothing\nVersion: 1\n")
    (about / "entry_points.txt").write_text("[cmcr.encoders]\nnothing = nothing:SPEC\n")
    environment = {"PYTHONPATH": str(package)}
    (folder / "words.txt").write_text("one\ntwo\n")
    command = [sys.executable, "-m", "cmcr", "extract", "--encoder", "nothing", "--source",
               f"text={folder / 'words.txt'}", "--store", str(store), "--no-pipeline"]  # fmt: skip
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True)
    if done.returncode:
        raise Failed(done.stderr)
    bodies = [packed("nothing", f"a text, number {number}") for number in range(1000)]
    with serving(store, temporary=folder / "t", environment=environment) as server:
        asyncio.run(closed(server.port, bodies, until(2)))
        load = asyncio.run(closed(server.port, bodies, until(options.seconds)))
        took = server.seconds()
        time.sleep(options.seconds)
        idle = (server.seconds() - took) / options.seconds
    late = percentile(load.latencies, 0.99) / (CLIENTS / load.rate)
    told = (
        f"{load.rate:.0f} requests/s at {CLIENTS} clients, median "
        f"{1000 * percentile(load.latencies, 0.5):.0f} ms, p99 "
        f"{late:.2f} of clients/rate, {dict(load.codes)}; idle {100 * idle:.1f} % of a core"
    )
    if options.peer:
        peer = litserve(options, folder)
        told += f"; LitServe {peer.rate:.0f}, {dict(peer.codes)}: {load.rate / peer.rate:.2f} times"
    if set(load.codes) != {200}:
        raise Failed(told)
    return told


def litserve(options: argparse.Namespace, folder: Path) -> Load:
    """The same function served by LitServe."""
    from importlib.metadata import version

    print(f"          LitServe {version('litserve')}", flush=True)
    script, port = folder / "peer.py", 8498
    script.write_text(PEER)
    bodies = [json.dumps({"input": f"a text, number {number}"}).encode() for number in range(1000)]
    with (folder / "peer.log").open("w") as log, subprocess.Popen(
        [sys.executable, str(script), str(port)], stdout=log, stderr=log, start_new_session=True
    ) as process:  # fmt: skip
        try:
            for _ in range(300):
                time.sleep(0.2)
                with contextlib.suppress(OSError, EOFError):
                    if fetched(port, "/health") == [b"ok"]:
                        break
            asyncio.run(closed(port, bodies, until(2), path="/predict"))
            return asyncio.run(closed(port, bodies, until(options.seconds), path="/predict"))
        finally:
            os.killpg(process.pid, signal.SIGTERM)  # its workers do not go with it


def overload(options: argparse.Namespace, folder: Path) -> str:
    """Requests that come at twice the rate at which they can be answered."""
    store = digits(options, folder)
    with serving(store, temporary=folder / "t") as server:
        sent = good(store, server.port)
        asyncio.run(closed(server.port, sent.bodies, until(2)))
        capacity = asyncio.run(closed(server.port, sent.bodies, until(5))).rate
        load, refused = asyncio.run(
            offered(server.port, sent.bodies, 2 * capacity, options.seconds)
        )
    late = percentile(refused, 0.99)
    share = load.rate / capacity
    told = (
        f"{2 * capacity:.0f} requests/s offered for {options.seconds:g} s: {share:.2f} of the "
        f"capacity served, slowest {max(load.latencies):.2f} s, answers {dict(load.codes)}, "
        f"refusals p99 {1000 * late:.0f} ms"
    )
    if share < 0.9 or late > 0.1 or set(load.codes) - {200, 429}:
        raise Failed(told)
    return told


async def offered(
    port: int, bodies: Sequence[bytes], rate: float, seconds: float
) -> tuple[Load, list[float]]:
    """Requests that come at `rate`; what was answered, and the seconds of refusals."""
    latencies, refused, codes = [], [], Counter[int]()
    idle: list[Link] = []
    tasks = []

    async def ask(number: int) -> None:
        link = idle.pop() if idle else Link(port)
        began = time.perf_counter()
        status, _ = await link.ask("/v1/embeddings", bodies[number % len(bodies)])
        codes[status] += 1
        (latencies if status == 200 else refused).append(time.perf_counter() - began)
        idle.append(link)

    began = time.perf_counter()
    while (now := time.perf_counter() - began) < seconds:
        tasks += [asyncio.create_task(ask(number)) for number in range(len(tasks), int(now * rate))]
        await asyncio.sleep(0.005)
    await asyncio.gather(*tasks)
    took = time.perf_counter() - began
    for link in idle:
        link.close()
    return Load(took, latencies, codes), refused


def broken(options: argparse.Namespace, folder: Path) -> str:
    """One input of ten is spoilt."""
    store = digits(options, folder)
    chance = random.Random(0)
    least, wrong, codes = 1.0, 0, Counter[int]()
    with serving(store, temporary=folder / "t") as server:
        sent = good(store, server.port)
        bodies = [sent.bodies[number % len(sent.bodies)] for number in range(options.requests)]
        bad = {
            number
            for number in range(options.requests)
            if number % 10 == 9 and b"@digits" not in bodies[number]
        }
        for number in bad:
            bodies[number] = spoilt(bodies[number], chance)
        seen = Counter[int]()

        def check(number: int, status: int, content: bytes) -> None:
            nonlocal least, wrong
            seen[number] += 1
            if number in bad:
                codes[status] += 1
            elif status == 200:
                right = sent.vectors[number % len(sent.bodies)]
                least = min(least, float(vector(content) @ right))
            else:
                wrong += 1

        load = asyncio.run(closed(server.port, bodies, iter(range(options.requests)), check))
    told = (
        f"{options.requests} requests, {len(bad)} of them broken, which were answered "
        f"{dict(sorted(codes.items()))}; the others {wrong} times not with 200, and with a cosine "
        f"of {least:.7f} or more to what they are alone"
    )
    if (
        seen != Counter(range(options.requests))
        or wrong
        or least < MOST["broken"]
        or any(code >= 500 for code in load.codes)
    ):
        raise Failed(told)
    return told


def memory(options: argparse.Namespace, folder: Path) -> str:
    """Whether it grows."""
    store = digits(options, folder)
    with serving(store, temporary=folder / "t") as server:
        sent = good(store, server.port)
        first = options.requests // 10
        sizes = []
        numbers = iter(range(options.requests))
        for count in (first, options.requests - first):
            some = (number for number, _ in zip(numbers, range(count), strict=False))
            load = asyncio.run(closed(server.port, sent.bodies, some))
            sizes.append(server.resident())
    more = (sizes[1] - sizes[0]) / MIB
    told = (
        f"{sizes[0] / MIB:.0f} MiB after {first} requests, {more:+.1f} MiB after "
        f"{options.requests}, {load.rate:.0f} requests/s"
    )
    if more > 32 or set(load.codes) != {200}:
        raise Failed(told)
    return told


def dropped(options: argparse.Namespace, folder: Path) -> str:
    """Clients that go away, beside some that stay."""
    store, temporary = digits(options, folder), folder / "dropped"
    chance = random.Random(0)
    with serving(store, temporary=temporary) as server:
        sent = good(store, server.port)
        before = files(server)
        numbers = iter(range(options.requests))

        async def drop() -> None:
            for number in numbers:
                content = request("/v1/embeddings", sent.bodies[number % len(sent.bodies)])
                if number % 4 == 0:  # while it is being sent
                    content = content[: chance.randrange(1, len(content))]
                link = Link(server.port)
                _, writer = await link.connected()
                writer.write(content)
                await writer.drain()
                await asyncio.sleep(chance.choice([0, 0.001, 0.02]))
                if number % 3 == 0:
                    writer.transport.abort()
                link.close()

        async def all_of_them() -> None:
            await asyncio.gather(*(drop() for _ in range(CLIENTS)))

        asyncio.run(all_of_them())
        time.sleep(1)
        load = asyncio.run(closed(server.port, sent.bodies, iter(range(100)), clients=8))
        gauges = waiting(fetched(server.port, "/metrics")[0])
        left = [str(path) for path in temporary.rglob("*")]
        after = files(server)
    told = (
        f"{options.requests} connections: gauges {gauges}, temporary files {len(left)}, open files "
        f"{before} before and {after} after; 100 requests after that {dict(load.codes)}"
    )
    if any(gauges.values()) or left or after > before + 8 or set(load.codes) != {200}:
        raise Failed(told)
    return told


def waiting(metrics: bytes) -> dict[str, float]:
    """The gauges of the server, by name."""
    text = metrics.decode()
    return {
        name: float(value)
        for name in re.findall(r"^# TYPE (\S+) gauge$", text, re.MULTILINE)
        if not name.endswith("_created")
        for value in re.findall(rf"^{name}(?:{{.*}})? (\S+)$", text, re.MULTILINE)
    }


def files(server: Server) -> int:
    """How many files and sockets its processes have open."""
    return sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in family(server.process.pid))


def stop(options: argparse.Namespace, folder: Path) -> str:
    """SIGTERM under load."""
    store = digits(options, folder)
    longest, answers, cut = 0.0, 0, 0
    for number in range(options.rounds):
        chance = random.Random(number)
        with serving(store, temporary=folder / "stop") as server:
            sent = good(store, server.port, each=8)
            time.sleep(0.5)  # a line comes after its answer
            before = server.log.read_text().count("/v1/embeddings")
            codes, ended = asyncio.run(stopped(server, sent, chance.uniform(0.2, 1.0)))
            began = time.monotonic()
            code = server.process.wait(30)
            took = time.monotonic() - ended if ended else time.monotonic() - began
        logged = server.log.read_text()
        lines = re.findall(r"POST /v1/embeddings (\S+) ", logged)[before:]
        answers += codes.total() - codes[0]
        cut += codes[0]
        longest = max(longest, took)
        said = f"round {number}: exit {code} in {took:.1f} s, log {Counter(lines)}, {dict(codes)}"
        if code or took > 10 or Counter(lines) != Counter({"200": codes[200]}) or codes[-1]:
            raise Failed(said)
    return (
        f"{options.rounds} rounds: {answers} requests accepted, each answered with 200 once; "
        f"{cut} connections were closed before a request was taken from them; "
        f"exit 0 within {longest:.1f} s"
    )


async def stopped(server: Server, sent: Sent, after: float) -> tuple[Counter[int], float]:
    """Statuses, 0 for a connection that was closed, -1 for a wrong answer; when it was told."""
    codes: Counter[int] = Counter()
    numbers = iter(range(1 << 30))

    async def client() -> None:
        async with Link(server.port) as link:
            for number in numbers:
                place = number % len(sent.bodies)
                try:
                    status, content = await link.ask("/v1/embeddings", sent.bodies[place])
                except ConnectionRefusedError:
                    return
                except (OSError, EOFError):
                    codes[0] += 1
                    continue
                right = status == 200 and vector(content) @ sent.vectors[place] > MOST["broken"]
                codes[status if right else -1] += 1

    async def end() -> float:
        await asyncio.sleep(after)
        server.process.send_signal(signal.SIGTERM)
        return time.monotonic()

    told, *_ = await asyncio.gather(end(), *(client() for _ in range(CLIENTS)))
    return codes, told


PARTS = {
    "nothing": nothing,
    "overload": overload,
    "broken": broken,
    "memory": memory,
    "dropped": dropped,
    "stop": stop,
}

if __name__ == "__main__":
    main()
