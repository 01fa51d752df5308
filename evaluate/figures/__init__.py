"""Figures of results. Nothing is measured here."""
