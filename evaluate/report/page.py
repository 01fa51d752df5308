"""The page: gathers what each section shows, and renders the template.

write_report(store, store / "report.html", find_media)
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from importlib.resources import files
from itertools import groupby
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cmcr.embeddings import Key, open_dataset
from cmcr.errors import CmcrError
from cmcr.evaluate.figures.joint_space import LEAST_POINTS, Cloud, cloud_of
from cmcr.evaluate.inputs.items import select
from cmcr.evaluate.report.charts import (
    Chart,
    bar_chart,
    joint_space_charts,
    line_chart,
    loss_charts,
)
from cmcr.evaluate.report.examples import Answer, Gallery, answers, galleries
from cmcr.evaluate.report.inventory import (
    ConnectionFacts,
    Evaluation,
    Inventory,
    take_inventory,
)
from cmcr.evaluate.report.previews import Find
from cmcr.evaluate.report.tables import (
    Table,
    accuracy_table,
    class_tables,
    confusion_table,
    failure_tables,
    hub_tables,
    result_tables,
)
from cmcr.evaluate.report.words import verdict
from cmcr.evaluate.results import Row, filters_line, rows_of_connection
from cmcr.evaluate.tasks.counterfactual import LOCALISED, precision_recall
from cmcr.evaluate.tasks.localization import THRESHOLDS, success_rates
from cmcr.files import write_text

_MOST_POINTS = 20_000
_MARKS = {"audio": "●", "image": "■", "pointcloud": "▲", "text": "◆"}  # of joint_space.py


@dataclass
class TaskSection:
    """What is shown of one evaluation."""

    task: str
    problem: str = ""
    tables: Sequence[Table] = ()
    charts: Sequence[Chart] = ()
    caption: str = ""  # of the charts
    confusion: Table | None = None
    details: Sequence[Table] = ()
    galleries: Sequence[Gallery] = ()
    answers: Sequence[Answer] = ()
    problems: list[str] = field(default_factory=list)

    @property
    def every_table(self) -> list[Table]:
        """All of its tables in the order of the page."""
        confusion = [] if self.confusion is None else [self.confusion]
        return [*self.tables, *confusion, *self.details]


@dataclass
class PairSection:
    """Two datasets and all that was evaluated about the same rows of them."""

    title: str
    joint_space: Sequence[Chart]
    marks: str  # what its marks stand for
    missing: str  # why there is no map
    tasks: Sequence[TaskSection]


@dataclass
class ConnectionSection:
    """A connection, its training, and its results pair by pair."""

    facts: ConnectionFacts
    verdict: str  # how well it works, in one sentence
    training: Sequence[Chart]
    pairs: Sequence[PairSection]


def write_report(store: Path, out: Path, find: Find, connection: str | None = None) -> Path:
    """Write the page about `store` to `out`; about `connection` alone where one is named.

    `find(modality, uris)` gives what each uri decodes to, or an exception. Raises UsageError for a
    store or a connection that is not there.
    """
    inventory = take_inventory(store, connection)
    sections = [_connection(store, facts, find) for facts in inventory.connections]
    write_text(out, render(inventory, sections))
    return out


def render(inventory: Inventory, sections: Sequence[ConnectionSection]) -> str:
    """The page as HTML. What comes from the store is escaped."""
    return render_template("page.html", inventory=inventory, sections=sections)


def render_template(name: str, **content: object) -> str:
    """A template with `content`, the style, the script and the version in it; all else escaped."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("cmcr.evaluate.report", "template"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    here = files("cmcr.evaluate.report") / "template"
    return environment.get_template(name).render(
        **content,
        style=(here / "style.css").read_text("utf-8"),
        script=(here / "script.js").read_text("utf-8"),
        version=version("cmcr"),
    )


def _connection(store: Path, facts: ConnectionFacts, find: Find) -> ConnectionSection:
    pairs = []
    for _, evaluations in groupby(facts.evaluations, key=lambda one: (one.folder, one.filters)):
        pairs.append(_pair(store, facts, list(evaluations), find))
    return ConnectionSection(facts, verdict(facts.evaluations), loss_charts(facts.training), pairs)


