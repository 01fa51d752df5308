"""The page about a store: what it says, what is missing, hostile names, and in a browser.

pytest tests/evaluate/test_report.py
"""

import itertools
import json
import re
import shutil
import subprocess
import tarfile
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
from PIL import Image
from typer.testing import CliRunner

from cmcr.cli.app import app
from cmcr.connect import connect, read_config
from cmcr.embeddings import Key, import_embeddings
from cmcr.errors import UsageError
from cmcr.evaluate import (
    evaluate_counterfactual,
    evaluate_gap,
    evaluate_localization,
    evaluate_retrieval,
    evaluate_zero_shot,
    write_report,
)
from cmcr.evaluate.report.inventory import Evaluation
from cmcr.evaluate.report.words import terms, verdict
from cmcr.evaluate.results import COUNTS
from cmcr.extract import extract, load_encoder, open_source
from cmcr.extract.lookup import find_media

HOSTILE = '<script>alert("$x")</script>&'
SOUNDS, PICTURES = Key("ear", "audio", "sounds"), Key("eye", "image", "pictures")
REGIONS, TEXTS = Key("eye", "image", "regions"), Key("eye", "text", "texts")
SHAPES = Key("ear", "pointcloud", "shapes")


class Page(HTMLParser):
    """Elements and text of a page; refuses tags that do not close."""

    VOID = frozenset(["meta", "link", "img", "br", "input"])

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(path.read_text(encoding="utf-8"))
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("script", "style"):
            self.text += " ".join(data.split()) + " "

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def media(tmp_path_factory):
    """A recording, a picture and points on disk, and the picture in a tar too."""
    folder = tmp_path_factory.mktemp("media")
    wave = 0.5 * np.sin(np.arange(4 * 22_050) / 20)
    soundfile.write(folder / "tone.wav", np.stack([wave, -0.5 * wave], axis=1), 22_050)
    pixels = np.linspace(0, 255, 60 * 400 * 3).reshape(60, 400, 3).astype(np.uint8)
    Image.fromarray(pixels).save(folder / "photo.png")
    np.save(folder / "shape.npy", np.random.default_rng(0).normal(size=(900, 3)))
    with tarfile.open(folder / "photos.tar", "w") as tar:
        tar.add(folder / "photo.png", "a/photo.png")
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory, media):
    """Two spaces connected and evaluated in every way, one dataset with failures."""
    folder = tmp_path_factory.mktemp("made")
    store = folder / "store"

    def make_dataset(place, array, **columns):
        np.save(folder / "array.npy", array)
        pq.write_table(pa.table(columns), folder / "rows.parquet")
        key = Key.parse(place)
        import_embeddings(store, key, folder / "array.npy", folder / "rows.parquet", index=None)

    rng = np.random.default_rng(0)
    classes = [HOSTILE, "owl"]
    labels = [classes[i % 2] for i in range(12)]
    meaning = np.eye(4)[np.arange(12) % 2]
    ids = [f"t{i}" for i in range(12)]
    vectors = (meaning + 0.2 * rng.normal(size=(12, 4))).astype(np.float32)
    words = [f"{HOSTILE} says {i}" for i in range(12)]
    for space in ("eye", "ear"):
        make_dataset(f"{space}/text:texts", vectors, id=ids, text=words, label=labels)
    vectors = (meaning + rng.normal(size=(12, 4))).astype(np.float32)
    image, places = [f"p{i}" for i in range(12)], np.tile([[0, 0, 0.5, 1]], (12, 1)).T
    make_dataset(
        "ear/audio:sounds", vectors, id=[HOSTILE, *(f"s{i}" for i in range(1, 12))],
        uri=[str(media / "tone.wav")] * 11 + [str(media / "gone.wav")], label=labels, image=image,
        boxes=["[[0, 0, 0.5, 1]]" if i % 3 else "[]" for i in range(12)],
    )  # fmt: skip
    photo, packed = str(media / "photo.png"), f"{media / 'photos.tar'}#a/photo.png"
    uris = [photo, packed, "builtin:digits/handwriting-test#handwriting-1397"] * 4
    vectors = (meaning + rng.normal(size=(12, 4))).astype(np.float32)
    make_dataset("eye/image:pictures", vectors, id=image, uri=uris, label=labels)
    make_dataset(
        "eye/image:regions", vectors, id=[f"{name}#0" for name in image], uri=uris, image=image,
        **dict(zip(("x0", "y0", "x1", "y1"), places.tolist(), strict=True)),
    )  # fmt: skip
    make_dataset(
        "ear/pointcloud:shapes", vectors, id=[f"shape{i}" for i in range(12)], label=labels,
        uri=[str(media / "shape.npy")] * 12,
    )  # fmt: skip
    broken = folder / "broken"
    broken.mkdir()
    (broken / "empty.wav").touch()
    (broken / f"{HOSTILE.replace('/', '')}.wav").write_text("no sound")
    shutil.copy(media / "tone.wav", broken)
    encoder, source = load_encoder("digits-clap"), open_source("audio", str(broken))
    extract(store, encoder, source, "broken", workers=0, max_failures=1)
    fields = {"spaces": ["eye", "ear"], "via": "text", "train": ["texts"],
              "method": "c-mcr", "epochs": 2}  # fmt: skip
    connect(store, read_config(fields), name="made")
    path = store / "connections" / "made"
    with pytest.MonkeyPatch.context() as patch:  # the PNGs of retrieval are tested elsewhere
        patch.setattr("cmcr.evaluate.tasks.retrieval._draw", lambda *_: [])
        evaluate_retrieval(store, path, SOUNDS, PICTURES)
        evaluate_retrieval(store, path, SHAPES, TEXTS)
    evaluate_gap(store, path, SOUNDS, PICTURES)
    evaluate_zero_shot(store, path, SOUNDS, TEXTS)
    evaluate_localization(store, path, SOUNDS, REGIONS)
    evaluate_counterfactual(store, path, SOUNDS, REGIONS)
    return store


