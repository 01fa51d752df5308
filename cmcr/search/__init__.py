"""Finding things in a store: what is asked is embedded, projected and compared."""
