"""An encoder whose preprocess does what the text says, and a script that extracts with it.

python faulty.py STORE LINES KEYWORDS-OF-EXTRACT-AS-JSON
"""

import ctypes
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cmcr.embeddings import Modality
from cmcr.errors import CmcrError
from cmcr.extract import extract, open_source
from cmcr.extract.items import Item


class Preprocess:
    """Eight numbers of a text; `hang`, `stuck`, `crash`, `killed` and `refused` are what they say.

    `once` in a text is killed only while the file that is named after it is not there.
    """

    def __call__(self, modality: Modality, item: Any) -> Tensor:
        word, _, rest = item.partition(" ")
        if word == "hang":
            time.sleep(1000)
        if word == "stuck":  # in C, with Python's lock held
            ctypes.PyDLL(None).sleep(1000)
        if word == "crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        if word == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if word == "once" and not Path(rest).exists():
            Path(rest).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if word == "refused":
            raise ValueError("refused")
        if word == "slow":
            time.sleep(0.02)
        return torch.tensor([float(byte) for byte in item.encode()[:8].ljust(8, b"x")])


class Dying(Preprocess):
    """It ends its process while it is unpickled, `times` times; `count` has a byte for each."""

    def __init__(self, count: Path, times: int) -> None:
        self.count, self.times = count, times

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        with self.count.open("ab") as file:
            file.write(b"x")
        if self.count.stat().st_size <= self.times:
            os.kill(os.getpid(), signal.SIGKILL)


class OnDeadDisk(Item):
    """An item that no process but the one named in `group` can look at."""

    __slots__ = ()

    def __getattribute__(self, name: str) -> Any:
        if name == "content" and str(os.getpid()) != super().__getattribute__("group"):
            time.sleep(1000)
        return super().__getattribute__(name)


class Faulty:
    name = "faulty"
    modalities: frozenset[Modality] = frozenset(["text"])
    dim = 8
    device = torch.device("cpu")
    preprocess = Preprocess()

    def fingerprint(self) -> Mapping[str, Any]:
        return {"encoder": self.name, "checkpoint_sha256": "0" * 64, "preprocessing": "bytes"}

    def encode(self, modality: Modality, batch: Tensor) -> Tensor:
        return torch.nn.functional.normalize(batch, dim=-1)


def main() -> None:
    store, lines, options = sys.argv[1:]
    logging.basicConfig(format="%(message)s")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    source = open_source("text", lines)
    try:
        print(extract(Path(store), Faulty(), source, "t", **json.loads(options)))  # type: ignore[arg-type]
    except CmcrError as error:
        print(error)
        sys.exit(1)


if __name__ == "__main__":
    main()
