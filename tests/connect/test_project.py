"""`cmcr project`: a store's embeddings in the joint space, as one more space of the store.

pytest tests/connect/test_project.py
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose
from typer.testing import CliRunner

from cmcr.cli.app import app
from cmcr.connect import (
    ConnectConfig,
    Connection,
    connect,
    load_connection,
    project_store,
    read_config,
)
from cmcr.embeddings import (
    Dataset,
    Description,
    Key,
    import_embeddings,
    open_dataset,
    open_index,
    verify_store,
)
from cmcr.embeddings.parts import write_part
from cmcr.embeddings.writer import begin, finish
from cmcr.errors import CmcrError, MismatchError, StoreError, UsageError
from cmcr.files import locked

MakeDataset = Callable[..., Dataset]

ROWS, PART = 10, 4


@pytest.fixture
def store(make_dataset: MakeDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Captions in both spaces, pictures in one and sounds in the other, in parts of four rows."""
    monkeypatch.setattr("cmcr.embeddings.importer.PART_ROWS", PART)
    random = np.random.default_rng(0)
    latent = random.standard_normal((ROWS, 5))
    for space, dim in (("see", 8), ("hear", 6)):
        make_dataset(
            f"{space}/text:captions",
            latent @ random.standard_normal((5, dim)),
            id=[f"caption-{row}" for row in range(ROWS)],
            text=[f"a caption, {row}" for row in range(ROWS)],
        )
    make_dataset("see/image:pictures", random.standard_normal((ROWS, 8)))
    make_dataset(
        "hear/audio:sounds",
        random.standard_normal((ROWS, 6)),
        id=[f"sound-{row}" for row in range(ROWS)],
        uri=[f"{row}.wav" for row in range(ROWS)],
        label=[["dog", "bark"] if row % 2 else None for row in range(ROWS)],
        group=["g"] * ROWS,
        fold=[str(row % 5) for row in range(ROWS)],
    )
    return tmp_path / "store"


def config(**settings: Any) -> ConnectConfig:
    section = {"via": "text", "spaces": ["see", "hear"], "train": ["captions"], "method": "ridge"}
    return read_config(section | settings)


@pytest.fixture
def connection(store: Path) -> Connection:
    return load_connection(connect(store, config(), name="joint").path)


def project(store: Path, connection: Connection, **options: Any) -> dict[str, Dataset]:
    done = project_store(store, connection, **({"space": "joint", "index": None} | options))
    return {str(projected.source): projected.dataset for projected in done}


def test_all_of_both_spaces_becomes_one_space(store: Path, connection: Connection) -> None:
    done = project(store, connection)
    assert {name: str(dataset.key) for name, dataset in done.items()} == {
        "hear/audio:sounds": "joint/audio:sounds",
        "hear/text:captions": "joint/text:hear-captions",
        "see/image:pictures": "joint/image:pictures",
        "see/text:captions": "joint/text:see-captions",
    }
    for name, dataset in done.items():
        space, _, rest = name.partition("/")
        modality, _, called = rest.partition(":")
        source = open_dataset(store, Key(space, modality, called))  # type: ignore[arg-type]
        expected = connection.project(space, source.embeddings())
        assert_allclose(dataset.embeddings(), expected, atol=1e-3)  # float16
        assert [part.rows for part in dataset.manifest.parts] == [4, 4, 2]
    assert all(verdict.problem is None for verdict in verify_store(store))


def test_all_columns_are_carried_over(store: Path, connection: Connection) -> None:
    done = project(store, connection)
    columns = ["id", "uri", "text", "label", "group", "fold"]
    sounds = open_dataset(store, Key("hear", "audio", "sounds"))
    assert done["hear/audio:sounds"].table(columns).equals(sounds.table(columns))
    texts = done["see/text:captions"].table(["id", "text"]).to_pylist()
    assert texts[-1] == {"id": "caption-9", "text": "a caption, 9"}


