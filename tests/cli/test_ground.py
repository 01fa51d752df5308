"""Which recipe, store and connection a command works with, when they are named and when not."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cmcr.embeddings import Dataset, Key, open_dataset

Cmcr = Callable[..., Any]


def config(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text())["config"]


CONNECT = (
    "connect --via text --set epochs=2 --set joint_dim=8 --set validation=0"
    " --set ridge_strength=0.01"
)


# connect


def test_a_connection_of_ones_own_spaces_borrows_nothing(
    cmcr: Cmcr, own: Callable[..., Path]
) -> None:
    """Not even where a recipe connects spaces of these names."""
    store = own("S", "digits-clip", "digits-clap")
    _, said = cmcr(f"{CONNECT} --spaces digits-clip,digits-clap --train captions --store S")
    assert "connect   no recipe, store S, connection digits-clip-digits-clap\n" in said
    made = config(store / "connections/digits-clip-digits-clap")
    assert made["memory"] == []
    assert made["noise_variance"] == 0.004
    assert made["memory_temperature"] == made["bridge_temperature"] == 0.01
    assert made["batch_size"] is None


def test_no_imagenet_is_asked_for(cmcr: Cmcr, own: Callable[..., Path]) -> None:
    store = own("S")
    memory = "--memory photos --memory sounds"
    cmcr(f"{CONNECT} --spaces clip,clap --train captions {memory} --store S --name mine")
    assert config(store / "connections/mine")["memory"] == ["photos", "sounds"]


def test_a_foreign_store_does_not_take_the_recipe_and_what_is_missing_is_said(
    cmcr: Cmcr, own: Callable[..., Path]
) -> None:
    own("S")
    document, _ = cmcr("connect --via text --store S", code=2)
    assert "no --spaces, no --train" in document["error"]["what"]
    assert "clip/text:captions" in document["error"]["fix"]


def test_a_recipe_that_is_named_counts_in_any_store(cmcr: Cmcr, own: Callable[..., Path]) -> None:
    own("S")
    document, _ = cmcr("connect --via text --store S --pipeline digits", code=2)
    assert "no dataset digits-clip/text:phrases" in document["error"]["what"]
    document, _ = cmcr(f"{CONNECT} --store S --pipeline digits --spaces clip,clap", code=2)
    assert "--train" in document["error"]["what"]  # the recipe does not connect these


@pytest.mark.parametrize("wanted", ["--memory none", "--memory none --no-pipeline"])
def test_a_memory_of_nothing(cmcr: Cmcr, own: Callable[..., Path], wanted: str) -> None:
    store = own("S")
    recipe(store, "S")
    flags = "--spaces clip,clap --train captions" if "--no" in wanted else ""
    document, said = cmcr(f"{CONNECT} {flags} {wanted} --store S")
    assert config(Path(document["connection"]))["memory"] == []
    assert ("no recipe" in said) == ("--no-pipeline" in wanted)
    document, _ = cmcr(f"{CONNECT} --memory none --memory photos --store S", code=2)
    assert "none" in document["error"]["what"]


def test_flags_within_the_recipe_beat_it_and_those_beyond_it_leave_it(
    cmcr: Cmcr, own: Callable[..., Path]
) -> None:
    store = own("S")
    recipe(store, "elsewhere")
    first, said = cmcr(f"{CONNECT} --store S --seed 3")
    assert "recipe mine, store S, connection mine" in said
    assert config(Path(first["connection"]))["noise_variance"] == 0.5
    _, said = cmcr(f"{CONNECT} --spaces clip,clap --train sounds --store S", code=2)
    assert "no recipe" in said


def test_the_two_flags_about_recipes_exclude_each_other(cmcr: Cmcr) -> None:
    for command in ("connect", "evaluate retrieval", "evaluate zero-shot", "project",
                    "extract --encoder clip"):  # fmt: skip
        document, _ = cmcr(f"{command} --pipeline digits --no-pipeline", code=2)
        assert "--no-pipeline" in document["error"]["what"]


def recipe(store: Path, where: str) -> None:
    """A recipe for the made-up store, in the working directory."""
    (store.parent / "pipelines.yaml").write_text(f"""\
default: mine
pipelines:
  mine:
    description: made up
    store: {where}
    extract:
      - encoder: clip
        sources: [{{modality: image, where: photos, dataset: photos}}]
    connect:
      {{name: mine, via: text, spaces: [clip, clap], train: [captions],
       memory: [photos, sounds], noise_variance: 0.5}}
    evaluate:
      retrieval: [{{query: "clap/audio:sounds", gallery: "clip/image:photos"}}]
