"""`cmcr evaluate`: which rows count, what is left out and why, and how recipes say both."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pyarrow.parquet as pq
import pytest
from shell import refuse, succeed

from cmcr.cli.app import main
from cmcr.embeddings import Dataset
from cmcr.evaluate.results import directions

Cmcr = Callable[..., Any]
LEFT, RIGHT = [0.0, 0.0, 0.5, 1.0], [0.5, 0.0, 1.0, 1.0]


@pytest.fixture(scope="module")
def whole_store(
    own_in: Callable[..., Path],
    makers: Callable[[Path], Callable[..., Dataset]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """The made-up store, connected as `mine`; clips with a split, prompts, and scenes of two
    regions each.
    """
    folder = own_in(tmp_path_factory.mktemp("whole") / "S")
    make_dataset = makers(folder.parent)
    line = ("connect --via text --method procrustes --spaces clip,clap --train captions --store S"
            " --name mine --set validation=0 --set ridge_strength=0.01")  # fmt: skip
    succeed(*line.split(), cwd=folder.parent)
    draw = np.random.default_rng(1)
    concepts = draw.normal(size=(8, 16)).astype(np.float32)
    labels = [f"class_{row % 8}" for row in range(40)]
    clips = {
        "id": [f"c{row}" for row in range(40)],
        "label": labels,
        "split": ["test"] * 8 + ["train"] * 30 + [""] * 2,
        "image": [f"p{row}" for row in range(40)],
        "boxes": [json.dumps([LEFT if row % 2 else RIGHT]) for row in range(40)],
    }
    rows = np.arange(40) % 8
    make_dataset("clap/audio:clips", concepts[rows], folder, **clips)
    make_dataset("clip/image:clips", concepts[rows], folder, **clips)
    names = [f"class {row}" for row in range(8)]
    prompts = {"label": names * 2, "template": ["a {}"] * 8 + ["{}"] * 8}
    make_dataset("clip/text:prompts", np.tile(concepts, (2, 1)), folder, **prompts)
    corners = np.array([LEFT, RIGHT] * 40).T
    places = dict(zip(("x0", "y0", "x1", "y1"), map(list, corners), strict=True))
    images = [f"p{row // 2}" for row in range(80)]
    ids = [f"p{row // 2}#{row % 2}" for row in range(80)]
    regions = {"id": ids, "image": images, "size": ["small", "large"] * 40, **places}
    make_dataset("clip/image:regions", draw.normal(size=(80, 16)).astype(np.float32), folder,
                 **regions)  # fmt: skip
    return folder


@pytest.fixture
def store(whole_store: Path, cmcr: Cmcr, tmp_path: Path) -> Path:
    """A copy of it."""
    return shutil.copytree(whole_store, tmp_path / "S")


def recipe(folder: Path, evaluate: str, extract: str = "") -> None:
    (folder / "pipelines.yaml").write_text(f"""\
