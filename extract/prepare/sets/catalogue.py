"""Every data set that is known here, by its name. A new one is a `Published` in one of them."""

from collections.abc import Mapping

from cmcr.extract.prepare.published import Published
from cmcr.extract.prepare.sets.captions import CAPTIONS
from cmcr.extract.prepare.sets.memories import MEMORIES
from cmcr.extract.prepare.sets.scenes import SCENES
from cmcr.extract.prepare.sets.shapes import SHAPES
from cmcr.extract.prepare.sets.sounds import LABELLED

SETS: Mapping[str, Published] = {
    definition.name: definition
    for definition in (*SCENES, *CAPTIONS, *LABELLED, *SHAPES, *MEMORIES)
}


def published_sets() -> tuple[Published, ...]:
    """All of them, in the order in which they are listed."""
    return tuple(SETS.values())
