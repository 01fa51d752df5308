"""One file an encoder, and the registry. No source and no store is known here."""
