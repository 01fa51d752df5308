"""Stage 1: media through a frozen encoder into embedding shards.

sources ─▶ decode ─▶ encoder ─▶ STORE/space=…/modality=…/dataset=…/part-…….parquet
"""

from cmcr.extract.encoder import Encoder, EncoderSpec, encoder_spec, load_encoder, registered
from cmcr.extract.items import Item, Waveform
from cmcr.extract.regions import open_regions
from cmcr.extract.run import Summary, extract
from cmcr.extract.sources import Source, open_source

__all__ = [
    "Encoder",
    "EncoderSpec",
    "Item",
    "Source",
    "Summary",
    "Waveform",
    "encoder_spec",
    "extract",
    "load_encoder",
    "open_regions",
    "open_source",
    "registered",
]
