"""How fast `cmcr serve` embeds pictures: beside what is possible, and LitServe with the same model.

    python benchmarks/service.py                        # on this machine's CPU
    pip install litserve && python benchmarks/service.py --peer
    python benchmarks/service.py --overload 60          # twice the capacity for so many seconds

open_clip ViT-B-32 with random weights, JPEGs of 640 × 480, one a request, in base64; clients that
ask again as soon as they are answered. Clients share the cores with the server.

floor      decoding spread over the cores, then the bare `encode` of batches of 64: seconds an input
bare       one picture decoded and encoded in this process, the median
ours       `cmcr serve` in a process of its own, its defaults but for the length of the queue
peer       LitServe: the same transform and model, batches of at most 64 within 10 ms
"""

import argparse
import asyncio
import base64
import contextlib
import json
import multiprocessing
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import textwrap
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import httpx
import torch
from made_up import FILES, WEIGHTS

from cmcr.extract import extract, load_encoder, open_source
from extract import CORES, Bench, decode_only, forward, machine, prepared, timed

CLIENTS = (1, 8, 64)
BATCH = 64
PEER = """
import base64, io, sys
import litserve, open_clip, torch
from PIL import Image

class Pictures(litserve.LitAPI):
    def setup(self, device):
        self.model, _, self.transform = open_clip.create_model_and_transforms(
            "ViT-B-32", pretrained=sys.argv[1], force_quick_gelu=True, device=device)
        self.model.eval()

    def decode_request(self, request):
        return self.transform(Image.open(io.BytesIO(base64.b64decode(request["image"]))))

    def batch(self, inputs):
        return torch.stack(inputs)

    @torch.inference_mode()
    def predict(self, batch):
        return torch.nn.functional.normalize(self.model.encode_image(batch), dim=-1)

    def unbatch(self, output):
        return list(output)

    def encode_response(self, output):
        return {"embedding": output.tolist()}

if __name__ == "__main__":
    api = Pictures(max_batch_size=64, batch_timeout=0.01)
    server = litserve.LitServer(api, accelerator="cpu")
    server.run(port=int(sys.argv[2]), generate_client_file=False)
"""


class Load(NamedTuple):
    """What so many clients were answered."""

    seconds: float
    latencies: list[float]  # of each request that was answered with 200, in seconds
    codes: Counter[int]

    @property
    def rate(self) -> float:
        """Inputs answered a second."""
        return len(self.latencies) / self.seconds

    def percentile(self, share: float) -> float:
        """A latency in seconds."""
        return sorted(self.latencies)[
            min(int(share * len(self.latencies)), len(self.latencies) - 1)
        ]


