"""What `cmcr init` takes a folder's files for.

pytest tests/cli/test_starter.py
"""

from pathlib import Path

from cmcr.cli.recipes.starter import find_sources


def test_a_folder_of_texts_is_not_one_of_point_clouds(tmp_path: Path) -> None:
    files = {"notes/a.txt": "a dog", "notes/b.txt": "5", "shapes/a.txt": "0 0 0\n0 0 1\n"}
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    found = [(source.modality, source.where) for source in find_sources(tmp_path)]
    assert found == [("pointcloud", "shapes/")]
