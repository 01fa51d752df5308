"""The sources that come with the package: `--source MODALITY=builtin:NAME`.

    digits/phrases                            text    phrases about digits
    digits/handwriting-train, …-test          image   real handwriting, PNG
    digits/speech-train, …-test               audio   synthetic speech, FLAC
    digits/shapes-train, …-test               pointcloud   handwriting in three dimensions, npy
    digits/scenes                             image   two to four held-out digits each, PNG
    digits/scene-regions                      image   regions of these, true and distracting
    digits/scene-sounds                       audio   spoken digits that ask where they are

Each item is labelled with its digit, a scene with all that it shows, a distracting region with
none. An id starts with the kind of the item, so that a picture and a recording never share one. A
sound that asks carries the scene's id as `image` and the `boxes` of the digit there, JSON in
fractions, `[]` where it is not shown.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

from cmcr.embeddings.schema import Modality
from cmcr.extract.digits.world import handwriting, scenes, shapes, speech
from cmcr.extract.digits.world.handwriting import Split
from cmcr.extract.digits.world.phrases import phrases
from cmcr.extract.items import Item
from cmcr.extract.media.crops import COLUMNS, PLACES, Crop, crops


@dataclass(frozen=True, slots=True)
class Builtin:
    """A source that needs no file of the user's. `columns` are its own in the store, text but for
    those in `numbers`.
    """

    modality: Modality
    read: Callable[[], Iterator[Item]]
    columns: tuple[str, ...] = ()
    numbers: tuple[str, ...] = ()

    def sha256(self) -> str:
        """Hex digest of everything that it yields: reads it once, which takes well under 1 s."""
        digest = hashlib.sha256()
        for item in self.read():
            known = (item.id, item.content, item.label, sorted(item.extra.items()))
            digest.update(repr(known).encode())
            if isinstance(item, Crop):
                content = item.picture.item.content if item.number == 0 else None
                digest.update(repr((item.box, content)).encode())
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


def read_shapes(split: Split) -> Iterator[Item]:
    """The shapes of one split."""
    for shape in shapes.shapes(split):
        name = f"shape-{shape.index:04d}"
        uri = f"builtin:digits/shapes-{split}#{name}.npy"
        yield Item(name, uri, shape.npy(), label=(str(shape.digit),))


def read_scenes() -> Iterator[Item]:
    """The scenes, with all digits that they show."""
    for scene in scenes.scenes():
        label = tuple(str(digit) for digit, _ in scene.shown)
        yield Item(scene.id, f"builtin:digits/scenes#{scene.id}", scene.png(), label=label)


def read_scene_regions() -> Iterator[Item]:
    """The boxes of the digits in each scene, with their digit, then the distractors."""
    for picture, scene in zip(read_scenes(), scenes.scenes(), strict=True):
        true = [(box, (str(digit),)) for digit, box in scene.shown]
        yield from crops(picture, [*true, *((box, ()) for box in scene.distractors)])


def read_scene_sounds() -> Iterator[Item]:
    """What each scene is asked, with the truth about it."""
    for scene in scenes.scenes():
        for number, question in enumerate(scene.asked):
            name = f"{scene.id}-sound-{number}"
            boxes = json.dumps([] if question.box is None else [question.box])
            yield Item(
                name,
                f"builtin:digits/scene-sounds#{name}",
                question.clip.audio,
                label=(str(question.clip.digit),),
                extra={"voice": question.clip.voice, "image": scene.id, "boxes": boxes},
            )


BUILTIN: Mapping[str, Builtin] = {
    "digits/phrases": Builtin("text", read_phrases),
    "digits/handwriting-train": Builtin("image", partial(read_handwriting, "train")),
    "digits/handwriting-test": Builtin("image", partial(read_handwriting, "test")),
    "digits/speech-train": Builtin("audio", partial(read_speech, "train"), ("voice",)),
    "digits/speech-test": Builtin("audio", partial(read_speech, "test"), ("voice",)),
    "digits/shapes-train": Builtin("pointcloud", partial(read_shapes, "train")),
    "digits/shapes-test": Builtin("pointcloud", partial(read_shapes, "test")),
    "digits/scenes": Builtin("image", read_scenes),
    "digits/scene-regions": Builtin("image", read_scene_regions, COLUMNS, PLACES),
    "digits/scene-sounds": Builtin("audio", read_scene_sounds, ("voice", "image", "boxes")),
}
