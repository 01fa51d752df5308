"""The paper's recipes find all that `cmcr prepare` makes; `make recipes` runs them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from recipes import ENCODERS, MINIATURES, offer

from cmcr.extract import prepare_dataset

Cmcr = Callable[..., Any]


@pytest.fixture
def prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which all data sets are prepared; no weights can be had in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    offer(tmp_path, items=3)
    for name in MINIATURES:
        prepare_dataset(name, [Path("published", name)])
    return tmp_path


@pytest.mark.parametrize("recipe", ENCODERS)
def test_a_recipe_lacks_nothing_but_weights_once_its_data_sets_are_prepared(
    cmcr: Cmcr, prepared: Path, recipe: str
) -> None:
    document, _ = cmcr(f"run {recipe} --check", code=3)
    lacks = document["missing"]
    assert [lack["what"].partition(":")[0] for lack in lacks] == list(ENCODERS[recipe]), lacks
    for lack, encoder in zip(lacks, ENCODERS[recipe], strict=True):
        assert f"--checkpoint {encoder}=FILE" in lack["fix"]
    assert all(one["items"] for one in document["datasets"])


def test_what_is_not_prepared_is_told_with_where_it_is_got(cmcr: Cmcr, prepared: Path) -> None:
    for name in ("clotho", "flickr-extended"):
        (prepared / "data" / name).rename(prepared / name)
    (prepared / "data/vggss/vggss.json").unlink()
    document, _ = cmcr("run clip-clap --check", code=3)
    fixes = [lack["fix"] for lack in document["missing"] if "weights" not in lack["what"]]
    for name, where in {
        "clotho": "zenodo.org",
        "flickr-extended": "stoneMo/SLAVC",
        "vggss": "Localizing-Visual-Sounds-the-Hard-Way",
    }.items():
        (fix,) = (fix for fix in fixes if f"cmcr prepare {name} --from" in fix)
        assert where in fix
    assert len(fixes) == 3
