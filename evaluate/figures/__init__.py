"""Drawings of results. Nothing is measured here."""