default: mine
pipelines:
  mine:
    description: made up
    store: S
    extract:
      - encoder: clip
        sources:
          - {{modality: image, where: photos, dataset: photos}}
          {extract}
    connect: {{name: mine, via: text, spaces: [clip, clap], train: [captions]}}
    evaluate:
{evaluate}
""")


SOUNDS = "--query clap/audio:clips"
TASKS = {
    "retrieval": f"{SOUNDS} --gallery clip/image:clips",
    "gap": f"{SOUNDS} --gallery clip/image:clips",
    "zero-shot": f"{SOUNDS} --gallery clip/text:prompts",
    "localization": f"{SOUNDS} --regions clip/image:regions",
    "counterfactual": f"{SOUNDS} --regions clip/image:regions",
}


def test_every_task_selects_rows_and_says_which_and_how_many(cmcr: Cmcr, store: Path) -> None:
    for task, places in TASKS.items():
        line = f"evaluate {task} --store S {places} --query-where split=test"
        document, said = cmcr(line)
        assert "--query_split_test-" in said
        assert all("truth" in row for row in document["results"])
        for row in document["results"]:
            side = "query" if row["query"] == "clap/audio:clips" else "gallery"
            assert row["selected"][side] == {"where": {"split": ["test"]}, "items": 8, "of": 40}
        counted = document["results"][-1]["metrics"]
        if task in ("localization", "counterfactual"):
            assert (counted["pairs"], counted["pairs_left_out"]) == (8, 0)
        if task == "zero-shot":
            assert (counted["items"], counted["items_left_out"]) == (8, 0)
        assert "up to date" in cmcr(line)[1]
    every = cmcr(f"evaluate {task} --store S {places}")[0]["results"][0]
    assert every["selected"]["query"] == {"where": {}, "items": 40, "of": 40}
    assert every["metrics"]["pairs"] == 40
    assert "up to date" in cmcr(line)[1]  # each selection has a folder of its own


@pytest.mark.parametrize("task", ["zero-shot", "localization", "counterfactual"])
def test_what_is_searched_is_selected_too(cmcr: Cmcr, store: Path, task: str) -> None:
    flag = {"zero-shot": "--gallery-where template={}"}.get(task, "--regions-where size=large")
    rows = cmcr(f"evaluate {task} --store S {TASKS[task]} {flag}")[0]["results"]
    half = 8 if task == "zero-shot" else 40
    chosen = rows[-1]["selected"]["gallery"]
    assert (chosen["items"], chosen["of"]) == (half, 2 * half)
    if (
        task == "localization"
    ):  # the right half of each picture is left, which is right of every other
        assert rows[-1]["metrics"]["success@0.5"] == 0.5
        assert rows[0]["metrics"] == pytest.approx(rows[-1]["metrics"])


@pytest.mark.parametrize("task", TASKS)
def test_a_selection_that_fits_nothing_names_what_there_is(
    cmcr: Cmcr, store: Path, task: str
) -> None:
    line = f"evaluate {task} --store S {TASKS[task]} --query-where"
    for wrong, what, fix in (
        ("split=tset", "no row of clap/audio:clips has split=tset", "did you mean test? one of:"),
        ("spilt=test", "clap/audio:clips has no column 'spilt'", "did you mean split?"),
        ("split=test --query-where label=class_9", "has label=class_9", "one of: class_0"),
        ("split=test --query-where id=c20", "has split=test and id=c20", "in no row together"),
    ):
        told = cmcr(f"{line} {wrong}", code=2)[0]["error"]
        assert what in told["what"]
        assert fix in told["fix"]


def test_a_recipe_selects_and_a_flag_beats_it(cmcr: Cmcr, store: Path) -> None:
    recipe(store.parent, """
      retrieval:
        - {query: "clap/audio:clips", query_where: split=test, gallery: "clip/image:clips"}
        - {query: "clap/audio:sounds", gallery: "clip/image:photos"}
      localization:
        - {query: "clap/audio:clips", query_where: [split=test], regions: "clip/image:regions"}
""")  # fmt: skip

    def selected(line: str, task: str = "retrieval") -> list[int]:
        rows = cmcr(f"evaluate {task} {line}")[0]["results"]
        found = {row["query"]: row["selected"]["query"]["items"] for row in rows}
        return [count for name, count in found.items() if name.startswith("clap")]

    assert selected("") == [8, 48]
    assert selected("", "localization") == [8]
    assert selected("--query clap/audio:clips") == [8]  # this pair of the recipe and no other
    assert selected("--query clap/audio:clips --query-where split=train") == [30]
    assert selected("--query clap/audio:sounds --gallery clip/image:photos") == [48]
    told = cmcr("evaluate retrieval --query clap/audio:clips --gallery clip/image:photos", 1)
    assert "no query has a match" in told[0]["error"]["what"]  # and not: it has no split


def test_a_filter_that_is_none_does_not_fit(cmcr: Cmcr, store: Path) -> None:
    recipe(store.parent, """
      retrieval: [{query: "clap/audio:clips", query_where: test, gallery: "clip/image:clips"}]
""")  # fmt: skip
    assert "query_where" in cmcr("evaluate retrieval", code=2)[0]["error"]["what"]


def test_a_pair_that_is_missing_is_left_out_by_name_and_the_others_are_measured(
    cmcr: Cmcr, store: Path
) -> None:
    recipe(store.parent, """
      retrieval:
        - {query: "clap/audio:coco", gallery: "clip/image:coco"}
        - {query: "clap/audio:clips", gallery: "clip/image:coco"}
        - {query: "clap/audio:clips", gallery: "clip/image:clips"}
        - {query: "clap/audio:clips", query_where: split=valid, gallery: "clip/image:clips"}
      zero_shot:
        - {query: "clap/audio:clips", gallery: "clip/text:prompts", connection: other}
        - {query: "clap/audio:clips", gallery: "clip/text:prompts"}
