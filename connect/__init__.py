"""Connect two frozen contrastive spaces through the modality that they share.

    from cmcr.connect import connect, load_connection, read_config

    config = read_config({"via": "text", "spaces": ["clip", "clap"], "train": ["captions"]})
    connect(store, config, name="clip-clap")
    load_connection(store / "connections" / "clip-clap").project("clap", embeddings)

It reads embeddings and nothing else: no encoder library is imported here. What is named below is
fetched when it is asked for, so that importing the package does not wait for torch.
"""

from typing import TYPE_CHECKING

__all__ = [
    "TRAINING_LOG",
    "Chain",
    "ConnectConfig",
    "Connected",
    "Connection",
    "Found",
    "JointSpace",
    "Migrated",
    "Projected",
    "Record",
    "SpaceRecord",
    "aggregate",
    "baselines",
    "can_be_made_again",
    "connect",
    "connect_chain",
    "describe_connections",
    "fit",
    "import_connection",
    "load_connection",
    "migrate",
    "parse_settings",
    "project_store",
    "read_config",
    "read_training",
    "remove_connection",
    "rename_connection",
    "upgrade_store",
    "uses_of",
    "with_overrides",
]

if TYPE_CHECKING:
    from cmcr.connect.config import ConnectConfig, parse_settings, read_config, with_overrides
    from cmcr.connect.connection.base import JointSpace
    from cmcr.connect.connection.chain import Chain
    from cmcr.connect.connection.connection import Connection
    from cmcr.connect.connection.load import load_connection
    from cmcr.connect.connection.record import Record, SpaceRecord
    from cmcr.connect.importer import import_connection
    from cmcr.connect.make.arrays import fit
    from cmcr.connect.make.chain import connect_chain
    from cmcr.connect.make.migrate import Migrated, migrate
    from cmcr.connect.make.pair import Connected, connect
    from cmcr.connect.make.project import Projected, project_store
    from cmcr.connect.make.replace import can_be_made_again
    from cmcr.connect.methods.baselines import baselines
    from cmcr.connect.spaces.aggregation import aggregate
    from cmcr.connect.training.log import TRAINING_LOG, read_training
    from cmcr.connect.upgrade import Found, upgrade_store
    from cmcr.connect.upkeep import (
        describe_connections,
        remove_connection,
        rename_connection,
        uses_of,
    )
else:
    _MODULES = {
        "make.arrays": ["fit"],
        "make.pair": ["Connected", "connect"],
        "make.chain": ["connect_chain"],
        "make.migrate": ["Migrated", "migrate"],
        "config": ["ConnectConfig", "parse_settings", "read_config", "with_overrides"],
        "connection.base": ["JointSpace"],
        "connection.chain": ["Chain"],
        "connection.connection": ["Connection"],
        "connection.load": ["load_connection"],
        "connection.record": ["Record", "SpaceRecord"],
        "importer": ["import_connection"],
        "methods.baselines": ["baselines"],
        "make.project": ["Projected", "project_store"],
        "make.replace": ["can_be_made_again"],
        "spaces.aggregation": ["aggregate"],
        "training.log": ["TRAINING_LOG", "read_training"],
        "upgrade": ["Found", "upgrade_store"],
        "upkeep": ["describe_connections", "remove_connection", "rename_connection", "uses_of"],
    }

    def __getattr__(name: str) -> object:
        from importlib import import_module

        for module, names in _MODULES.items():
            if name in names:
                return getattr(import_module(f"{__name__}.{module}"), name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