@pytest.fixture
def store(tmp_path, made):
    """A copy that can be damaged."""
    return shutil.copytree(made, tmp_path / "store")


@pytest.fixture(scope="module")
def page(made):
    return report(made)


def report(store, **options):
    return Page(write_report(store, store / "report.html", find_media, **options))


def test_all_is_there_and_accessible(made, page):
    for said in ("sounds", "pictures", "regions", "texts", "shapes", "broken"):
        assert said in page.text
    assert "the file is empty" in page.text  # a reason of failure
    for task in ("Retrieval", "Zero-shot", "Localisation", "Counterfactual", "Modality gap"):
        assert task in page.text
    for folder in (made / "results" / "made").iterdir():
        for results in folder.glob("*.json"):
            for row in json.loads(results.read_text())["results"]:
                shown = [f"{value:.3f}" for name, value in row["metrics"].items() if "@" in name]
                assert row["model"] in page.text
                assert all(number in page.text for number in shown)
    assert "✓ match" in page.text
    assert "✗ no match" in page.text
    assert "✗ not in the picture" in page.text
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch("h[1-6]", tag)]
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
    assert all(head.get("scope") for head in page.all("th"))
    assert len(page.all("caption")) == len(page.all("table"))
    assert len(page.all("figcaption")) == len(page.all("figure")) > 4
    assert all(image["alt"] for image in page.all("img"))
    named = [svg.get("aria-label") or svg.get("aria-hidden") for svg in page.all("svg")]
    assert named
    assert all(named)
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_it_begins_with_how_well_it_works_and_against_what(made, page):
    first, *_ = page.text.partition("Datasets ")
    row = next(
        row
        for row in json.loads(next((made / "results/made").rglob("retrieval.json")).read_text())[
            "results"
        ]
        if row["model"] == "c-mcr"
    )
    assert f"finds a match first for {100 * row['metrics']['hit_rate@1']:.1f} %" in page.text
    for against in ("chance (", "raw cosine (", "the best closed form beside it"):
        assert against in first
    assert "95 % interval" in first


def test_every_table_scrolls_has_a_link_and_says_what_its_columns_mean(made, page):
    html = (made / "report.html").read_text()
    assert len(re.findall(r'<div class="wide"[^>]*>\s*<table', html)) == len(page.all("table"))
    assert re.search(r"\.wide \{[^}]*overflow-x: auto", html)
    links = [link["href"][1:] for link in page.all("a") if link["href"].startswith("#table-")]
    tables = [one["id"] for one in page.all("div") if one.get("id", "").startswith("table-")]
    assert links == tables
    assert len(links) == len(page.all("table")) - page.text.count("reason inputs")  # of failures
    assert len(links) > 10
    explained = re.findall(r'<details class="terms">.*?</details>', html, re.DOTALL)
    assert any("mean average precision" in one for one in explained)
    assert any("how far the means of the two modalities" in one for one in explained)
    assert re.search(r"<details><summary>Training: the loss.*?<svg", html, re.DOTALL)