""", "- {modality: image, where: data/coco/images.csv, dataset: coco}")  # fmt: skip
    document, said = cmcr("evaluate retrieval", code=3)
    assert {row["query"] for row in document["results"]} == {"clap/audio:clips", "clip/image:clips"}
    first, second, third = document["left_out"]
    assert first["what"] == "the store has no dataset clap/audio:coco"
    assert (second["query"], second["gallery"]) == ("clap/audio:clips", "clip/image:coco")
    made = "`cmcr extract --encoder clip --pipeline mine` makes it, of data/coco/images.csv"
    assert second["fix"] == made
    assert "split=valid" in third["what"]
    assert said.count("left out: retrieval of clap/audio:") == 3
    assert "3 of 4 could not be evaluated" in said
    assert (store / "results/mine/clap_audio_clips--clip_image_clips/retrieval.json").exists()
    document, said = cmcr("evaluate zero-shot", code=3)
    assert document["results"][-1]["task"] == "zero-shot"
    assert "no connection 'other'" in document["left_out"][0]["what"]


def test_nothing_that_can_be_measured_is_an_error(cmcr: Cmcr, store: Path) -> None:
    recipe(store.parent, """
      retrieval:
        - {query: "clap/audio:coco", gallery: "clip/image:coco"}
        - {query: "clap/audio:clips", gallery: "clip/image:coco"}
""")  # fmt: skip
    document, said = cmcr("evaluate retrieval", code=2)
    assert "clap/audio:coco" in document["error"]["what"]
    assert "left out: retrieval of clap/audio:clips and clip/image:coco" in said


def test_a_connection_that_the_recipe_does_not_make_is_measured_on_all_its_pairs(
    cmcr: Cmcr, store: Path
) -> None:
    recipe(store.parent, """
      retrieval:
        - {query: "clap/audio:clips", query_where: split=test, gallery: "clip/image:clips"}
        - {query: "clap/audio:sounds", gallery: "clip/image:photos"}
        - {query: "ulip/pointcloud:shapes", gallery: "clip/image:photos"}
""")  # fmt: skip
    (store / "connections/mine").rename(store / "connections/published")
    document, said = cmcr("evaluate retrieval --connection published")
    assert "recipe mine, store S, connection published\n" in said
    pairs = {(row["query"], row["gallery"]) for row in document["results"]}
    assert ("clap/audio:clips", "clip/image:clips") in pairs
    assert ("clap/audio:sounds", "clip/image:photos") in pairs
    assert not any("ulip" in query for query, _ in pairs)


def test_an_index_that_fits_no_budget_hinders_no_table(cmcr: Cmcr, store: Path) -> None:
    document, _ = cmcr(
        "evaluate retrieval --query clap/audio:clips --gallery clip/image:clips --no-pipeline"
        " --store S --max-memory 1",
        code=3,
    )
    assert {row["task"] for row in document["results"]} == {"retrieval"}
    (missed,) = document["left_out"]
    assert missed["task"] == "index"
    assert missed["fix"]


def test_two_selections_are_two_tables(cmcr: Cmcr, store: Path) -> None:
    places = '{query: "clap/audio:clips", gallery: "clip/text:prompts"'
    recipe(store.parent, f"""
      zero_shot:
        - {places}}}
        - {places}, query_where: split=test}}
""")  # fmt: skip
    rows = cmcr("evaluate zero-shot")[0]["results"]
    assert [len(models) for models in directions(rows)] == [7, 7]
    assert [one[0]["selected"]["query"]["items"] for one in directions(rows)] == [40, 8]


def test_the_table_and_the_page_say_what_was_selected(
    store: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    line = f"evaluate zero-shot --store S {TASKS['zero-shot']} --query-where split=test"
    for words in (line, "report S"):
        monkeypatch.setattr(sys, "argv", ["cmcr", *words.split()])
        with pytest.raises(SystemExit):
            main()
    out = capsys.readouterr().out
    assert "query split=test: 8 of 40 rows" in out
    (page,) = store.glob("**/*.html")
    assert "Query split=test: 8 of 40 rows." in page.read_text(encoding="utf-8")


def test_a_recipe_can_leave_the_index_out(cmcr: Cmcr, tmp_path: Path) -> None:
    (tmp_path / "lines.txt").write_text("one\ntwo\nthree\n")
    sources = "".join(
        f"          - {{modality: text, where: lines.txt, dataset: {name}{more}}}\n"
        for name, more in (("usual", ""), ("bare", ", index: none"))
    )
    (tmp_path / "pipelines.yaml").write_text(f"""\
