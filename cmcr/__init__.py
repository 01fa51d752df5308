"""cmcr: connect pretrained multi-modal contrastive representations without paired data."""

__version__ = "0.1.0"