@pytest.mark.parametrize(
    ("own", "other", "said"),
    [
        ([0.90, 0.95], [0.5, 0.6], ": clearly more than"),
        ([0.90, 0.95], [0.94, 0.97], "not clearly different from"),
        ([0.20, 0.30], [0.5, 0.6], "clearly less than"),
    ],
)
def test_the_sentence_is_honest(own, other, said):
    def row(model, value, interval=None):
        about = {"dataset": "d", "task": "retrieval", "query": "a/text:d", "gallery": "b/text:d"}
        metrics = {"hit_rate@1": value}
        intervals = {"intervals": {"hit_rate@1": interval}} if interval else {}
        return {**about, "model": model, "metrics": metrics, **intervals}

    rows = [
        row("chance", 0.1),
        row("identity", 0.15, [0.1, 0.2]),
        row("ridge", 0.3, [0.2, 0.4]),
        row("cca", sum(other) / 2, other),
        row("c-mcr", sum(own) / 2, own),
    ]
    sentence = verdict([Evaluation("retrieval", Path(), rows)])
    assert re.search(rf"{said} [^;]*the best closed form beside it, cca", sentence)
    low, high = (f"{100 * end:.1f} %" for end in own)
    assert f"(95 % interval {low} to {high})" in sentence
    assert "chance (10.0 %)" in sentence


def test_each_metric_of_the_results_is_explained(made):
    for path in (made / "results").rglob("*.json"):
        for row in json.loads(path.read_text())["results"]:
            for name in row["metrics"].keys() - COUNTS.keys():
                assert len(terms([name])) == 1, name


