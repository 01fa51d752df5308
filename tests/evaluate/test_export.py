"""Results as CSV and as LaTeX, with names of any kind.

pytest tests/evaluate/test_export.py
"""

import io
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest

from cmcr.evaluate import results_csv, results_latex, write_per_query
from cmcr.evaluate.inputs.classes import ClassItems
from cmcr.evaluate.results import Row, counts_line
from cmcr.evaluate.tasks.zero_shot import Predictions
from cmcr.evaluate.tasks.zero_shot import per_query as zero_shot_lines

HOSTILE = 'a_b & 50% of {x} ~ #1 ^ $5 "\\end{tabular}"\n=1+1, <b>'


def row(model: str, query: str = "ear/audio:sounds", **more) -> Row:
    metrics = {"hit_rate@1": 0.5, "mAP": 0.25, "mAP@10": 0.2, "median_rank": 3.0, "gallery_size": 9}
    fields = {"dataset": "d", "task": "retrieval", "gallery": "eye/image:photos", "truth": "label"}
    return Row(**{"model": model, "query": query, "metrics": metrics, **fields, **more})


@pytest.fixture
def rows() -> list[Row]:
    better = {"hit_rate@1": 1 / 3, "mAP": 2 / 3, "mAP@10": 0.6, "median_rank": 1.5,
              "gallery_size": 9, "false_positives": 0.0123}  # fmt: skip
    gap = {"task": "gap", "metrics": {"distance": 0.1, "uniformity": -2.5}}
    selected = {side: {"where": {"fold": ["1"]} if side == "query" else {}, "items": 1, "of": 2}
                for side in ("query", "gallery")}  # fmt: skip
    return [
        row("chance"),
        row(HOSTILE, metrics=better, intervals={"mAP": [0.6, 0.7]}, selected=selected),
        row("c-mcr", query=HOSTILE, hubness="nnn"),
        row("before", **gap),
    ]


def test_csv_has_every_number_in_full(rows: list[Row]) -> None:
    text = results_csv(rows)
    read = pa_csv.read_csv(
        io.BytesIO(text.encode()), parse_options=pa_csv.ParseOptions(newlines_in_values=True)
    ).to_pylist()
    assert len(read) == 4
    assert read[1]["model"] == HOSTILE
    assert read[1]["mAP"] == 2 / 3
    assert (read[1]["mAP_low"], read[1]["mAP_high"]) == (0.6, 0.7)
    assert read[0]["mAP_low"] is None
    assert read[3]["mAP"] is None
    assert read[3]["uniformity"] == -2.5
    assert read[1]["false_positives"] == 0.0123
    assert [line["hubness"] for line in read] == ["none", "none", "nnn", "none"]
    assert [line["query_where"] for line in read] == ["", "fold=1", "", ""]
    assert [line["truth"] for line in read] == ["label"] * 4


def test_latex_is_what_the_table_shows(rows: list[Row]) -> None:
    del rows[1]["selected"]
    rows[1]["model"] = "ridge"
    text = results_latex(rows)
    assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}") == 2  # retrieval, gap
    for rule in ("toprule", "midrule", "bottomrule"):
        assert f"\\{rule}" in text
    assert "ridge & 0.333 & \\textbf{0.667} $\\pm$ .050 & \\textbf{1.5} \\\\\n" in text
    assert "mAP @10" not in text  # as in the terminal
    assert "before & \\textbf{0.100} & \\textbf{$-$2.500} \\\\" in text
    assert "% 9 items in the gallery; a match has the same label" in text
    assert "% 0.012 of unrelated pairs score as high as the median match by ridge" in text


def test_latex_escapes_what_comes_from_outside(rows: list[Row]) -> None:
    lines = [line for line in results_latex(rows).splitlines() if not line.startswith("%")]
    ends = [line for line in lines if line.startswith(r"\end{tabular}")]
    assert len(ends) == sum(r"\end{tabular}" in line for line in lines) == 2
    for line in lines:
        bare = re.sub(r"\\[a-z]+(\{\})?|\\[&%$#_{}\\]|\$(-|\\to|\\pm)\$", "", line)
        assert not re.search(r"[%#_~^<>|\"$]", bare), line
        assert bare.count("{") == bare.count("}")
    columns = {line.count("&") - line.count(r"\&") for line in lines if line.endswith(r"\\")}
    assert columns == {0, 2, 3}  # a heading, the gap's two metrics, retrieval's three


def test_lines_of_a_query_have_the_same_columns_however_many_classes(tmp_path: Path) -> None:
    tables = []
    for classes in (2, 6):
        chosen = SimpleNamespace(dataset=SimpleNamespace(table=lambda _: pa.table({"id": ["a"]})))
        items = ClassItems(chosen, np.array([0]), np.eye(classes, dtype=bool)[:1], 0)
        predictions = {"ridge": Predictions(np.array([1]), np.array([0]))}
        tables += zero_shot_lines([row("ridge")], items, predictions)
    write_per_query(tmp_path / "q.parquet", tables)
    written = pq.read_table(tmp_path / "q.parquet").to_pylist()
    assert [line["hit@5"] for line in written] == [None, True]


def test_labels_on_one_side_alone_are_told() -> None:
    unknown = {"truth": "none", "unknown": "labels or groups on one side alone"}
    assert counts_line(row("ridge", **unknown)).endswith("matches: " + unknown["unknown"])
