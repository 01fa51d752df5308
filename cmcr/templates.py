"""Class names and the templates that turn them into prompts, for zero-shot classification.

    read_classes("modelnet40")         # the 40 names; or a file, one name a line
    read_templates("ulip64")           # the 64 templates; or "sound", or "none"; or a file
    fill("a photo of a {}.", "sofa")   # a photo of a sofa.

Names and templates are those of ULIP (Xue et al., CVPR 2023), whose repository salesforce/ULIP
has them in data/labels.json and data/templates.json (BSD-3-Clause, Salesforce.com, Inc.). `sound`
is what LAION asks CLAP for ESC-50 (LAION-AI/CLAP, experiment_scripts/esc50_api.py, at 36187f0).
`extract` makes texts of them, `evaluate` chooses among the texts, so they lie between the two.
"""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from cmcr.errors import UsageError

BARE = "{}"
MODELNET40 = (
    "airplane", "bathtub", "bed", "bench", "bookshelf", "bottle", "bowl", "car", "chair", "cone",
    "cup", "curtain", "desk", "door", "dresser", "flower pot", "glass box", "guitar", "keyboard",
    "lamp", "laptop", "mantel", "monitor", "night stand", "person", "piano", "plant", "radio",
    "range hood", "sink", "sofa", "stairs", "stool", "table", "tent", "toilet", "tv stand", "vase",
    "wardrobe", "xbox",
)  # fmt: skip
ULIP64 = (
    "a point cloud model of {}.",
    "There is a {} in the scene.",
    "There is the {} in the scene.",
    "a photo of a {} in the scene.",
    "a photo of the {} in the scene.",
    "a photo of one {} in the scene.",
    "itap of a {}.",
    "itap of my {}.",
    "itap of the {}.",
    "a photo of a {}.",
    "a photo of my {}.",
    "a photo of the {}.",
    "a photo of one {}.",
    "a photo of many {}.",
    "a good photo of a {}.",
    "a good photo of the {}.",
    "a bad photo of a {}.",
    "a bad photo of the {}.",
    "a photo of a nice {}.",
    "a photo of the nice {}.",
    "a photo of a cool {}.",
    "a photo of the cool {}.",
    "a photo of a weird {}.",
    "a photo of the weird {}.",
    "a photo of a small {}.",
    "a photo of the small {}.",
    "a photo of a large {}.",
    "a photo of the large {}.",
    "a photo of a clean {}.",
    "a photo of the clean {}.",
    "a photo of a dirty {}.",
    "a photo of the dirty {}.",
    "a bright photo of a {}.",
    "a bright photo of the {}.",
    "a dark photo of a {}.",
    "a dark photo of the {}.",
    "a photo of a hard to see {}.",
    "a photo of the hard to see {}.",
    "a low resolution photo of a {}.",
    "a low resolution photo of the {}.",
    "a cropped photo of a {}.",
    "a cropped photo of the {}.",
    "a close-up photo of a {}.",
    "a close-up photo of the {}.",
    "a jpeg corrupted photo of a {}.",
    "a jpeg corrupted photo of the {}.",
    "a blurry photo of a {}.",
    "a blurry photo of the {}.",
    "a pixelated photo of a {}.",
    "a pixelated photo of the {}.",
    "a black and white photo of the {}.",
    "a black and white photo of a {}",
    "a plastic {}.",
    "the plastic {}.",
    "a toy {}.",
    "the toy {}.",
    "a plushie {}.",
    "the plushie {}.",
    "a cartoon {}.",
    "the cartoon {}.",
    "an embroidered {}.",
    "the embroidered {}.",
    "a painting of the {}.",
    "a painting of a {}.",
)

SOUND = ("This is a sound of {}",)

CLASSES = {"modelnet40": MODELNET40}
TEMPLATES = {"ulip64": ULIP64, "sound": SOUND, "none": (BARE,)}


def fill(template: str, name: str) -> str:
    """The prompt that `template` makes of a class name; other braces stay as they are."""
    return template.replace(BARE, name)


def read_classes(where: str) -> tuple[str, ...]:
    """The class names that `where` gives: "modelnet40", or a text file with one a line.

    Raises UsageError when there is no such file, or it names nothing or a class twice.
    """
    return CLASSES.get(where) or _lines(where, "classes", CLASSES)


def read_templates(where: str) -> tuple[str, ...]:
    """The templates that `where` gives: "ulip64", "sound", "none", or a text file with one a line.

    "none" is the bare class name. Raises UsageError when there is no such file, it holds nothing
    or a template twice, or a template has no {} for the class name.
    """
    templates = TEMPLATES.get(where) or _lines(where, "templates", TEMPLATES)
    for template in templates:
        if BARE not in template:
            raise UsageError(
                f"the template {template!r} has no place for the class name",
                where=where,
                fix="write {} where the name goes",
            )
    return templates


def _lines(where: str, what: str, known: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
    path = Path(where).expanduser()
    fix = f"a text file of {what}, one a line, or {' or '.join(known)}"
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (UnicodeDecodeError, OSError) as error:
        raise UsageError(f"the {what} cannot be read: {error}", where=path, fix=fix) from error
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        raise UsageError(f"the file has no {what}", where=path, fix=fix)
    if twice := [line for line, times in Counter(lines).items() if times > 1]:
        raise UsageError(f"it has {twice[0]!r} twice", where=path, fix="name each once")
    return tuple(lines)