def _pair(
    store: Path, facts: ConnectionFacts, evaluations: Sequence[Evaluation], find: Find
) -> PairSection:
    rows = [row for evaluation in evaluations for row in evaluation.rows]
    tasks = [_task(store, evaluation, find) for evaluation in evaluations]
    if not rows:
        return PairSection(evaluations[0].folder.name, (), "", "", tasks)
    charts: Sequence[Chart] = ()
    missing = ""
    if any(evaluation.task in ("retrieval", "gap") for evaluation in evaluations):
        try:
            charts = joint_space_charts(_clouds(store, facts, evaluations))
        except CmcrError as error:
            missing = error.what
    one, other = rows[0]["query"], rows[0]["gallery"]
    modalities = dict.fromkeys([Key.parse(one).modality, Key.parse(other).modality])
    marks = " and ".join(f"{_MARKS.get(modality, '✚')} {modality}" for modality in modalities)
    filters = filters_line(evaluations[0].filters)
    title = f"{one} and {other}" + (f", {filters}" if filters else "")
    return PairSection(title, charts, marks, missing, tasks)


def _clouds(
    store: Path, facts: ConnectionFacts, evaluations: Sequence[Evaluation]
) -> tuple[Cloud, Cloud]:
    """The items that the numbers beside them are about."""
    connection = facts.connection
    if connection is None:
        raise CmcrError(facts.problem)
    evaluation = next(one for one in evaluations if one.rows)
    clouds = []
    for place, where in (
        (evaluation.rows[0]["query"], evaluation.where("query")),
        (evaluation.rows[0]["gallery"], evaluation.where("gallery")),
    ):
        items = select(open_dataset(store, Key.parse(place)), where).spread(_MOST_POINTS)
        if len(items.rows) < LEAST_POINTS:
            raise CmcrError(f"{place} has fewer than {LEAST_POINTS} items")
        connection.check(items.key.space, items.dataset.encoder_identity)
        clouds.append(cloud_of(connection, items))
    return clouds[0], clouds[1]


def _task(store: Path, evaluation: Evaluation, find: Find) -> TaskSection:
    """The section of one task; what of it cannot be read becomes one of its problems."""
    section = TaskSection(evaluation.task, evaluation.problem)
    if not evaluation.rows:
        return section
    section.tables = result_tables(evaluation.rows)
    try:
        _fill(section, store, evaluation, find)
    except (CmcrError, OSError, pa.ArrowException) as error:
        section.problems.append(str(error).partition("\n")[0])
    return section


def _fill(section: TaskSection, store: Path, evaluation: Evaluation, find: Find) -> None:
    rows, folder = evaluation.rows, evaluation.folder
    row = rows_of_connection(rows)[0]
    if section.task == "retrieval":
        section.details = [*class_tables(rows), *failure_tables(rows), *hub_tables(rows)]
        section.galleries = list(galleries(store, folder, rows, find))
    elif section.task == "zero-shot":
        section.confusion = confusion_table(folder)
        section.details = [accuracy_table(folder)]
    elif section.task == "gap":
        section.charts = _gap_charts(rows, row["model"])
        section.caption = (
            "Before: the embeddings as they were extracted. One way; the tables have both."
        )
    elif section.task in ("localization", "counterfactual"):
        section.charts = [_answer_chart(section.task, folder, row["model"])]
        section.caption = "The connection alone; the table has every model."
        section.answers = answers(store, folder, section.task, row, find)


def _gap_charts(rows: Sequence[Row], connection: str) -> list[Chart]:
    charts = []
    one_way = [row for row in rows if row["query"] == rows[0]["query"]]
    for name in ("distance", "alignment"):
        values = {row["model"]: row["metrics"][name] for row in one_way if name in row["metrics"]}
        if values:
            title = f"{name.capitalize()} of the two modalities, less is nearer"
            charts.append(bar_chart(values, connection, title))
    return charts


def _answer_chart(task: str, folder: Path, model: str) -> Chart:
    columns = ["ciou", "visible", "cosine"]
    table = pq.read_table(folder / f"{task}.parquet", columns=columns, partitioning=None)
    ciou = table["ciou"].to_numpy()
    if task == "localization":
        title = f"Success rate of {model} by the cIoU asked for"
        return line_chart(THRESHOLDS, success_rates(ciou), ("cIoU", "success rate"), title, {})
    visible = np.array(table["visible"].to_pylist(), bool)
    localised = (ciou >= LOCALISED).astype(float)
    curve = precision_recall(table["cosine"].to_numpy(), localised, visible)
    title = f"Precision over recall of {model}, by confidence"
    return line_chart(curve.recall, curve.precision, ("recall", "precision"), title, {})