def test_inputs_that_could_not_be_embedded_stay_known_and_numbers_stay_numbers(
    store: Path, connection: Connection
) -> None:
    bad = {"id": "x", "uri": "x.wav", "error": "SourceError", "message": "empty"}
    see = open_dataset(store, Key("see", "image", "pictures")).manifest
    description = Description(
        space="see",
        modality="image",
        dataset="more",
        dim=8,
        part_rows=PART,
        columns=("x0",),
        numbers=("x0",),
        encoder=see.encoder,
        source={"kind": "test"},
    )
    folder = begin(store, description)
    write_part(folder, description, 0, {"id": ["a"], "x0": [0.5]}, np.eye(8)[:1], [bad])
    write_part(folder, description, 1, {"id": []}, np.empty((0, 8)), [bad | {"id": "y"}])
    finish(folder, description, 2)
    done = project(store, connection, datasets=[description.key])["see/image:more"]
    assert (done.rows, done.manifest.failures) == (1, 2)
    assert done.table(["x0"])["x0"].to_pylist() == [0.5]


def test_the_space_is_one_whatever_it_goes_back_to(
    store: Path, connection: Connection, make_dataset: MakeDataset
) -> None:
    done = project(store, connection)
    assert len({dataset.encoder_identity for dataset in done.values()}) == 1
    manifest = done["see/text:captions"].manifest
    assert manifest.encoder["checkpoint_sha256"] == connection.record.model_sha256
    assert manifest.source["dataset"] == "see/text:captions"
    assert manifest.source["encoder_identity"] == connection.record.spaces[0].encoder_identity
    ids = [f"caption-{row}" for row in range(ROWS)]
    make_dataset("touch/text:see-captions", np.random.default_rng(1).random((ROWS, 5)), id=ids)
    chained = config(spaces=["touch", "joint"], train=["see-captions"], memory=["sounds"])
    made = connect(store, chained, name="chained")
    assert made.record.spaces[1].memory == "audio"


