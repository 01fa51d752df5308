"""Spans of films and long recordings as a source: pictures at moments, windows of sound."""