""")


# extract


def test_own_media_go_to_a_store_of_ones_own(cmcr: Cmcr, tmp_path: Path) -> None:
    (tmp_path / "lines.txt").write_text("one\ntwo\nthree\n")
    document, said = cmcr("extract --encoder digits-clip --source text=lines.txt")
    assert document["store"] == "store"
    assert said.startswith("extract   no recipe, store store\n")
    assert open_dataset(tmp_path / "store", Key("digits-clip", "text", "lines")).rows == 3
    assert not (tmp_path / "stores").exists()
    named = "extract --encoder digits-clip --source text=lines.txt --pipeline digits"
    assert cmcr(named)[0]["store"] == "stores/digits"


# evaluate and project


def test_the_only_connection_and_the_only_datasets_need_no_name(
    cmcr: Cmcr, own: Callable[..., Path]
) -> None:
    own("S")
    cmcr(f"{CONNECT} --spaces clip,clap --train captions --store S --name mine")
    document, said = cmcr("evaluate retrieval --store S")
    assert said.startswith("evaluate  no recipe, store S, connection mine\n")
    pair = {"clip/image:photos", "clap/audio:sounds"}
    assert all({row["query"], row["gallery"]} == pair for row in document["results"])
    assert cmcr("evaluate gap --store S --query clap/audio")[0]["results"]
    document, said = cmcr("project --store S")
    assert said.startswith("project   no recipe, store S, connection mine\n")
    assert "mine/audio:sounds" in [line["dataset"] for line in document["datasets"]]


def test_of_several_connections_the_recipes_counts_else_one_must_be_named(
    cmcr: Cmcr, own: Callable[..., Path]
) -> None:
    store = own("S")
    spaces = "--spaces clip,clap --train captions --store S"
    for name in ("mine", "other"):
        cmcr(f"connect --via text --method procrustes {spaces} --name {name}")
    for command in ("evaluate retrieval", "evaluate gap", "project"):
        document, _ = cmcr(f"{command} --store S", code=2)
        assert "mine, other" in document["error"]["fix"]
    recipe(store, "S")
    assert "recipe mine, store S, connection mine\n" in cmcr("evaluate retrieval --store S")[1]
    assert "recipe mine, store S, connection mine\n" in cmcr("evaluate retrieval")[1]
    said = cmcr("evaluate retrieval --connection other")[1]
    assert "recipe mine, store S, connection other\n" in said


def test_where_datasets_are_several_one_must_be_named(
    cmcr: Cmcr, own: Callable[..., Path], make_dataset: Callable[..., Dataset]
) -> None:
    store = own("S")
    cmcr("connect --via text --method procrustes --spaces clip,clap --train captions --store S")
    for name in ("more", "most"):
        make_dataset(f"clap/audio:{name}", np.eye(16, dtype=np.float32), store)
    document, _ = cmcr("evaluate retrieval --store S", code=2)
    assert "give --query" in document["error"]["fix"]
    assert "clap/audio:more" in document["error"]["fix"]
    assert cmcr("evaluate retrieval --store S --query clap/audio:sounds")[0]["results"]


# names that are misspelt


def test_one_space_and_a_modality_that_there_is_not_are_told_plainly(
    cmcr: Cmcr, own: Callable[..., Path]
) -> None:
    own("S")
    document, _ = cmcr("connect --via text --spaces clip --train captions --store S", code=2)
    assert document["error"]["what"] == "clip alone cannot be connected"
    document, _ = cmcr("extract --encoder clip --source images=photos", code=2)
    assert document["error"]["what"] == "clip takes no images"
    assert document["error"]["fix"].startswith("did you mean image?")


@pytest.mark.parametrize(
    ("line", "meant"),
    [
        ("evaluate retrieval --store S --connection mnie", "mine"),
        ("evaluate zero-shot --store S --connection mnie --query clap/audio --gallery clip/text",
         "mine"),
        ("evaluate retrieval --store S --query clap/audio:sonds", "clap/audio:sounds"),
        ("evaluate retrieval --store S --query clpa/audio:sounds", "clap/audio:sounds"),
        ("evaluate retrieval --pipeline digts", "digits"),
        ("project --store S --connection mnie", "mine"),
        ("project --store S --dataset clap/audio:sonds", "clap/audio:sounds"),
        ("report S --connection mnie", "mine"),
        ("connect --via txt --spaces clip,clap --train captions --store S", "clip/text:captions"),
        ("connect --via text --spaces clip,clap --train captoins --store S", "clip/text:captions"),
        ("connect --via text --spaces clpi,clap --train captions --store S", "clip/text:captions"),
        ("connect --via text --spaces clip,clap --train captions --memory photso --store S",
         "photos"),
        ("extract --encoder digits-clpi", "digits-clip"),
        ("run digts", "digits"),
        ("extract --encoder digits-clip --source txt=x.txt --store S", "text"),
    ],
)  # fmt: skip
def test_a_misspelt_name_lists_those_spelt_like_it(
    cmcr: Cmcr, own: Callable[..., Path], line: str, meant: str
) -> None:
    own("S")
    cmcr("connect --via text --method procrustes --spaces clip,clap --train captions --store S"
         " --name mine")  # fmt: skip
    document, _ = cmcr(line, code=2)
    assert f"did you mean {meant}" in document["error"]["fix"]
    assert {"what", "where", "fix", "type"} == document["error"].keys()