default: mine
pipelines:
  mine:
    description: texts
    store: S
    extract:
      - encoder: digits-clip
        sources:
{sources}
    connect: {{name: mine, via: text, spaces: [digits-clip, digits-clap], train: [usual]}}
""")
    cmcr("extract --encoder digits-clip")
    folder = tmp_path / "S/space=digits-clip/modality=text"
    assert (folder / "dataset=usual/index.faiss").exists()
    assert not (folder / "dataset=bare/index.faiss").exists()
    cmcr("extract --encoder digits-clip --index Flat")  # a flag beats the recipe
    assert (folder / "dataset=bare/index.faiss").exists()


FORMATS = {
    "gap": "distance,alignment",
    "zero-shot": "top1,top3",
}


def test_results_leave_as_csv_latex_and_a_line_a_query(store: Path) -> None:
    folder = store.parent
    for task, columns in FORMATS.items():
        line = ["evaluate", task, "--no-pipeline", "--store", "S", *TASKS[task].split()]
        more = ["--per-query", "q.parquet"] if task == "zero-shot" else []
        (folder / "out.csv").write_text("what was there")
        done = succeed(*line, "--csv", "out.csv", "--latex", "new/out.tex", *more, cwd=folder)
        assert "model" in done.stdout
        written = (folder / "out.csv").read_text()
        assert columns in written.splitlines()[0].replace('"', "")
        latex = (folder / "new/out.tex").read_text()
        assert latex.startswith("% \\usepackage{booktabs}\n")
        assert succeed(*line, "--csv", "-", "--log", task, cwd=folder).stdout == written
        logged = [json.loads(one) for one in (folder / task).read_text().splitlines()]
        assert [one["results"][0]["truth"] for one in logged if one["event"] == "result"]
        assert succeed(*line, "--latex", "-", cwd=folder).stdout == latex
        if more:
            table = pq.read_table(folder / "q.parquet")
            assert {"id", "model", "matches", "first_rank", "hit@1"} <= set(table.column_names)
            assert "clap/audio:clips" in table["query"].to_pylist()
    assert "not for stdout" in refuse(2, *line, "--per-query", "-", cwd=folder)
    for task, places in TASKS.items():
        line = ["evaluate", task, "--no-pipeline", "--store", "S", *places.split()]
        for wrong in (["--json", "--csv", "-"], ["--csv", "-", "--latex", "-"]):
            assert "stdout cannot be" in refuse(2, *line, *wrong, cwd=folder)
        for flag in ("--csv", "--latex"):
            assert f"{flag} is to be a file" in refuse(2, *line, flag, ".", cwd=folder)


def test_two_tasks_of_one_pair_keep_their_lines_apart(store: Path) -> None:
    columns = []
    for task in ("retrieval", "zero-shot", "retrieval"):
        line = f"evaluate {task} --no-pipeline --store S {TASKS['zero-shot']} --per-query q.parquet"
        succeed(*line.split(), cwd=store.parent)
        columns.append(pq.read_table(store.parent / "q.parquet").column_names)
    assert columns[0] == columns[2]
    assert "hit@10" in columns[0]
    assert "hit@3" in columns[1]


def test_without_truth_there_is_no_line_of_a_query(
    store: Path, make_dataset: Callable[..., Dataset]
) -> None:
    vectors = np.random.default_rng(0).normal(size=(12, 16))
    make_dataset("clap/audio:bare", vectors, store)
    make_dataset("clip/image:bare", vectors[:9], store)
    places = "--query clap/audio:bare --gallery clip/image:bare"
    line = f"evaluate retrieval --no-pipeline --store S {places}"
    done = succeed(*line.split(), cwd=store.parent)
    assert "hubs: clap/audio:bare → clip/image:bare" in done.stdout
    assert "nothing says what matches" in done.stdout
    assert "queries have them among their first ten" in done.stdout
    with mock.patch("cmcr.evaluate.evaluate_retrieval", side_effect=AssertionError):
        told = refuse(1, *line.split(), "--per-query", "q.parquet", cwd=store.parent)
    assert "nothing says what matches" in told  # before anything is searched
    assert not (store.parent / "q.parquet").exists()