def test_without_truth_the_page_says_so(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    for place in ("eye/text:texts", "ear/text:texts", "ear/audio:bare", "eye/image:bare"):
        rows = {"text": 12, "audio": 13, "image": 14}[place.split("/")[1].split(":")[0]]
        np.save(tmp_path / "array.npy", rng.normal(size=(rows, 4)))
        import_embeddings(tmp_path / "S", Key.parse(place), tmp_path / "array.npy", index=None)
    fields = {"spaces": ["eye", "ear"], "via": "text", "train": ["texts"], "method": "ridge"}
    path = connect(tmp_path / "S", read_config(fields), name="made").path
    monkeypatch.setattr("cmcr.evaluate.tasks.retrieval._draw", lambda *_: [])
    keys = [Key.parse(place) for place in ("ear/audio:bare", "eye/image:bare")]
    evaluate_retrieval(tmp_path / "S", path, *keys)
    page = report(tmp_path / "S")
    assert "Nothing says what matches between ear/audio:bare and eye/image:bare" in page.text
    assert "hubs" in page.text
    assert "no match" not in page.text
    assert "Radovanović" in page.text


def test_nothing_is_fetched_and_it_is_small(made, page):
    for _, attributes in page.elements:
        for name in ("src", "href", "xlink:href"):
            assert (attributes.get(name) or "#").startswith(("#", "data:"))
    html = (made / "report.html").read_text()
    assert "url(http" not in html
    assert "@import" not in html
    assert len(html) < 12e6
    assert len(page.all("audio")) > 4
    assert len(page.all("canvas")) > 4


def test_names_and_texts_are_escaped(page):
    assert len(page.all("script")) == 1
    assert HOSTILE in page.text
    assert f"{HOSTILE} says" in page.text


def test_media_that_are_gone(store):
    def gone(modality, uris):
        return {uri: FileNotFoundError(f"no such file: {uri}") for uri in uris}

    page = Page(write_report(store, store / "gone.html", gone))
    assert not page.all("audio")
    assert not page.all("canvas")
    assert "no such file" in page.text
    shutil.rmtree(PICTURES.folder(store))
    (SOUNDS.folder(store) / "manifest.json").unlink()
    page = report(store)
    assert "the store has no dataset" in page.text
    assert "unfinished" in page.text


def test_damaged_results_and_connections(store):
    (store / "connections" / "made" / "config.json").write_text("{")
    for path in (store / "results").rglob("*.parquet"):
        path.write_text("no parquet")
    results = next((store / "results").rglob("gap.json"))
    results.write_text("{")
    page = report(store)
    assert "cannot be read" in page.text
    assert "Not all of this can be shown" in page.text


def test_results_of_a_filter_stand_apart_with_their_own_points(store):
    where = {"id": [f"s{i}" for i in range(1, 10)]}
    evaluate_gap(store, store / "connections" / "made", SOUNDS, PICTURES, query_where=where)
    page = report(store)
    titles = re.findall(r"ear/audio:sounds and eye/image:pictures(, [a-z0-9=, ]+more)?", page.text)
    assert titles == ["", ", query id=s1, s2, s3, s4, s5 and 4 more"]
    maps = [str(svg.get("aria-label")) for svg in page.all("svg")]
    for items in (12, 9):
        before, after = (name for name in maps if name.startswith(f"Map of {items} audio and"))
        assert ("before" in before, "after" in after) == (True, True)


def test_tables_of_another_shape_are_told(store):
    for path in (store / "results").rglob("*.parquet"):
        pq.write_table(pa.table({"x": [1]}), path)
    assert report(store).text.count("Not all of this can be shown") == 5
    for path in (store / "results").rglob("*.json"):
        path.write_text('{"results": [{"model": "ridge"}], "inputs": {}, "files": []}')
    assert report(store).text.count("the results cannot be read") == 6


def test_classes_and_predictions_of_two_evaluations_are_told(store):
    (path,) = (store / "results").rglob("classes.parquet")
    pq.write_table(pa.table({"class": ["rat"], "items": [12]}), path)
    assert "are of two evaluations" in report(store).text


def test_a_bug_of_the_page_is_no_damage_of_the_store(store, monkeypatch):
    def faulty(*_):
        raise KeyError("a name that was mistyped")

    monkeypatch.setattr("cmcr.evaluate.report.page.galleries", faulty)
    with pytest.raises(KeyError, match="mistyped"):
        report(store)


def test_an_empty_store(tmp_path):
    (tmp_path / "connections").mkdir()
    page = report(tmp_path)
    assert "no datasets yet" in page.text
    assert "no connection yet" in page.text
    with pytest.raises(UsageError, match="no connection 'x'"):
        write_report(tmp_path, tmp_path / "a.html", find_media, "x")


def test_a_folder_that_is_no_store(tmp_path):
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(UsageError, match="no store"):
            write_report(folder, tmp_path / "a.html", find_media)
    assert not list(tmp_path.iterdir())


def test_the_command(tmp_path):
    (tmp_path / "connections").mkdir()
    out = tmp_path / "elsewhere" / "page.html"
    assert CliRunner().invoke(app, ["report", str(tmp_path), "--out", str(out)]).exit_code == 0
    assert out.read_text().startswith("<!doctype html>")


@pytest.fixture
def home(tmp_path, media, monkeypatch):
    """Photographs in class folders, in a tar and in a list, and the folder to work in."""
    home = tmp_path / "home"
    for name in ("photos/dog", "photos/cat"):
        (home / name).mkdir(parents=True)
        shutil.copy(media / "photo.png", home / name / "1.png")
    shutil.copy(media / "photos.tar", home / "packed.tar")
    (home / "list.csv").write_text("path\nphotos/dog/1.png\nphotos/../photos/cat/1.png\n")
    (home / "deep" / "er").mkdir(parents=True)
    monkeypatch.chdir(home)
    return home


@pytest.mark.parametrize("where", ["photos", "packed.tar", "list.csv"])
def test_rows_say_where_media_lie_from_whatever_folder(home, encoder, monkeypatch, where):
    parts = []
    for folder, named in ((".", where), ("deep/er", f"../../{where}"), ("deep", str(home / where))):
        monkeypatch.chdir(home / folder)
        store = home / f"store-{len(parts)}"
        extract(store, encoder, open_source("image", named), "x", workers=0, index=None)
        place = Key("bytes", "image", "x").folder(store)
        parts.append(
            [(place / name).read_bytes() for name in ("part-00000.parquet", "manifest.json")]
        )
    assert parts[0] == parts[1] == parts[2]
    monkeypatch.chdir("/")
    uris = pq.read_table(place / "part-00000.parquet", partitioning=None)["uri"].to_pylist()
    assert uris
    assert all(found.size == (400, 60) for found in find_media("image", uris).values())


@pytest.mark.parametrize(
    ("where", "root"),
    [
        ("photos", "moved"),
        ("photos", "moved/photos"),
        ("packed.tar", "moved"),
        ("list.csv", "moved"),
    ],
)
def test_media_that_were_moved(home, encoder, tmp_path, where, root):
    extract(home / "store", encoder, open_source("image", where), "x", workers=0, index=None)
    part = Key("bytes", "image", "x").folder(home / "store") / "part-00000.parquet"
    uris = pq.read_table(part, partitioning=None)["uri"].to_pylist()
    home.rename(tmp_path / "moved")
    assert all(isinstance(found, Exception) for found in find_media("image", uris).values())
    found = find_media("image", uris, [tmp_path / "nothing here", tmp_path / root])
    assert found.keys() == set(uris)
    assert all(one.size == (400, 60) for one in found.values())


def test_relative_paths_are_looked_for_below_the_root(home, monkeypatch):
    """As rows have them that were extracted before paths were absolute."""
    monkeypatch.chdir("/")
    uris = ["photos/dog/1.png", "photos/dog/none.png"]
    there, gone = find_media("image", uris, [home]).values()
    assert there.size == (400, 60)
    assert isinstance(gone, FileNotFoundError)


def test_the_command_finds_moved_media(made, tmp_path, media):
    store = shutil.copytree(made, tmp_path / "store")
    lost = tmp_path / "lost"
    media.rename(lost)
    try:
        assert not report(store).all("audio")
        done = CliRunner().invoke(app, ["report", str(store), "--media-root", str(lost)])
        assert done.exit_code == 0
        assert Page(store / "report.html").all("audio")
    finally:
        lost.rename(media)
    none = CliRunner().invoke(app, ["report", str(store), "--media-root", str(lost)])
    assert "no such folder" in str(none.exception)


def test_media_are_found_again(media):
    photo, packed = str(media / "photo.png"), f"{media / 'photos.tar'}#a/photo.png"
    builtin = "builtin:digits/handwriting-test#handwriting-1397"
    tar = media / "photos.tar"
    lost = [media / "no.png", f"{tar}#b.png", f"{media / 'none.tar'}#a.png", media / "tone.wav"]
    lost = [*map(str, lost), "builtin:digits/none#1", "builtin:digits/scenes#none"]
    found = find_media("image", [photo, packed, builtin, *lost])
    assert found[photo].size == found[packed].size == (400, 60)
    assert found[builtin].size == (8, 8)
    assert all(isinstance(found[uri], Exception) for uri in lost)
    sounds = find_media("audio", [str(media / "tone.wav")])
    assert next(iter(sounds.values())).sample_rate == 22_050


CHECK = """<script>
addEventListener("error", (event) => problems.push(event.message || "not loaded"), true);
const problems = [];
addEventListener("load", async () => {
  const wait = (one) => one.readyState > 0 || new Promise((then) => {
    one.onloadedmetadata = then; one.onerror = then; one.load();
  });
  await Promise.all([...document.querySelectorAll("audio")].map(wait));
  for (const one of document.querySelectorAll("audio"))
    if (one.error || !(one.duration > 0)) problems.push("audio");
  for (const one of document.images) if (!one.naturalWidth) problems.push("img");
  for (const one of document.querySelectorAll("canvas"))
    if (!one.getContext("2d").getImageData(0, 0, 240, 240).data.some(Boolean))
      problems.push("canvas");
  if (document.documentElement.scrollWidth > innerWidth) problems.push("wider than the window");
  top.document.title = "problems: " + JSON.stringify(problems);
});
</script>"""


@pytest.mark.parametrize("width", [390, 1280])
def test_in_a_browser(made, page, tmp_path, width):
    """No script error, every picture, recording and point cloud there, nothing too wide."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("there is no chromium: apt-get install chromium")
    html = (made / "report.html").read_text()
    (tmp_path / "checked.html").write_text(html.replace("<head>", f"<head>{CHECK}", 1))
    frame = tmp_path / "frame.html"  # a window is never as narrow as a phone
    frame.write_text(f'<iframe src="checked.html" style="width:{width}px; height:900px"></iframe>')
    done = subprocess.run(
        [browser, "--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files",
         f"--user-data-dir={tmp_path / 'browser'}", "--virtual-time-budget=20000", "--dump-dom",
         frame.as_uri()],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    assert "<title>problems: []</title>" in done.stdout, re.findall("<title>.*", done.stdout)
