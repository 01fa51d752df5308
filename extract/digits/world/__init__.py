"""The media that ship: phrases, handwriting, speech, shapes, scenes. No network is known here."""
