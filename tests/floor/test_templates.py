"""Prompts as a source of texts, and the lists they are made of.

pytest tests/floor/test_templates.py
"""

import pytest

from cmcr.errors import UsageError
from cmcr.extract import extract, open_source
from cmcr.templates import fill, read_classes, read_templates


def test_the_lists_that_ship():
    classes, templates = read_classes("modelnet40"), read_templates("ulip64")
    assert (len(set(classes)), len(set(templates))) == (40, 64)
    assert {"night stand", "xbox"} < set(classes)
    assert templates[0] == "a point cloud model of {}."
    assert all(template.count("{}") == 1 for template in templates)
    assert read_templates("none") == ("{}",)


def test_modelnet40_in_every_template():
    source = open_source("text", "builtin:prompts/modelnet40")
    items = list(source.items())
    assert source.total == len(items) == 40 * 64
    assert len({item.id for item in items}) == len(items)
    assert source.columns == ("template",)
    assert items[0].content == "a point cloud model of airplane."
    assert items[0].label == ("airplane",)
    assert items[65].content == "There is a bathtub in the scene."
    same = open_source("text", "prompts:modelnet40:ulip64")
    assert same.description["sha256"] == source.description["sha256"]


def test_lists_of_ones_own(tmp_path):
    classes, templates = tmp_path / "classes.txt", tmp_path / "templates.txt"
    classes.write_text("owl\n\n  night stand \n")
    templates.write_text("a {}\nthe {} {}, {sic}\n")
    source = open_source("text", f"prompts:{classes}:{templates}")
    texts = [(item.content, item.label, item.extra["template"]) for item in source.items()]
    assert texts == [
        ("a owl", ("owl",), "a {}"),
        ("the owl owl, {sic}", ("owl",), "the {} {}, {sic}"),
        ("a night stand", ("night stand",), "a {}"),
        ("the night stand night stand, {sic}", ("night stand",), "the {} {}, {sic}"),
    ]
    bare = open_source("text", f"prompts:{classes}:none")
    assert [item.content for item in bare.items()] == ["owl", "night stand"]
    classes.write_text("owl\nrat\n")
    changed = open_source("text", f"prompts:{classes}:{templates}")
    assert changed.description["sha256"] != source.description["sha256"]


def test_prompts_become_a_dataset(tmp_path, encoder):
    source = open_source("text", "prompts:modelnet40:none")
    extract(tmp_path, encoder, source, "names", space="bytes", workers=0)
    from cmcr.embeddings import Key, open_dataset

    table = open_dataset(tmp_path, Key("bytes", "text", "names")).table(["label", "template"])
    assert table["label"].to_pylist()[:2] == [["airplane"], ["bathtub"]]
    assert set(table["template"].to_pylist()) == {"{}"}


def test_wrong_lists(tmp_path):
    twice, empty, flat = (tmp_path / name for name in ("twice.txt", "empty.txt", "flat.txt"))
    twice.write_text("owl\nrat\nowl\n")
    empty.write_text("\n")
    flat.write_text("a photo\n")
    for where, message in (
        (f"prompts:{twice}:none", "'owl' twice"),
        (f"prompts:{empty}:none", "has no classes"),
        (f"prompts:modelnet40:{flat}", "no place for the class name"),
        ("prompts:modelnet40:nowhere.txt", "templates cannot be read"),
        ("prompts:modelnet40", "is not prompts:CLASSES:TEMPLATES"),
        ("builtin:prompts/nothing", "no prompts named"),
    ):
        with pytest.raises(UsageError, match=message):
            open_source("text", where)
    with pytest.raises(UsageError, match="prompts are text, not image"):
        open_source("image", "builtin:prompts/modelnet40")


def test_other_braces_stay():
    assert fill("{} {0} {x}", "owl") == "owl {0} {x}"
