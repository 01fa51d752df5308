"""The sources that come with the package: `--source MODALITY=builtin:NAME`.

    digits/phrases                            text    phrases about digits
    digits/handwriting-train, …-test          image   real handwriting, PNG
    digits/speech-train, …-test               audio   synthetic speech, FLAC

Each item is labelled with its digit. An id starts with the kind of the item, so that a picture
and a recording never share one.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

from cmcr.embeddings.schema import Modality
from cmcr.extract.digits import Split, handwriting, speech
from cmcr.extract.digits.phrases import phrases
from cmcr.extract.items import Item


@dataclass(frozen=True, slots=True)
class Builtin:
    """A source that needs no file of the user's."""

    modality: Modality
    read: Callable[[], Iterator[Item]]

    def sha256(self) -> str:
        """Hex digest of everything that it yields: reads it once, which takes well under 1 s."""
        digest = hashlib.sha256()
        for item in self.read():
            digest.update(repr((item.id, item.content, item.label)).encode())
        return digest.hexdigest()


def read_phrases() -> Iterator[Item]:
    """Every phrase, whatever it fits."""
    for index, phrase in enumerate(phrases()):
        name = f"phrase-{index:04d}"
        uri = f"builtin:digits/phrases#{name}"
        yield Item(name, uri, phrase.text, label=(str(phrase.digit),))


def read_handwriting(split: Split) -> Iterator[Item]:
    """The pictures of one split."""
    for picture in handwriting.pictures(split):
        name = f"handwriting-{picture.index:04d}"
        uri = f"builtin:digits/handwriting-{split}#{name}"
        yield Item(name, uri, picture.png(), label=(str(picture.digit),))


def read_speech(split: Split) -> Iterator[Item]:
    """The clips of one split, with their voice."""
    for clip in speech.clips(split):
        uri = f"builtin:digits/speech-{split}#{clip.id}"
        label = (str(clip.digit),)
        yield Item(clip.id, uri, clip.audio, label=label, extra={"voice": clip.voice})


BUILTIN: Mapping[str, Builtin] = {
    "digits/phrases": Builtin("text", read_phrases),
    "digits/handwriting-train": Builtin("image", partial(read_handwriting, "train")),
    "digits/handwriting-test": Builtin("image", partial(read_handwriting, "test")),
    "digits/speech-train": Builtin("audio", partial(read_speech, "train")),
    "digits/speech-test": Builtin("audio", partial(read_speech, "test")),
}
