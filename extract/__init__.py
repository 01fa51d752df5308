"""Stage 1: media through a frozen encoder into embedding shards.

sources ─▶ decode ─▶ encoder ─▶ STORE/space=…/modality=…/dataset=…/part-…….parquet
"""

from cmcr.extract.encoder import Encoder, EncoderSpec, encoder_spec, load_encoder, registered
from cmcr.extract.items import Item, Waveform
from cmcr.extract.preview import Preview, preview_extraction
from cmcr.extract.regions import open_regions
from cmcr.extract.run import extract
from cmcr.extract.sources import Source, open_source
from cmcr.extract.summary import Summary

__all__ = [
    "Encoder",
    "EncoderSpec",
    "Item",
    "Preview",
    "Source",
    "Summary",
    "Waveform",
    "encoder_spec",
    "extract",
    "load_encoder",
    "open_regions",
    "open_source",
    "preview_extraction",
    "registered",
]
