"""The two spaces as data: rows, pairs, and pseudo partners. Nothing here has weights."""
