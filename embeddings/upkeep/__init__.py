"""Upkeep of a store: datasets are renamed, removed, merged and measured."""
