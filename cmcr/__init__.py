"""cmcr: connect pretrained multi-modal contrastive representations without paired data.

    import cmcr

    connection = cmcr.load_connection("stores/digits/connections/digits")   # or OWNER/NAME
    joint = connection.project("digits-clap", embeddings)                   # (n, joint), unit norm

Importing it loads nothing; `load_connection` is fetched from `cmcr.connect` when it is asked for.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cmcr.connect import load_connection
else:

    def __getattr__(name: str) -> object:
        if name != "load_connection":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from cmcr.connect import load_connection

        return load_connection


__version__ = "0.1.0"
__all__ = ["__version__", "load_connection"]