def test_nobody_has_a_dataset_alone_while_its_parts_are_written(
    store: Path, connection: Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free: list[bool] = []

    def watched(folder: Path, *arguments: Any) -> None:
        with locked(folder.with_name(f".{folder.name}.lock")) as mine:  # as `remove` takes it
            free.append(mine)
        write_part(folder, *arguments)

    monkeypatch.setattr("cmcr.connect.make.project.write_part", watched)
    monkeypatch.setattr("cmcr.embeddings.importer.write_part", watched)
    list(project_store(store, connection, space="joint", index=None))
    array = tmp_path / "more.npy"
    np.save(array, np.eye(2, 8, dtype=np.float32))
    import_embeddings(store, Key("see", "image", "more"), array, index=None)

    assert len(free) > 2
    assert not any(free)


def test_what_is_there_is_left_alone(store: Path, connection: Connection) -> None:
    first = list(project_store(store, connection, space="joint", index=None))
    again = list(project_store(store, connection, space="joint", index=None))
    assert [projected.fresh for projected in first] == [True] * 4
    assert [projected.fresh for projected in again] == [False] * 4
    assert str(again[0]).startswith("up to date: hear/audio:sounds as joint/audio:sounds, 10 rows")


def test_a_dataset_that_changed_is_projected_anew(
    store: Path, connection: Connection, make_dataset: MakeDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    sounds = Key("hear", "audio", "sounds")
    project(store, connection, datasets=[sounds])
    shutil.rmtree(sounds.folder(store))
    rows = np.random.default_rng(7).standard_normal((6, 6))
    make_dataset("hear/audio:sounds", rows)
    with monkeypatch.context() as patched:
        patched.setattr("cmcr.connect.make.project.put_in_place", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            project(store, connection, datasets=[sounds])
    assert open_dataset(store, Key("joint", "audio", "sounds")).rows == ROWS
    dataset = project(store, connection, datasets=[sounds])["hear/audio:sounds"]
    expected = connection.project("hear", open_dataset(store, sounds).embeddings())
    assert_allclose(dataset.embeddings(), expected, atol=1e-3)
    assert not (store / ".update").exists()


def test_killed_at_any_part_and_run_again_gives_the_same_bytes(
    store: Path, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = Key("hear", "audio", "sounds")
    whole = project(store, connection, datasets=[key])["hear/audio:sounds"].folder
    expected = {path.name: path.read_bytes() for path in whole.iterdir() if path.is_file()}
    for survived in range(3):
        for path in whole.iterdir():
            if path.is_file():
                path.unlink()
        written = []

        def killed(*given: Any, survived: int = survived, written: list = written) -> None:
            if len(written) == survived:
                raise KeyboardInterrupt
            written.append(given)
            write_part(*given)

        with monkeypatch.context() as patch:
            patch.setattr("cmcr.connect.make.project.write_part", killed)
            with pytest.raises(KeyboardInterrupt):
                project(store, connection, datasets=[key])
        assert not (whole / "manifest.json").exists()
        assert len(list(whole.glob("part-*"))) == survived
        project(store, connection, datasets=[key])
        left = {path.name: path.read_bytes() for path in whole.iterdir() if path.is_file()}
        assert left == expected


def test_a_centred_connection_takes_a_modality_without_rows_of_its_own(store: Path) -> None:
    made = connect(store, config(centre=True, memory=["sounds"]), name="centred")
    centred = load_connection(made.path)
    named = [Key("hear", "audio", "sounds"), Key("see", "image", "pictures")]
    done = project(store, centred, datasets=named)
    for key in named:
        rows = open_dataset(store, key).embeddings()
        expected = centred.project(key.space, rows, key.modality)
        assert_allclose(done[str(key)].embeddings(), expected, atol=1e-3)


def test_what_does_not_belong_together_is_refused(
    store: Path, connection: Connection, make_dataset: MakeDataset
) -> None:
    sounds = Key("hear", "audio", "sounds")
    with pytest.raises(MismatchError, match="space see holds embeddings that were made by some"):
        project(store, connection, space="see")
    with pytest.raises(MismatchError, match="not of touch"):
        project(store, connection, datasets=[make_dataset("touch/text:captions", np.eye(3)).key])
    with pytest.raises(UsageError, match="no dataset hear/audio:music"):
        project(store, connection, datasets=[Key("hear", "audio", "music")])
    with pytest.raises(UsageError, match="cannot name a space"):
        project(store, connection, space="../joint", datasets=[sounds])
    project(store, connection, datasets=[sounds])
    other = load_connection(connect(store, config(ridge_strength=0.5), name="other").path)
    with pytest.raises(MismatchError, match="space joint holds"):
        project(store, other)
    project(store, other, space="other")
    unsaved = Connection(
        connection.record.model_copy(update={"model_sha256": ""}), connection.projectors
    )
    with pytest.raises(UsageError, match="never saved"):
        project(store, unsaved)


def test_an_unfinished_or_changed_source_is_refused(
    store: Path, connection: Connection, tmp_path: Path
) -> None:
    project(store, connection)
    manifest = Key("hear", "audio", "sounds").folder(store) / "manifest.json"
    text = manifest.read_text()
    manifest.write_text(text.replace('"array_sha256": "', '"array_sha256": "0'))
    with pytest.raises(CmcrError, match="built with other settings"):
        project(store, connection)
    manifest.unlink()
    with pytest.raises(StoreError, match="unfinished"):
        project(store, connection)
    with pytest.raises(UsageError, match="nothing to project"):
        project(tmp_path / "empty", connection)


def test_from_the_command_line(store: Path, connection: Connection) -> None:
    def run(*arguments: str | Path) -> Any:
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
        if result.exception:
            raise result.exception
        return result

    done = run(
        *("project", "--connection", "joint", "--store", store, "--device", "cpu"),
        *("--dataset", "hear/audio", "--dataset", "see/text:captions", "--json"),
    )
    assert [line["dataset"] for line in json.loads(done.stdout)["datasets"]] == [
        "joint/audio:sounds",
        "joint/text:see-captions",
    ]
    assert "projected: hear/audio:sounds as joint/audio:sounds, 10 rows" in done.stderr
    index = open_index(open_dataset(store, Key("joint", "audio", "sounds")))
    assert (index.ntotal, index.d) == (ROWS, 6)
    run(
        *("project", "--connection", connection_folder(store), "--store", store),
        *("--space", "elsewhere", "--index", "none", "--dataset", "see/image"),
    )
    pictures = Key("elsewhere", "image", "pictures")
    assert not (pictures.folder(store) / "index.faiss").exists()


def connection_folder(store: Path) -> Path:
    return store / "connections" / "joint"
