"""Regions of pictures as a source. Pictures are cut in `media`."""
