"""The contract between the stages: Parquet parts, a manifest, and a FAISS index over them.

STORE/space=clap/modality=audio/dataset=esc10/{part-00000.parquet, ..., manifest.json}
"""

from cmcr.embeddings.importer import import_embeddings
from cmcr.embeddings.index import build_index, index_is_current, open_index
from cmcr.embeddings.reader import Dataset, list_datasets, open_dataset, stray_folders
from cmcr.embeddings.schema import (
    MODALITIES,
    Description,
    Key,
    Manifest,
    Modality,
    check_modality,
    identity,
)
from cmcr.embeddings.verify import check_store, describe_store, verify_store

__all__ = [
    "MODALITIES",
    "Dataset",
    "Description",
    "Key",
    "Manifest",
    "Modality",
    "build_index",
    "check_modality",
    "check_store",
    "describe_store",
    "identity",
    "import_embeddings",
    "index_is_current",
    "list_datasets",
    "open_dataset",
    "open_index",
    "stray_folders",
    "verify_store",
]
