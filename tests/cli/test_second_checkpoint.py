"""Two checkpoints of one architecture, each in a space of its own.

pytest tests/cli/test_second_checkpoint.py
"""

import json
from pathlib import Path

import pytest
import yaml
from plugins import PLACES, Globe, install
from safetensors.torch import load_file, save_file
from shell import refuse, succeed

from cmcr import open_store
from cmcr.cli.recipes.pipelines import PipelinesFile
from cmcr.embeddings import Key, list_datasets
from cmcr.embeddings.schema import read_manifest
from cmcr.extract.digits.towers import DATA

pytestmark = pytest.mark.usefixtures("one_thread")
SHIPPED = DATA / "digits-clip.safetensors"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Forty texts, and weights that are not those that ship."""
    monkeypatch.chdir(tmp_path)
    digits = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "zero")
    ways = ("a handwritten {}", "the digit {}", "{}", "somebody says {}")
    lines = [way.format(digit) for way in ways for digit in digits]
    (tmp_path / "texts.txt").write_text("\n".join(lines))
    tensors = load_file(SHIPPED)
    tuned = {name: 0.7 * tensor for name, tensor in tensors.items()}
    save_file(tuned, tmp_path / "tuned.safetensors")
    return tmp_path


EXTRACT = ("extract", "--encoder", "digits-clip", "--source", "text=texts.txt", "--workers", "0")
TUNED = ("--checkpoint", "tuned.safetensors")


def test_a_space_of_its_own_is_migrated_to_and_searched_with_its_own_weights() -> None:
    succeed(*EXTRACT)
    for taken in ((), ("--dataset", "others")):
        said = refuse(1, *EXTRACT, *TUNED, *taken)
        assert "checkpoint" in said
        assert "--space" in said
    succeed(*EXTRACT, *TUNED, "--space", "tuned")
    assert "up to date" in succeed(*EXTRACT, *TUNED, "--space", "tuned").stderr
    keys = [Key("digits-clip", "text", "texts"), Key("tuned", "text", "texts")]
    assert list_datasets(Path("store")) == keys
    one, other = (read_manifest(key.folder(Path("store"))).encoder for key in keys)
    assert one["encoder"] == other["encoder"] == "digits-clip"
    assert one["checkpoint_sha256"] != other["checkpoint_sha256"]

    migrated = succeed(
        "migrate", "--from", "digits-clip", "--to", "tuned", "--via", "text", "--json"
    )
    (name,) = (path.name for path in Path("store/connections").iterdir())
    assert json.loads(migrated.stdout)["connection"].endswith(name)
    search = (
        "search",
        "the digit seven",
        "--space",
        "tuned",
        "--in",
        "digits-clip/text:texts",
        "--store",
        "store",
    )
    found = json.loads(succeed(*search, "--checkpoint", "tuned=tuned.safetensors", "--json").stdout)
    assert found["connection"] == name
    assert found["queries"][0]["results"][0]["text"] == "the digit seven"
    assert "another checkpoint" in refuse(1, *search)  # those that ship
    assert "another checkpoint" in refuse(1, *search, "--checkpoint", f"tuned={SHIPPED}")
    succeed("project", "--connection", name)
    lines = json.loads(succeed("info", "store", "--json").stdout)["datasets"]
    assert {line["encoder"] for line in lines if line["space"] == "tuned"} == {"digits-clip"}
    assert "tuned/text:texts" in succeed("verify", "store").stderr


RECIPE = """
default: two
pipelines:
  two:
    description: two checkpoints
    store: S
    extract:
      - encoder: digits-clip
        sources: [{modality: text, where: texts.txt, dataset: texts}]
      - encoder: digits-clip
        space: tuned
        checkpoint: tuned.safetensors
        sources: [{modality: text, where: texts.txt, dataset: texts}]
    connect: {name: both, spaces: [tuned, digits-clip], via: text, train: [texts], method: ridge}
"""


def test_a_recipe_has_both_and_its_weights_are_found() -> None:
    Path("pipelines.yaml").write_text(RECIPE)
    for name in ("tuned", "digits-clip"):
        succeed("extract", "--encoder", "digits-clip", "--space", name, "--workers", "0")
    assert list_datasets(Path("S")) == [
        Key("digits-clip", "text", "texts"), Key("tuned", "text", "texts"),
    ]  # fmt: skip
    succeed("connect", "--via", "text")
    search = ("search", "seven", "--space", "tuned", "--in", "digits-clip/text:texts", "-k", "3")
    found = json.loads(succeed(*search, "--json").stdout)
    assert found["connection"] == "both"
    assert any(hit["text"] == "seven" for hit in found["queries"][0]["results"])


def test_weights_are_given_by_the_space_where_an_encoder_has_several() -> None:
    recipe = PipelinesFile.model_validate(yaml.safe_load(RECIPE)).pipelines["two"]
    for name, place in (("digits-clip", 0), ("tuned", 1)):
        given = recipe.with_checkpoints([f"{name}={SHIPPED}"]).extract
        assert [one.checkpoint == SHIPPED for one in given] == [place == 0, place == 1]
    named = RECIPE.replace("sources:", "space: usual\n        sources:", 1)
    Path("pipelines.yaml").write_text(named)
    said = refuse(2, "run", "--checkpoint", f"digits-clip={SHIPPED}")
    assert "2 spaces of digits-clip" in said
    assert "tuned or usual" in said


def test_an_encoder_whose_fingerprint_does_not_name_it_is_found_too(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(folder / "site", monkeypatch)
    said = {"checkpoint_sha256": "0" * 64, "preprocessing": "plain"}
    monkeypatch.setattr(Globe, "fingerprint", lambda self: said)
    (folder / "places.txt").write_text("\n".join(PLACES))
    for space in ((), ("--space", "earth")):
        succeed(
            "extract", "--encoder", "globe", "--source", "gps=places.txt", "--workers", "0", *space
        )
    for name in ("globe", "earth"):
        answer = open_store("store").search(
            PLACES[1], places=[f"{name}/gps:places"], modality="gps"
        )
        assert answer.found[0].hits[0].item["text"] == PLACES[1]
