"""Connect two frozen contrastive spaces through the modality that they share.

    from cmcr.connect import connect, load_connection, read_config

    config = read_config({"via": "text", "spaces": ["clip", "clap"], "train": ["captions"]})
    connect(store, config, name="clip-clap")
    load_connection(store / "connections" / "clip-clap").project("clap", embeddings)

It reads embeddings and nothing else: no encoder library is imported here.
"""

from cmcr.connect.chain import Chained, connect_chain
from cmcr.connect.config import ConnectConfig, parse_settings, read_config, with_overrides
from cmcr.connect.connection import Connection, load_connection
from cmcr.connect.data import open_spaces
from cmcr.connect.fit import baselines
from cmcr.connect.memory import aggregate
from cmcr.connect.project import Projected, project_store
from cmcr.connect.published import import_connection, without_data
from cmcr.connect.record import Record
from cmcr.connect.replace import can_be_made_again
from cmcr.connect.run import Connected, connect
from cmcr.connect.upgrade import Found, upgrade_store

__all__ = [
    "Chained",
    "ConnectConfig",
    "Connected",
    "Connection",
    "Found",
    "Projected",
    "Record",
    "aggregate",
    "baselines",
    "can_be_made_again",
    "connect",
    "connect_chain",
    "import_connection",
    "load_connection",
    "open_spaces",
    "parse_settings",
    "project_store",
    "read_config",
    "upgrade_store",
    "with_overrides",
    "without_data",
]
