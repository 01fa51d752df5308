"""Arrays in, connection out: the same connection as through a store, and what is refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import cmcr
from cmcr.connect import connect, fit, load_connection, read_config
from cmcr.embeddings import Dataset
from cmcr.errors import CmcrError, MismatchError, SourceError, UsageError

pytestmark = pytest.mark.usefixtures("one_thread")

RANDOM = np.random.default_rng(3)
LATENT = RANDOM.standard_normal((200, 5))
MAPS = {  # isometries, and noise in all dimensions
    space: np.linalg.qr(RANDOM.standard_normal((dim, 5)))[0].T
    for space, dim in {"see": 8, "hear": 6}.items()
}


def seen(space: str, latent: np.ndarray, gap: float = 0.0) -> np.ndarray:
    noise = np.random.default_rng(len(latent)).standard_normal((len(latent), 8))
    view = latent @ MAPS[space]
    return np.asarray(view + 0.05 * noise[:, : view.shape[1]] + gap, dtype=np.float32)


def arrays() -> dict[str, dict[str, Any]]:
    draw = np.random.default_rng(4).standard_normal
    return {
        "see": {"text": seen("see", LATENT), "image": seen("see", draw((90, 5)), 0.3)},
        "hear": {"text": seen("hear", LATENT), "audio": seen("hear", draw((70, 5)), -0.3)},
    }


@pytest.mark.parametrize(
    "settings",
    [
        {"method": "procrustes", "centre": True},
        {"method": "c-mcr", "epochs": 2, "batch_size": 64, "joint_dim": 8},
    ],
    ids=lambda settings: settings["method"],
)
def test_it_is_the_connection_that_a_store_gives(
    make_dataset: Callable[..., Dataset], tmp_path: Path, settings: dict[str, Any]
) -> None:
    given = arrays()
    made = fit(given, via="text", device="cpu", **settings)
    for space, one in given.items():
        for modality, array in one.items():
            make_dataset(f"{space}/{modality}:given", array)
    config = made.config
    assert config is not None
    same = connect(tmp_path / "store", config, name="same").record
    assert (made.record.pairs, made.record.held_out) == (same.pairs, same.held_out)
    stored = load_connection(tmp_path / "store/connections/same")
    for space, modality in (("see", "image"), ("hear", "text")):
        rows = given[space][modality]
        np.testing.assert_allclose(
            made.project(space, rows, modality),
            stored.project(space, rows, modality),
            atol=5e-3,  # that store holds float16
        )


def test_sounds_find_pictures_that_were_never_paired_with_them(tmp_path: Path) -> None:
    made = cmcr.fit(arrays(), via="text", method="procrustes", centre=True)
    latent = np.random.default_rng(5).standard_normal((50, 5))
    sound = made.project("hear", seen("hear", latent, -0.3), "audio")
    picture = made.project("see", seen("see", latent, 0.3), "image")
    found = (sound @ picture.T).argmax(dim=1)
    assert (found == torch.arange(50)).float().mean() > 0.8
    made.save(str(tmp_path / "mine"))
    again = load_connection(tmp_path / "mine").project("see", seen("see", latent, 0.3), "image")
    assert torch.equal(again, picture)


def test_tensors_and_lists_are_arrays_and_nothing_unpaired_is_needed() -> None:
    given = {space: {"text": one["text"]} for space, one in arrays().items()}
    expected = fit(given, via="text", method="ridge").project("see", given["see"]["text"])
    ways: list[Callable[[np.ndarray], Any]] = [
        lambda array: torch.from_numpy(array).requires_grad_(),
        lambda array: array.tolist(),
        lambda array: array.astype(np.float64)[::-1][::-1],
    ]
    others = [{space: {"text": way(one["text"])} for space, one in given.items()} for way in ways]
    for other in others:
        found = fit(other, via="text", method="ridge").project("see", given["see"]["text"])
        assert torch.equal(found, expected)


def change(**changes: Any) -> dict[str, dict[str, Any]]:
    given = arrays()
    for place, array in changes.items():
        space, modality = place.split("_")
        given[space][modality] = array
    return given


NAN = np.full((90, 8), np.nan, dtype=np.float32)


@pytest.mark.parametrize(
    ("given", "settings", "error", "message"),
    [
        (change(see_text=seen("see", LATENT[:-1])), {}, MismatchError, "199 rows, hear has 200"),
        (change(see_image=np.ones((90, 7))), {}, MismatchError, "see/image are \\(n, 8\\)"),
        (change(see_image=NAN), {}, SourceError, "row 0 of the embeddings of see/image"),
        (change(see_Smell=np.ones((9, 8))), {}, UsageError, "'Smell' cannot name a modality"),
        (change(see_text=[[1.0, 2.0], [3.0]]), {}, SourceError, "rows of numbers"),
        (
            change(see_text=np.zeros((0, 8)), hear_text=np.zeros((0, 6))),
            {},
            SourceError,
            "no rows of see/text",
        ),
        (arrays(), {"via": "image"}, UsageError, "hear has no image"),
        (arrays(), {"train": ["captions"]}, UsageError, "the arrays say what train are"),
        (arrays(), {"speed": 9}, UsageError, "no setting 'speed'"),
        (arrays(), {"device": "cuda:99"}, UsageError, "cuda:99"),
        ({"see": arrays()["see"]}, {}, UsageError, "these are 1: see"),
    ],
)
def test_what_does_not_fit_is_told(
    given: dict[str, Any], settings: dict[str, Any], error: type[CmcrError], message: str
) -> None:
    with pytest.raises(error, match=message) as told:
        fit(given, **{"via": "text", "method": "procrustes"} | settings)
    assert told.value.fix


@pytest.mark.parametrize("pairs", [2, 3, 5, 9])
@pytest.mark.parametrize("memory", [True, False])
def test_auto_with_too_few_pairs_to_compare_takes_a_closed_form(pairs: int, memory: bool) -> None:
    given = arrays()
    for one in given.values():
        one["text"] = one["text"][:pairs]
    if not memory:
        given = {space: {"text": one["text"]} for space, one in given.items()}
    made = cmcr.fit(given, via="text")
    assert (made.record.model, made.record.pairs, made.record.validation) == ("cca", pairs, {})
    assert np.isfinite(made.project("see", given["see"]["text"], "text").numpy()).all()


def test_auto_trains_nothing_that_so_few_pairs_could_judge() -> None:
    rows = np.random.default_rng(6).standard_normal
    noise = {space: {"text": rows((20, 8)), other: rows((30, 8))}
             for space, other in (("see", "image"), ("hear", "audio"))}  # fmt: skip
    assert not cmcr.fit(noise, via="text", epochs=2).record.model.startswith("c-mcr")


@pytest.mark.parametrize(
    ("pairs", "settings", "why"),
    [(200, {"validation": 0}, "validation=0 holds no pairs out"), (5, {}, "5 pairs are too few")],
)
def test_auto_says_that_it_compared_nothing(
    make_dataset: Callable[..., Dataset], tmp_path: Path, pairs: int, settings: Any, why: str
) -> None:
    for space in ("see", "hear"):
        make_dataset(f"{space}/text:given", arrays()[space]["text"][:pairs])
    config = read_config({"spaces": ["see", "hear"], "via": "text", "train": ["given"], **settings})
    for fresh in (True, False):
        made = connect(tmp_path / "store", config, name="a")
        assert (made.record.model, made.fresh) == ("cca", fresh)
        (told,) = made.warnings
        assert why in told
        assert "auto took cca" in told
    named = config.model_copy(update={"method": "procrustes"})
    assert not connect(tmp_path / "store", named, name="b").warnings
