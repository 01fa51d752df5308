"""Stage 1: media through a frozen encoder into embedding shards.

sources ─▶ decode ─▶ encoder ─▶ STORE/space=…/modality=…/dataset=…/part-…….parquet
"""

from cmcr.extract.cluster.actors import RayEngine
from cmcr.extract.contract import PROMISES, check_encoder
from cmcr.extract.embed import extract, revisit
from cmcr.extract.encoders.registry import (
    Encoder,
    EncoderSpec,
    encoder_spec,
    load_encoder,
    registered,
)
from cmcr.extract.engine.encode import encode_batch
from cmcr.extract.engine.processes import Worker
from cmcr.extract.engine.processes import start as start_worker
from cmcr.extract.engine.summary import Summary
from cmcr.extract.engine.workers import (
    Decoding,
    TimedOut,
    WorkerKilled,
    niceness,
    workers_kept,
)
from cmcr.extract.items import Item, Waveform
from cmcr.extract.lookup import find_media, lookup_imports
from cmcr.extract.media.readers import Reader, is_textual
from cmcr.extract.prepare.prepare import Prepared, prepare_dataset
from cmcr.extract.prepare.published import Published
from cmcr.extract.prepare.sets.catalogue import published_sets
from cmcr.extract.preview import Preview, preview_extraction
from cmcr.extract.queries import (
    Asked,
    embed_items,
    encoder_name,
    open_encoder,
    read_queries,
    refuse_failures,
)
from cmcr.extract.regions.boxes import open_regions
from cmcr.extract.sources.folders import is_of
from cmcr.extract.sources.open import open_source
from cmcr.extract.sources.plans import write_plan
from cmcr.extract.sources.source import Source
from cmcr.extract.spans.open import Frames, open_spans

__all__ = [
    "PROMISES",
    "Asked",
    "Decoding",
    "Encoder",
    "EncoderSpec",
    "Frames",
    "Item",
    "Prepared",
    "Preview",
    "Published",
    "RayEngine",
    "Reader",
    "Source",
    "Summary",
    "TimedOut",
    "Waveform",
    "Worker",
    "WorkerKilled",
    "check_encoder",
    "embed_items",
    "encode_batch",
    "encoder_name",
    "encoder_spec",
    "extract",
    "find_media",
    "is_of",
    "is_textual",
    "load_encoder",
    "lookup_imports",
    "niceness",
    "open_encoder",
    "open_regions",
    "open_source",
    "open_spans",
    "prepare_dataset",
    "preview_extraction",
    "published_sets",
    "read_queries",
    "refuse_failures",
    "registered",
    "revisit",
    "start_worker",
    "workers_kept",
    "write_plan",
]
