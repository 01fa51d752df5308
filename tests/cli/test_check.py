"""`cmcr run` looks at all that it needs first, says what is missing, and does the rest."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from PIL import Image
from safetensors.torch import load_file, save_file

from cmcr.cli.check.costs import seconds
from cmcr.cli.check.look import look
from cmcr.cli.recipes.ground import Ground
from cmcr.cli.recipes.pipelines import load_pipelines
from cmcr.embeddings import Key, open_dataset
from cmcr.errors import EncoderError, StoreError
from cmcr.extract import load_encoder
from cmcr.extract.encoders.digits import shipped

Cmcr = Callable[..., Any]
TRUTH = {"id": "a/0.wav", "image": "a/0.png", "boxes": [[0.1, 0.1, 0.9, 0.9]]}
REGIONS = "          - {modality: image, where: photos, dataset: regions, regions: grid}\n"
LOCATED = """\
      localization:
        - {{query: "digits-clap/audio:sounds", regions: "digits-clip/image:regions",
           truth: [{}]}}
"""


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither worker processes nor drawings: they take longer than all that is tried here."""
    monkeypatch.setattr("cmcr.extract.embed.cores", lambda: 0)
    monkeypatch.setattr("cmcr.evaluate.tasks.retrieval._draw", lambda *_: [])


@pytest.fixture
def recipe(tmp_path: Path) -> Callable[..., None]:
    """Write a recipe of two encoders that ship, over pictures, sounds and texts made here.

    With `truth` it embeds and searches regions of the pictures too.
    """
    draw = np.random.default_rng(0)
    for number in range(12):
        for kind in ("photos", "more", "sounds"):
            (tmp_path / f"{kind}/{'ab'[number % 2]}").mkdir(parents=True, exist_ok=True)
        name = f"{'ab'[number % 2]}/{number}"
        pixels = draw.integers(0, 255, (8, 8), dtype=np.uint8)
        for kind in ("photos", "more"):
            Image.fromarray(pixels).save(tmp_path / f"{kind}/{name}.png")
        soundfile.write(tmp_path / f"sounds/{name}.wav", draw.normal(size=8000) / 9, 8000)
    texts = "".join(f"the digit {row}\n" for row in range(40))
    (tmp_path / "texts.txt").write_text(texts)
    (tmp_path / "truth.jsonl").write_text(json.dumps(TRUTH))

    def write(**fields: str) -> None:
        chosen = {"clip": "", "more": "more", "source": "", "regions": "", "located": ""} | fields
        if "truth" in fields:
            chosen["regions"] = REGIONS
            chosen["located"] = LOCATED.format(fields["truth"])
        (tmp_path / "pipelines.yaml").write_text(
            """\
default: own
pipelines:
  own:
    description: own media
    store: S
    extract:
      - encoder: digits-clip{clip}
        sources:
          - {{modality: text, where: texts.txt, dataset: texts}}
          - {{modality: image, where: photos, dataset: photos}}
          - {{modality: image, where: {more}, dataset: more}}
{regions}      - encoder: digits-clap
        sources:
          - {{modality: text, where: texts.txt, dataset: texts}}
          - {{modality: audio, where: sounds, dataset: sounds{source}}}
    connect: {{name: own, via: text, spaces: [digits-clip, digits-clap], train: [texts],
              memory: [photos, sounds], method: procrustes, validation: 0, ridge_strength: 0.01}}
    evaluate:
      retrieval:
        - {{query: "digits-clap/audio:sounds", gallery: "digits-clip/image:photos"}}
        - {{query: "digits-clap/audio:sounds", gallery: "digits-clip/image:more"}}
{located}""".format(**chosen)
        )

    return write


def galleries(document: dict[str, Any]) -> set[str]:
    return {place for row in document["results"] for place in (row.get("gallery"),) if place}


def files(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes())
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_a_look_says_what_is_there_and_what_it_takes_and_writes_nothing(
    cmcr: Cmcr, recipe: Callable[..., None], tmp_path: Path
) -> None:
    recipe(truth="truth.jsonl")
    document, _ = cmcr("run --check")
    assert not (tmp_path / "S").exists()
    left = {one["dataset"]: (one["state"], one["left"]) for one in document["datasets"]}
    assert left["digits-clip/image:photos"] == ("to do", 12)
    assert left["digits-clip/image:regions"] == ("to do", 12 * 84)
    assert document["items"] == 12 * 86 + 2 * 40 + 12
    assert document["bytes"] > 6 * 64 * document["items"]
    assert document["bytes_free"] > document["bytes"]
    assert "digits-clip/text:texts" in document["seconds_unknown_for"]
    assert document["missing"] == document["skipped"] == []
    recipe()
    assert cmcr("run")[0]["results"]
    document, _ = cmcr("run --check")
    assert (document["items"], document["bytes"]) == (0, 0)
    assert {one["state"] for one in document["datasets"]} == {"there"}