def main() -> None:
    """Measure, and print Markdown."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--requests", type=int, default=512, help="of each number of clients")
    parser.add_argument("--peer", action="store_true", help="LitServe too, which is installed")
    parser.add_argument("--overload", type=float, default=0.0, metavar="SECONDS")
    options = parser.parse_args()
    print(machine("cpu"), flush=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bench = made(folder)
        pictures = [path.read_bytes() for path in sorted((folder / "image").glob("*.jpg"))]
        encoded = [base64.b64encode(picture).decode() for picture in pictures]
        floor, bare = floors(bench)
        print(f"floor {1 / floor:.1f} inputs/s; bare median {1000 * bare:.0f} ms\n")
        print("| server | clients | inputs/s | of the floor | median ms | p99 ms | answers |")
        print("|---|---:|---:|---:|---:|---:|---|", flush=True)
        bodies = [{"model": "clip", "input": {"image": one, "format": "jpg"}} for one in encoded]
        with ours(bench, folder) as url:
            capacity = table("ours", f"{url}/v1/embeddings", bodies, options.requests, floor)
            if options.overload:
                overload(f"{url}/v1/embeddings", bodies, 2 * capacity, options.overload)
        if options.peer:
            with peer(bench, folder) as url:
                asked = [{"image": one} for one in encoded]
                table("peer", f"{url}/predict", asked, options.requests, floor)


def made(folder: Path) -> Bench:
    """Weights, pictures, and a store of some of them."""
    checkpoint = WEIGHTS["clip"](folder)
    source = open_source("image", str(FILES["image"](folder / "image", 2 * BATCH)))
    encoder = load_encoder("clip", checkpoint=checkpoint)
    extract(folder / "store", encoder, source, "pictures", batch_size=BATCH)
    return Bench("image", source, encoder, checkpoint, BATCH)


def floors(bench: Bench) -> tuple[float, float]:
    """Seconds an input of the floor, and of one picture alone."""
    items = list(bench.source.items())
    spawn = multiprocessing.get_context("spawn")
    with spawn.Pool(CORES, torch.set_num_threads, (1,)) as pool:
        decode = partial(decode_only, bench, pool)
        decode(items)
        decoding = min(timed(decode, items) for _ in range(3)) / len(items)
    bare = forward(bench, items)
    bare(items)
    encoding = min(timed(bare, items) for _ in range(3)) / len(items)

    def one(some: Sequence[object]) -> None:
        bench.encoder.encode("image", prepared(bench, some))  # type: ignore[arg-type]

    alone = [timed(one, [item]) for item in items[:40]]
    return decoding + encoding, statistics.median(alone)


@contextlib.contextmanager
def ours(bench: Bench, folder: Path) -> Iterator[str]:
    """`cmcr serve`; gives its address."""
    command = [
        *(sys.executable, "-m", "cmcr", "serve", "--store", str(folder / "store")),
        *("--checkpoint", f"clip={bench.checkpoint}", "--no-pipeline", "--port", "0", "--json"),
    ]
    log = (folder / "ours.log").open("w")
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True) as server:
        assert server.stdout is not None
        told = ""
        for line in server.stdout:
            told += line
            with contextlib.suppress(json.JSONDecodeError):
                yield str(json.loads(told)["url"])
                break
        server.terminate()


@contextlib.contextmanager
def peer(bench: Bench, folder: Path) -> Iterator[str]:
    """LitServe; gives its address."""
    script = folder / "peer.py"
    script.write_text(textwrap.dedent(PEER))
    url = "http://127.0.0.1:8499"
    log = (folder / "peer.log").open("w")
    with subprocess.Popen(
        [sys.executable, str(script), str(bench.checkpoint), "8499"],
        stdout=log,
        stderr=log,
        start_new_session=True,
    ) as server:
        for _ in range(600):
            with contextlib.suppress(httpx.HTTPError):
                if httpx.get(f"{url}/health").status_code == 200:
                    break
            time.sleep(0.2)
        yield url
        os.killpg(server.pid, signal.SIGTERM)  # its workers do not go with it


def table(name: str, url: str, bodies: Sequence[dict], requests: int, floor: float) -> float:
    """Print a line a number of clients; gives the highest rate."""
    best = 0.0
    for clients in CLIENTS:
        asyncio.run(closed(url, bodies, clients, 2 * clients))
        load = asyncio.run(closed(url, bodies, clients, max(requests * clients // 64, 32)))
        best = max(best, load.rate)
        print(
            f"| {name} | {clients} | {load.rate:.1f} | {load.rate * floor:.2f} | "
            f"{1000 * load.percentile(0.5):.0f} | {1000 * load.percentile(0.99):.0f} | "
            f"{dict(load.codes)} |",
            flush=True,
        )
    return best


async def closed(url: str, bodies: Sequence[dict], clients: int, requests: int) -> Load:
    """So many clients that ask again as soon as they are answered."""
    left, latencies, codes = iter(range(requests)), [], Counter[int]()
    limits = httpx.Limits(max_connections=clients)
    async with httpx.AsyncClient(timeout=120, limits=limits) as client:

        async def ask() -> None:
            for number in left:
                began = time.perf_counter()
                answer = await client.post(url, json=bodies[number % len(bodies)])
                codes[answer.status_code] += 1
                if answer.status_code == 200:
                    latencies.append(time.perf_counter() - began)

        began = time.perf_counter()
        await asyncio.gather(*(ask() for _ in range(clients)))
        return Load(time.perf_counter() - began, latencies, codes)


def overload(url: str, bodies: Sequence[dict], rate: float, seconds: float) -> None:
    """Requests that come at `rate`, whatever is answered."""
    refused: list[float] = []
    served: list[float] = []
    codes: Counter[int] = Counter()

    async def offer() -> float:
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(timeout=120, limits=limits) as client:

            async def ask(number: int) -> None:
                began = time.perf_counter()
                answer = await client.post(url, json=bodies[number % len(bodies)])
                codes[answer.status_code] += 1
                took = time.perf_counter() - began
                (served if answer.status_code == 200 else refused).append(took)

            began = time.perf_counter()
            tasks = []
            while (now := time.perf_counter() - began) < seconds:
                while len(tasks) < now * rate:
                    tasks.append(asyncio.create_task(ask(len(tasks))))
                await asyncio.sleep(0.005)
            await asyncio.gather(*tasks)
            return time.perf_counter() - began

    took = asyncio.run(offer())
    late = sorted(refused)[int(0.99 * len(refused))] if refused else 0.0
    print(
        f"\ntwice the capacity, {rate:.0f} inputs/s offered for {seconds:g} s: "
        f"{len(served) / took / (rate / 2):.2f} of the capacity served, answers {dict(codes)}, "
        f"refusals p99 {1000 * late:.0f} ms",
        flush=True,
    )


if __name__ == "__main__":
    main()
