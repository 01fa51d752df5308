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

if TYPE_CHECKING:
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
else:
    _MODULES = {
        "chain": ["Chained", "connect_chain"],
        "config": ["ConnectConfig", "parse_settings", "read_config", "with_overrides"],
        "connection": ["Connection", "load_connection"],
        "data": ["open_spaces"],
        "fit": ["baselines"],
        "memory": ["aggregate"],
        "project": ["Projected", "project_store"],
        "published": ["import_connection", "without_data"],
        "record": ["Record"],
        "replace": ["can_be_made_again"],
        "run": ["Connected", "connect"],
        "upgrade": ["Found", "upgrade_store"],
    }

    def __getattr__(name: str) -> object:
        from importlib import import_module

        for module, names in _MODULES.items():
            if name in names:
                return getattr(import_module(f"{__name__}.{module}"), name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
