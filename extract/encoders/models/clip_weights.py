"""open_clip's models with the weights of files that `read_weights` reads, not torch.load.

    model = untrained("ViT-B-32", force_quick_gelu=True)
    fill(model, Path("open_clip_pytorch_model.bin"))

open_clip takes weights by path only and unpickles the file itself. So the model is built without
them, and what `open_clip.factory.load_checkpoint` does to a state dict of another layout is done
here, in its order, with its functions.
"""

import logging
from pathlib import Path
from typing import Any

import torch

from cmcr.weights import read_weights

_POSITIONS = "text.transformer.embeddings.position_ids"  # kept by transformers before 4.31


def untrained(model: str, **options: Any) -> Any:
    """open_clip's model as `open_clip.create_model` builds it, with no weights and no network."""
    import open_clip

    def expected(record: logging.LogRecord) -> bool:
        return "initialized randomly" not in record.getMessage()

    root = logging.getLogger()  # open_clip's
    root.addFilter(expected)
    try:
        return open_clip.create_model(model, pretrained_text=False, **options)
    finally:
        root.removeFilter(expected)


def fill(model: Any, checkpoint: Path) -> None:
    """Load the weights in `checkpoint` into `model`, as `load_checkpoint` does.

    Raises what torch and open_clip raise for weights of another model, WeightsError for a file
    that holds none.
    """
    from open_clip import factory

    if checkpoint.suffix in (".npz", ".npy"):  # of big_vision; NumPy's, and not pickled
        factory.load_checkpoint(model, str(checkpoint))
        return
    state = factory.convert_state_dict(model, read_weights(checkpoint))
    if "positional_embedding" in state and not hasattr(model, "positional_embedding"):
        state = factory.convert_to_custom_text_state_dict(state)
    for name in ("logit_scale", "logit_bias"):  # a number, or a vector of one
        own = getattr(model, name, None)
        if own is not None and name in state:
            state[name] = state[name].reshape(own.shape)
    if getattr(model, "logit_bias", None) is not None and "logit_bias" not in state:
        state["logit_bias"] = torch.zeros_like(state["logit_scale"])
    state.pop(_POSITIONS, None)
    factory.resize_pos_embed(state, model)
    factory.resize_text_pos_embed(state, model)
    model.load_state_dict(state)
