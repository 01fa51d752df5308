"""Results for other programs and for papers: CSV with every number, LaTeX as the table shows them.

    print(results_csv(done.rows))      # one line a row of results, numbers in full, with intervals
    print(results_latex(done.rows))    # booktabs; the best of a column in bold

The LaTeX is a `tabular` a task, with a part for each direction, and needs no more than
`\\usepackage{booktabs}`.
"""

import io
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby

import pyarrow as pa
import pyarrow.csv

from cmcr.evaluate.results import (
    WITH_INTERVAL,
    Row,
    best_values,
    counts_line,
    directions,
    filters_line,
    format_value,
    half_width,
    metric_names,
    model_label,
    selected_line,
    shown_metrics,
    sure_line,
)

_TEXT = ("task", "dataset", "model", "hubness", "query", "gallery", "truth")
_SIDES = ("query", "gallery")
_ESCAPED = str.maketrans(
    {character: rf"\{character}" for character in "&%$#_{}"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
       "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", '"': r"\textquotedbl{}"}
)  # fmt: skip


def results_csv(rows: Sequence[Row]) -> str:
    """One line for each of `rows`: what it is about, then its metrics in full.

    A metric with an interval is followed by `NAME_low` and `NAME_high`. `hubness` is "none" or how
    the search was corrected. What a row does not have is empty; which rows of a dataset counted is
    in `query_where` and `gallery_where`.
    """
    texts: list[dict[str, str]] = [
        {"hubness": "none", **{name: str(value) for name, value in row.items() if name in _TEXT}}
        for row in rows
    ]
    for line, row in zip(texts, rows, strict=True):
        chosen = row.get("selected", {})
        line |= {
            f"{side}_where": filters_line(chosen[side]["where"])
            for side in _SIDES
            if side in chosen
        }
    columns: dict[str, pa.Array] = {
        name: pa.array([line.get(name, "") for line in texts], pa.string())
        for name in (*_TEXT, *(f"{side}_where" for side in _SIDES))
    }
    for name in metric_names([row["metrics"] for row in rows]):
        columns[name] = pa.array([row["metrics"].get(name) for row in rows])
        intervals = [row.get("intervals", {}).get(name) for row in rows]
        if any(intervals):
            for at, end in enumerate(("low", "high")):
                ends = [None if one is None else one[at] for one in intervals]
                columns[f"{name}_{end}"] = pa.array(ends, pa.float64())
    file = io.BytesIO()
    options = pyarrow.csv.WriteOptions(quoting_style="needed")
    pyarrow.csv.write_csv(pa.table(columns), file, options)
    return file.getvalue().decode()


def results_latex(rows: Sequence[Row]) -> str:
    """The tables of `rows` in LaTeX: models down, metrics across, ± half of a 95 % interval.

    Directions whose columns are the same share a `tabular`. What stands below a table in the
    terminal is a comment behind it.
    """
    parts = directions(rows)
    tabulars = groupby(parts, key=lambda models: (models[0]["task"], shown_metrics(models)))
    return "% \\usepackage{booktabs}\n" + "\n".join(
        "\n".join(_tabular(task, names, list(group))) + "\n" for (task, names), group in tabulars
    )


def _tabular(task: str, names: Sequence[str], parts: Sequence[Sequence[Row]]) -> Iterator[str]:
    yield f"% {task}"
    yield rf"\begin{{tabular}}{{l{'r' * len(names)}}}"
    yield r"\toprule"
    yield _line(["model", *(name.replace("_", " ").replace("@", " @") for name in names)])
    notes = []
    for models in parts:
        first = models[0]
        yield r"\midrule"
        query, gallery = _escaped(first["query"]), _escaped(first["gallery"])
        yield rf"\multicolumn{{{len(names) + 1}}}{{l}}{{{query} $\to$ {gallery}}} \\"
        yield r"\addlinespace"
        best = best_values([row["metrics"] for row in models])
        yield from (_line_of(row, names, best) for row in models)
        notes += [counts_line(first), sure_line(models), selected_line(first)]
    yield r"\bottomrule"
    yield r"\end{tabular}"
    yield from (f"% {' '.join(note.split())}" for note in dict.fromkeys(notes) if note)


def _line_of(row: Row, names: Sequence[str], best: Mapping[str, float]) -> str:
    cells = []
    for name in names:
        value = row["metrics"].get(name)
        text = "" if value is None else format_value(name, value).replace("-", "$-$")
        if text and value == best.get(name):
            text = rf"\textbf{{{text}}}"
        width = half_width(row.get("intervals", {}).get(name)) if name == WITH_INTERVAL else ""
        cells.append(text + (rf" $\pm$ {width[1:]}" if width else ""))
    return _line([_escaped(model_label(row)), *cells])


def _line(cells: Sequence[str]) -> str:
    return " & ".join(cells) + r" \\"


def _escaped(text: str) -> str:
    """Text of any kind as LaTeX prints it, on one line."""
    shown = "".join(one if one.isprintable() else " " for one in text)
    return shown.translate(_ESCAPED)
