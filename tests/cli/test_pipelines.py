"""Recipes: a bad one hinders no other, `cmcr init` writes one, and editors can check them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cmcr.cli.recipes.pipelines import load_pipelines
from cmcr.cli.recipes.schema import schema

ROOT = Path(__file__).parents[2]
Cmcr = Callable[..., Any]


@pytest.fixture
def cmcr(cmcr: Cmcr) -> Cmcr:
    """As elsewhere, but the document alone."""
    return lambda line, code=0: cmcr(line, code)[0]


def test_a_bad_recipe_hinders_no_other(cmcr: Cmcr, tmp_path: Path) -> None:
    packaged = (ROOT / "pipelines.yaml").read_text(encoding="utf-8")
    (tmp_path / "pipelines.yaml").write_text(f"{packaged}\n  broken: {{store: 3}}\n")
    lines = cmcr("pipelines")["pipelines"]
    assert [line["pipeline"] for line in lines if "problem" not in line] == [
        "digits (default)", "clip-clap", "ulip-clip",
    ]  # fmt: skip
    (bad,) = (line for line in lines if "problem" in line)
    assert bad["pipeline"] == "broken"
    told = cmcr("run broken", code=2)["error"]
    assert "extract: Field required" in told["what"]
    assert told["where"] == "pipelines.yaml, pipelines.broken"
    assert cmcr("connect --via text", code=2)["error"]["where"] == "stores/digits"  # as without it


def test_a_file_that_is_not_yaml_is_told_in_a_line(cmcr: Cmcr, tmp_path: Path) -> None:
    (tmp_path / "pipelines.yaml").write_text("pipelines:\n  a: [1\n")
    told = cmcr("pipelines", code=2)["error"]
    assert told["what"] == "the file is not YAML: expected ',' or ']', but got '<stream end>'"
    assert told["where"] == "pipelines.yaml, line 3"
    assert "--no-pipeline" in told["fix"]


def test_a_bad_default_is_not_passed_over(cmcr: Cmcr, tmp_path: Path) -> None:
    packaged = (ROOT / "pipelines.yaml").read_text(encoding="utf-8")
    (tmp_path / "pipelines.yaml").write_text(packaged.replace("store: stores/digits", "shop: 3"))
    for line in ("run", "connect --via text", "evaluate retrieval", "project"):
        assert cmcr(line, code=2)["error"]["where"] == "pipelines.yaml, pipelines.digits"


def media(folder: Path, labels: list[str]) -> None:
    """Pictures, sounds and shapes in class folders, and captions."""
    import soundfile
    from PIL import Image

    draw = np.random.default_rng(0)
    for number, label in enumerate(labels):
        for kind in ("photos", "sounds", "shapes"):
            (folder / kind / label).mkdir(parents=True, exist_ok=True)
        pixels = draw.integers(0, 255, (8, 8), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"photos/{label}/{number}.png")
        soundfile.write(folder / f"sounds/{label}/{number}.wav", draw.normal(size=8000) / 9, 8000)
        np.save(folder / f"shapes/{label}/{number}.npy", draw.normal(size=(64, 3)))
    (folder / "captions.txt").write_text("".join(f"the digit {row}\n" for row in range(40)))


def test_init_writes_a_recipe_that_runs(cmcr: Cmcr, tmp_path: Path) -> None:
    media(tmp_path, ["one", "two"] * 4)
    made = cmcr(
        "init pets --source image=photos/ --source audio=sounds/ --text captions.txt"
        " --encoder digits-clip --encoder digits-clap"
    )
    assert made["encoders"] == ["digits-clip", "digits-clap"]
    written = tmp_path / "pipelines.yaml"
    written.write_text(written.read_text().replace("method: auto", "method: procrustes"))
    rows = cmcr("run pets")["results"]
    assert {row["query"] for row in rows} >= {"digits-clap/audio:sounds"}
    assert (tmp_path / "stores/pets/connections/pets/config.json").exists()
    first = (tmp_path / "pipelines.yaml").read_text().splitlines()[0]
    assert json.loads(Path(first.rpartition("=")[2]).read_text())["title"]


def test_init_finds_what_is_there_and_overwrites_nothing(cmcr: Cmcr, tmp_path: Path) -> None:
    media(tmp_path, ["one"])
    (tmp_path / "sounds/one").rename(tmp_path / "sounds/three")  # no label in common
    (tmp_path / "notes").mkdir()
    made = cmcr("init")
    assert made["encoders"] == ["clip", "clap", "ulip"]
    recipe = load_pipelines().named("mine")
    assert recipe.connect[0].spaces == ("clip", "clap", "ulip")
    assert [pair.query for pair in recipe.evaluate.retrieval] == ["ulip/pointcloud:shapes"]
    written = (tmp_path / "pipelines.yaml").read_text()
    assert "left as it is" in cmcr("init", code=2)["error"]["what"]
    assert (tmp_path / "pipelines.yaml").read_text() == written


def test_init_says_what_is_missing(cmcr: Cmcr, tmp_path: Path) -> None:
    assert "--source" in cmcr("init", code=2)["error"]["fix"]
    media(tmp_path, ["one"])
    sources = "--source image=photos/ --source audio=sounds/"
    assert "--text" in cmcr(f"init {sources}", code=2)["error"]["fix"]
    assert not (tmp_path / "pipelines.yaml").exists()


def test_the_schema_is_the_one_that_the_code_has() -> None:
    """Made by `python -m cmcr.cli.recipes.schema > pipelines.schema.json`."""
    shipped = (ROOT / "pipelines.schema.json").read_text(encoding="utf-8")
    assert json.loads(shipped) == schema()
    first = (ROOT / "pipelines.yaml").read_text(encoding="utf-8").splitlines()[0]
    assert first == "# yaml-language-server: $schema=pipelines.schema.json"
    fields = schema()["$defs"]["ConnectSection"]["properties"]
    assert {"name", "spaces", "noise_variance"} <= fields.keys()
