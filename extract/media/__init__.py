"""Bytes to a picture, a waveform, points or text, in worker processes. No encoder is known here."""
