"""The main job, done once for all tests of the commands, however many processes share them."""

import json
import time

import pytest
from shell import Demo, succeed

from cmcr.files import locked, write_json


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Demo:
    """Do not write into its store: copy it."""
    base = tmp_path_factory.getbasetemp()
    folder = (base if worker_id == "master" else base.parent) / "demo"
    told = folder / "demo.json"
    with locked(folder / "lock", wait=True):
        if not told.exists():
            started = time.perf_counter()
            done = succeed("run", "digits", "--store", folder / "store", "--json")
            seconds = time.perf_counter() - started
            write_json(told, {"rows": json.loads(done.stdout)["results"], "seconds": seconds})
    content = json.loads(told.read_text(encoding="utf-8"))
    return Demo(folder / "store", content["rows"], content["seconds"])
