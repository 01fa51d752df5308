"""cmcr: connect pretrained multi-modal contrastive representations without paired data.

    import cmcr

    connection = cmcr.load_connection("stores/digits/connections/digits")   # or OWNER/NAME
    joint = connection.project("digits-clap", embeddings)                   # (n, joint), unit norm
    rows = cmcr.evaluate(joint, others)                                     # how well they match

Importing it loads nothing; what is named below is fetched when it is asked for.
"""

from typing import TYPE_CHECKING

__version__ = "0.1.0"
__all__ = [
    "__version__",
    "connect",
    "embeddings",
    "errors",
    "evaluate",
    "extract",
    "fit",
    "load_connection",
    "open_store",
    "quiet",
]

if TYPE_CHECKING:
    from cmcr.connect import fit, load_connection
    from cmcr.evaluate import Evaluate
    from cmcr.progress import quiet
    from cmcr.search.store import open_store

    evaluate: Evaluate  # a package that can be called
else:

    def __getattr__(name: str) -> object:
        from importlib import import_module

        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        homes = {
            "fit": "cmcr.connect",
            "load_connection": "cmcr.connect",
            "open_store": "cmcr.search.store",
            "quiet": "cmcr.progress",
        }
        if name in homes:
            return getattr(import_module(homes[name]), name)
        return import_module(f"cmcr.{name}")

    def __dir__() -> list[str]:
        return sorted(__all__)