def test_all_that_is_missing_is_told_at_once_and_the_rest_is_done(
    cmcr: Cmcr, recipe: Callable[..., None], tmp_path: Path
) -> None:
    recipe(more="data/ave/images.csv", truth="data/vggss/vggss.json")
    told, _ = cmcr("run --check", code=3)
    fixes = {lack["where"]: lack["fix"] for lack in told["missing"]}
    assert "cmcr prepare ave --from" in fixes[str(tmp_path / "data/ave")]
    assert "AVE-ECCV18" in fixes[str(tmp_path / "data/ave")]
    assert "cmcr prepare vggss --from" in fixes[str(tmp_path / "data/vggss")]
    document, said = cmcr("run", code=3)
    assert document["missing"] == told["missing"]
    assert {(one["what"], one["name"]) for one in document["skipped"]} == {
        ("extract", "digits-clip/image:more"),
        ("evaluate retrieval", "digits-clap/audio:sounds in digits-clip/image:more"),
        ("evaluate localization", "digits-clap/audio:sounds in digits-clip/image:regions"),
    }
    assert galleries(document) == {"digits-clip/image:photos", "digits-clap/audio:sounds"}
    assert "skipped: evaluate localization" in said
    (tmp_path / "data/vggss").mkdir(parents=True)
    (tmp_path / "data/vggss/vggss.json").write_text(
        json.dumps([{"file": "a/0", "class": "x", "bbox": [[0, 0, 1, 1]]}])
    )
    assert [lack["where"] for lack in cmcr("run --check", code=3)[0]["missing"]] == [
        str(tmp_path / "data/ave")
    ]


def test_a_connection_whose_memory_is_missing_is_skipped_by_name(
    cmcr: Cmcr, recipe: Callable[..., None], tmp_path: Path
) -> None:
    recipe()
    (tmp_path / "photos").rename(tmp_path / "unmounted")
    document, _ = cmcr("run", code=3)
    why = {one["name"]: one["why"] for one in document["skipped"] if one["what"] != "extract"}
    assert why["own"] == "no digits-clip/image:photos"
    assert "no connection own" in why["digits-clap/audio:sounds in digits-clip/image:more"]
    assert document["results"] == []
    assert open_dataset(tmp_path / "S", Key("digits-clap", "audio", "sounds")).rows == 12
    (tmp_path / "unmounted").rename(tmp_path / "photos")
    assert cmcr("run")[0]["results"]


