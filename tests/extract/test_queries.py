"""The encoder of a store: what to say where its weights are not at a usual place."""

from pathlib import Path

import pytest

from cmcr.errors import EncoderError, UsageError
from cmcr.extract.queries import open_encoder


def test_weights_that_only_a_file_has_are_asked_for_by_space(tmp_path: Path) -> None:
    described = {"encoder": "clip:ViT-S-32-alt"}  # open_clip has no weights of it
    with pytest.raises(UsageError, match="encoder of mine cannot be loaded") as error:
        open_encoder(described, "mine")
    assert (
        error.value.fix == "give the weights that the store was made with: --checkpoint mine=FILE"
    )
    with pytest.raises(EncoderError) as wrong:
        open_encoder(described, "mine", tmp_path / "absent.safetensors")
    assert "encoder of mine" not in wrong.value.what
