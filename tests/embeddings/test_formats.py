"""Every format that was ever written is still read, or upgraded; a newer one is named as such.

tests/embeddings/formats holds a store as earlier versions of cmcr wrote it, and what they made of
the vectors
`see` in expected.json: `format-1-…` with the last commit of that format.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner, Result

from cmcr.cli.app import app
from cmcr.connect import load_connection
from cmcr.connect.connection.record import FORMAT
from cmcr.embeddings import (
    Description,
    Key,
    list_datasets,
    open_dataset,
    open_index,
    verify_store,
)
from cmcr.embeddings.schema import SCHEMA_VERSION
from cmcr.embeddings.writer import begin
from cmcr.errors import VersionError
from cmcr.evaluate import write_report
from cmcr.extract.lookup import find_media

HERE = Path(__file__).parent / "formats"
EXPECTED = json.loads((HERE / "expected.json").read_text())
CAPTIONS = Key("see", "text", "captions")


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A copy of the store of format 1, with connections of formats 1 and 2."""
    return Path(shutil.copytree(HERE / "store-1", tmp_path / "store"))


def rewrite(path: Path, **fields: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def projected(store: Path, name: str) -> torch.Tensor:
    connection = load_connection(store / "connections" / name)
    return connection.project("see", torch.tensor(EXPECTED["see"]), "text")


def test_there_is_a_fixture_of_each_format() -> None:
    assert (HERE / f"store-{SCHEMA_VERSION}").is_dir()
    for number in range(1, FORMAT + 1):
        assert list(HERE.glob(f"store-*/connections/format-{number}-*"))


def test_a_store_of_format_1_is_read(store: Path) -> None:
    assert len(list_datasets(store)) == 4
    assert [verdict.problem for verdict in verify_store(store)] == [None] * 4
    dataset = open_dataset(store, CAPTIONS)
    assert dataset.embeddings().shape == (8, 4)
    assert dataset.table(["text"])["text"].to_pylist()[3] == "text 3"
    assert open_index(dataset).ntotal == 8


@pytest.mark.parametrize("name", ["format-2-mlp", "format-2-chain"])
def test_a_connection_of_format_2_is_read(store: Path, name: str) -> None:
    torch.testing.assert_close(projected(store, name), torch.tensor(EXPECTED[name]))


@pytest.mark.parametrize("name", ["format-1-mlp", "format-1-ridge"])
def test_a_connection_of_format_1_is_upgraded(store: Path, name: str) -> None:
    with pytest.raises(VersionError, match=r"an older cmcr \(format 1, this one reads 2\)") as old:
        load_connection(store / "connections" / name)
    assert "cmcr upgrade" in str(old.value)
    weights = (store / "connections" / name / "model.safetensors").read_bytes()
    told = {
        line["name"]: line for line in json.loads(run("upgrade", store, "--json").stdout)["found"]
    }
    assert (told[name]["format"], told[name]["state"]) == (1, "upgraded")
    assert told["see/text:captions"]["state"] == "current"
    torch.testing.assert_close(projected(store, name), torch.tensor(EXPECTED[name]))
    assert (store / "connections" / name / "model.safetensors").read_bytes() == weights
    again = run("upgrade", store)
    assert again.exit_code == 0
    assert "upgraded" not in again.stdout
    assert run("verify", store).exit_code == 0


def test_what_cannot_be_upgraded_is_named_and_stops_nothing(store: Path) -> None:
    damaged = store / "connections/format-1-mlp/config.json"
    rewrite(damaged, config={})
    rewrite(store / "connections/format-2-mlp/config.json", format=3, new={})
    rewrite(CAPTIONS.folder(store) / "manifest.json", schema_version=2, new={})
    (Key("feel", "image", "photos").folder(store) / "manifest.json").unlink()
    done = run("upgrade", store)
    assert done.exit_code == 1
    for line in ("format-1-ridge 1 upgraded", "format-1-mlp 1 damaged", "format-2-mlp 3 newer",
                 "see/text:captions 2 newer", "feel/image:photos unfinished"):  # fmt: skip
        assert any(line in " ".join(row.split()) for row in done.stdout.splitlines())
    assert "cannot be read" in done.stderr
    assert "run the `cmcr connect` that made it again" in done.stderr
    assert "upgrade cmcr" in done.stderr


@pytest.mark.parametrize("field", ["part_bytes", None])
def test_what_a_newer_cmcr_wrote_is_not_called_damaged(store: Path, field: str | None) -> None:
    """Fields that are not known here come with a newer version, whose number says so first."""
    more = {field: 1} if field else {}
    rewrite(CAPTIONS.folder(store) / "manifest.json", schema_version=2, **more)
    rewrite(store / "connections/format-2-mlp/config.json", format=3, **more)
    run("upgrade", store)
    with pytest.raises(VersionError, match=r"a newer cmcr \(format 2, this one reads 1\)") as newer:
        open_dataset(store, CAPTIONS)
    assert newer.value.fix == "upgrade cmcr"
    info = json.loads(run("info", store, "--json").stdout)
    problems = [line.get("problem") for line in info["datasets"] + info["connections"]]
    assert len(problems) == 8
    assert sum(problem is not None for problem in problems) == 2
    assert "newer cmcr" in run("info", store).stdout
    verified = run("verify", store)
    assert verified.exit_code == 1
    assert "damaged" not in verified.stderr
    assert verified.stderr.count("ok       ") == 6
    page = write_report(store, store / "report.html", find_media).read_text()
    assert page.count("a newer cmcr") == 2


def test_a_dataset_that_a_newer_cmcr_began_is_not_taken_up(tmp_path: Path) -> None:
    description = Description(space="a", modality="text", dataset="b", dim=2, part_rows=1,
                              encoder={}, source={})  # fmt: skip
    folder = begin(tmp_path, description)
    rewrite(folder / ".description.json", schema_version=2, new=1)
    with pytest.raises(VersionError, match="a newer cmcr"):
        begin(tmp_path, description)


def test_a_damaged_connection_hides_no_other(store: Path) -> None:
    (store / "connections/format-2-mlp/config.json").write_text('{"format": 2, "mo')
    run("upgrade", store)
    told = json.loads(run("info", store, "--json").stdout)["connections"]
    assert [line["connection"] for line in told if "problem" not in line] == [
        "format-1-mlp", "format-1-ridge", "format-2-chain",
    ]  # fmt: skip


@pytest.mark.parametrize("command", ["info", "verify", "report", "upgrade"])
def test_a_folder_that_is_no_store_is_refused(tmp_path: Path, store: Path, command: str) -> None:
    (tmp_path / "photos").mkdir()
    done = run(command, tmp_path / "photos")
    assert done.exit_code != 0
    assert "is no store" in str(done.exception)
    assert not list((tmp_path / "photos").iterdir())
    assert str(store) in str(run(command, tmp_path).exception)