def test_what_is_finished_needs_neither_its_media_nor_its_weights(
    cmcr: Cmcr, recipe: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe()
    first = cmcr("run")[0]["results"]
    for name in ("photos", "sounds"):
        (tmp_path / name).rename(tmp_path / f"{name}-gone")
    with monkeypatch.context() as patch:
        patch.setattr("cmcr.extract.load_encoder", away)
        look, _ = cmcr("run --check")
        assert look["missing"] == look["skipped"] == []
        document, said = cmcr("run")
    assert document["results"] == first
    assert document["missing"] == document["skipped"] == []
    assert "digits-clap/audio:sounds  12 items, finished  its source is away" in said
    assert "digits-clip/image:more  12 rows  up to date" in said
    document, _ = cmcr("run --update", code=3)
    assert {one["name"] for one in document["skipped"]} == {
        "digits-clap/audio:sounds",
        "digits-clip/image:photos",
    }
    assert document["results"] == first
    Image.new("L", (8, 8)).save(tmp_path / "more/a/0.png")
    with monkeypatch.context() as patch:
        patch.setattr("cmcr.extract.load_encoder", away)
        assert "changed" in cmcr("run", code=1)[0]["error"]["what"]


def away(name: str, **_: object) -> None:
    raise EncoderError(f"no weights of {name}")


def test_only_what_is_left_loads_an_encoder_and_other_weights_are_refused(
    cmcr: Cmcr, recipe: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[str] = []

    def load(name: str, **fields: Any) -> Any:
        loaded.append(name)
        return load_encoder(name, **fields)

    monkeypatch.setattr("cmcr.extract.load_encoder", load)
    recipe()
    cmcr("run")
    assert set(loaded) == {"digits-clip", "digits-clap"}
    loaded.clear()
    shutil.rmtree(tmp_path / "S/space=digits-clap/modality=audio")
    cmcr("run")
    assert set(loaded) == {"digits-clap"}
    tensors = load_file(shipped("digits-clip"))
    save_file({name: 0.9 * one for name, one in tensors.items()}, tmp_path / "other.safetensors")
    error = cmcr("run --checkpoint digits-clip=other.safetensors", code=1)[0]["error"]
    assert "checkpoint_sha256" in error["what"]


def test_a_damaged_manifest_is_one_lack_among_the_others(
    cmcr: Cmcr, recipe: Callable[..., None], tmp_path: Path
) -> None:
    recipe()
    cmcr("run")
    folder = Key("digits-clip", "image", "more").folder(tmp_path / "S")
    (folder / "manifest.json").write_text("{")
    document, _ = cmcr("run", code=3)
    (lack,) = document["missing"]
    assert Path(lack["where"]).absolute() == folder / "manifest.json"
    assert lack["datasets"] == ["digits-clip/image:more"]
    assert galleries(document) == {"digits-clip/image:photos", "digits-clap/audio:sounds"}


def test_if_no_table_can_be_measured_the_document_says_so(
    cmcr: Cmcr, recipe: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe(more="away")

    def fails(*_: object, **__: object) -> None:
        raise StoreError("damaged")

    monkeypatch.setattr("cmcr.evaluate.evaluate_retrieval", fails)
    monkeypatch.setattr("cmcr.evaluate.evaluate_gap", fails)
    document, _ = cmcr("run", code=3)
    assert document["results"] == []
    assert [one["what"] for one in document["left_out"]] == ["damaged"] * 2
    assert document["missing"][0]["datasets"] == ["digits-clip/image:more"]


def test_a_list_whose_files_lie_nowhere_is_told_before_anything_is_embedded(
    cmcr: Cmcr, recipe: Callable[..., None], tmp_path: Path
) -> None:
    (tmp_path / "list.csv").write_text("path\n" + "".join(f"away/{n}.png\n" for n in range(20)))
    recipe(more="list.csv")
    (lack,) = cmcr("run --check", code=3)[0]["missing"]
    assert "none of the first 8 files" in lack["what"]
    assert lack["where"] == str(tmp_path / "away/0.png")


def test_a_table_that_selects_rows_which_there_are_not_is_told(
    recipe: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe()
    monkeypatch.chdir(tmp_path)
    own = load_pipelines().named("own")
    pair = own.evaluate.retrieval[0]
    here = f"uri={tmp_path}/sounds/a/0.wav"
    for rows, skipped in ((here, 0), ("text=one", 1), ("label=a", 0), ("label=c", 1)):
        chosen = pair.model_copy(update={"query_where": (rows,)})
        asked = own.evaluate.model_copy(update={"retrieval": [chosen]})
        ground = Ground("own", own.model_copy(update={"evaluate": asked}), Path("S"))
        outlook = look(ground, "cpu")
        assert len(outlook.skipped) == len(outlook.lacks) == skipped
        assert len(outlook.recipe.evaluate.retrieval) == 1 - skipped
    assert outlook.skipped[0].name.startswith("digits-clap/audio:sounds (label=c) in ")
    (lack,) = outlook.lacks
    assert lack.what == "no row of digits-clap/audio:sounds with label=c; it has label: a, b"


def test_the_rates_are_of_the_processor_and_a_gpu_has_none() -> None:
    assert seconds("clip", "image", 1450, "cpu") == pytest.approx(100)
    assert seconds("clip", "image", 1450, "cuda:0") is None
    assert seconds("clip:ViT-L-14/openai", "image", 1450, "cpu") is None


# weights


def test_doctor_names_the_tokenizers(cmcr: Cmcr) -> None:
    findings = [one["state"] for one in cmcr("doctor")[0]["findings"]]
    assert "tokenizer: roberta-base of the hub: vocab.json, merges.txt, tokenizer.json" in findings
    assert "tokenizer: CLIP's, comes with open_clip" in findings


def test_run_takes_weights_and_does_nothing_the_second_time(
    cmcr: Cmcr, recipe: Callable[..., None], tmp_path: Path
) -> None:
    recipe()
    weights = tmp_path / "copy.safetensors"
    weights.write_bytes(shipped("digits-clip").read_bytes())
    line = f"run --checkpoint digits-clip={weights}"
    first = cmcr(line)[0]
    before = files(tmp_path / "S")
    again, said = cmcr(line)
    assert again == first
    assert said.count("up to date") >= 6
    assert files(tmp_path / "S") == before


def test_weights_that_cannot_be_had_are_told_with_the_flag_and_the_field(
    cmcr: Cmcr, recipe: Callable[..., None], tmp_path: Path
) -> None:
    recipe(clip="\n        checkpoint: bad.safetensors")
    (tmp_path / "bad.safetensors").write_bytes(b"nothing")
    document, _ = cmcr("run", code=3)
    (lack,) = document["missing"]
    assert lack["what"].startswith("digits-clip: ")
    assert "--checkpoint digits-clip=FILE" in lack["fix"]
    assert "`checkpoint: FILE`" in lack["fix"]
    assert len(lack["datasets"]) == 3
    assert open_dataset(tmp_path / "S", Key("digits-clap", "audio", "sounds")).rows == 12


@pytest.mark.parametrize(
    ("given", "what", "fix"),
    [
        ("digits-clpi=texts.txt", "no encoder 'digits-clpi'", "did you mean digits-clip"),
        ("texts.txt", "'texts.txt' is not ENCODER=FILE", "digits-clip"),
        ("digits-clip=nowhere.pt", "no such file of weights for digits-clip", "publisher"),
    ],
)
def test_weights_for_no_encoder_of_the_recipe_are_refused(
    cmcr: Cmcr, recipe: Callable[..., None], given: str, what: str, fix: str
) -> None:
    recipe()
    error = cmcr(f"run --checkpoint {given}", code=2)[0]["error"]
    assert what in error["what"]
    assert fix in error["fix"]


def test_an_encoder_with_an_equals_sign_in_its_name_takes_weights(tmp_path: Path) -> None:
    from cmcr.cli.recipes.pipelines import Pipeline

    source = {"modality": "text", "where": "t.txt", "dataset": "t"}
    names = ["hf:./a=b", "clip:ViT-S-32-alt", "ulip:points=10000,centre=box"]
    recipe = Pipeline.model_validate(
        {
            "description": "",
            "store": "S",
            "extract": [{"encoder": name, "sources": [source]} for name in names],
            "connect": {"name": "c", "spaces": ["a", "b"]},
        }
    )
    weights = tmp_path / "w=1.pt"
    weights.touch()
    given = recipe.with_checkpoints([f"{name}={weights}" for name in names[:0:-1]])
    assert [section.checkpoint for section in given.extract] == [None, weights, weights]


# failures


def broken(folder: Path) -> None:
    for number in range(2):
        (folder / f"sounds/a/bad{number}.wav").write_bytes(b"no sound")


def test_more_may_fail_where_the_flag_or_the_recipe_says_so(
    cmcr: Cmcr, recipe: Callable[..., None], tmp_path: Path
) -> None:
    recipe(source=", max_failures: 0.1")
    broken(tmp_path)
    error = cmcr("run", code=1)[0]["error"]
    assert "2 of 14 inputs" in error["what"]
    assert "--max-failures 0.1 allows" in error["what"]
    assert cmcr("run --max-failures 0.2 --store other")[0]["results"]
    recipe(source=", max_failures: 0.2")
    line = "extract --encoder digits-clap --pipeline own --store E"
    assert cmcr(line)[0]["datasets"][1]["failures"] == 2
    assert (
        "--max-failures 0.05 allows"
        in (cmcr(f"{line[:-1]}F --max-failures 0.05", code=1)[0]["error"]["what"])
    )


def test_a_finished_dataset_is_not_judged_again(
    cmcr: Cmcr, recipe: Callable[..., None], tmp_path: Path
) -> None:
    recipe()
    broken(tmp_path)
    first = cmcr("run --max-failures 0.2")[0]
    before = files(tmp_path / "S")
    again, said = cmcr("run")
    assert again == first
    assert "12 rows, 2 failures  up to date" in said
    assert files(tmp_path / "S") == before
