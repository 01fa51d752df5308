"""`cmcr evaluate` and its tasks, one function each."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from cmcr.cli.log.lines import tell as log
from cmcr.cli.terminal.console import say, show_measured, shown, stop_if_missed
from cmcr.cli.terminal.options import Hubness, Hubs, Json, NoRecipe, Recipe, Store, Where
from cmcr.errors import CmcrError, UsageError

if TYPE_CHECKING:
    from cmcr.cli.recipes.ground import Ground
    from cmcr.cli.recipes.tasks import Job, Missed, Task
    from cmcr.evaluate import Evaluated, Row


Place = "SPACE/MODALITY[:DATASET]"

Connection = Annotated[
    str | None, typer.Option(help="Its name or folder.", show_default="the recipe's")
]
Query = Annotated[str | None, typer.Option(metavar=Place, help="What searches.")]
Gallery = Annotated[str | None, typer.Option(metavar=Place, help="What is searched.")]
Regions = Annotated[
    str | None, typer.Option(metavar=Place, help="Regions of pictures, of `extract --regions`.")
]
Prompts = Annotated[
    str | None, typer.Option(metavar="SPACE/text[:DATASET]", help="Prompts with labels.")
]
Truth = Annotated[
    list[Path] | None,
    typer.Option(
        metavar="FILE|DIR",
        help="Where sounds are heard: VGG-SS .json, Flickr-SoundNet's folder of XML, a .csv of "
        "silent pairs, .jsonl. Can be repeated.",
        show_default="columns of the query",
    ),
]


Csv = Annotated[
    str | None, typer.Option("--csv", metavar="FILE", help="Write the results as CSV; - is stdout.")
]
Latex = Annotated[
    str | None,
    typer.Option("--latex", metavar="FILE", help="Write the table as LaTeX; - is stdout."),
]
PerQuery = Annotated[
    Path | None,
    typer.Option("--per-query", metavar="FILE", help="Write how each query did, as Parquet."),
]


class Asked(NamedTuple):
    """The flags that every task takes."""

    connection: str | None
    query: str | None
    query_where: list[str] | None
    store: Path | None
    pipeline: str | None
    no_pipeline: bool
    as_json: bool
    csv: str | None
    latex: str | None
    per_query: Path | None = None

    def ground(self, searched: str | None, task: str = "retrieval") -> "Ground":
        """The recipe that counts and the store, where `searched` is the other dataset.

        Raises UsageError where the results cannot be given as they are asked for.
        """
        from cmcr.cli.recipes.ground import ground_to_measure, recipes

        self._check_outputs()
        pipelines = recipes(self.pipeline, self.no_pipeline)
        places = [self.query, searched]
        return ground_to_measure(
            pipelines, self.pipeline, self.store, self.connection, places, task
        )

    def _check_outputs(self) -> None:
        files = {"--csv": self.csv, "--latex": self.latex, "--per-query": self.per_query}
        if self.per_query == Path("-"):
            raise UsageError("--per-query writes Parquet, not for stdout", fix="name a file")
        printed = [flag for flag, file in files.items() if file == "-"]
        printed += ["--json"] if self.as_json else []
        if len(printed) > 1:
            raise UsageError(
                f"stdout cannot be {' and '.join(printed)} at once", fix="name a file for one"
            )
        for flag, file in files.items():
            if file is not None and Path(file).is_dir():
                raise UsageError(f"{flag} is to be a file", where=file, fix="name a file in it")

    def tell(self, done: "Sequence[Evaluated | Missed]") -> "list[Row]":
        """Print and write the results as they were asked for; gives the rows, if they are shown."""
        from cmcr.cli.recipes.tasks import Missed
        from cmcr.evaluate import results_csv, results_latex
        from cmcr.files import replacing

        tables = "-" not in (self.csv, self.latex)
        show_measured(done, self.as_json, tables)
        found = [one for one in done if not isinstance(one, Missed)]
        rows = [row for one in found for row in one.rows]
        if not tables:
            log("", event="result", results=rows)
        for file, made in ((self.csv, results_csv), (self.latex, results_latex)):
            if file == "-":
                print(made(rows), end="")
            elif file is not None:
                with replacing(Path(file)) as unfinished:
                    unfinished.write_text(made(rows), encoding="utf-8")
        if self.per_query is not None:
            _write_per_query(self.per_query, found)
        return rows if tables and not self.as_json else []

    @property
    def section(self) -> dict[str, Any]:
        """Those of them that a recipe's section has too."""
        return {"query": self.query, "query_where": self.query_where}


def retrieval(
    connection: Connection = None,
    query: Query = None,
    query_where: Where = None,
    gallery: Gallery = None,
    gallery_where: Where = None,
    index: Annotated[
        str | None,
        typer.Option(help="FAISS factory string: an index to measure beside the exact search."),
    ] = None,
    max_memory: Annotated[
        str | None, typer.Option(metavar="4G", help="Choose that index: so large at most.")
    ] = None,
    max_query_time: Annotated[
        str | None, typer.Option(metavar="10ms", help="What a query through it may take.")
    ] = None,
    hubness: Hubness = Hubs.none,
    store: Store = None,
    pipeline: Recipe = None,
    no_pipeline: NoRecipe = False,
    csv: Csv = None,
    latex: Latex = None,
    per_query: PerQuery = None,
    as_json: Json = False,
) -> None:
    """Search one modality in another, both ways, beside chance and the closed forms."""
    from cmcr.cli.recipes.searches import choose_index, measure_indexes
    from cmcr.cli.recipes.tasks import Missed, do_jobs
    from cmcr.evaluate import weak_spots

    choice = choose_index(index, max_memory, max_query_time)
    asked = Asked(
        connection, query, query_where, store, pipeline, no_pipeline, as_json, csv, latex, per_query
    )
    ground, jobs = _searches(asked, gallery, gallery_where)
    if per_query is not None:
        _refuse_without_truth(ground, jobs)
    done = list(do_jobs(ground, "retrieval", jobs, hubness=hubness.value))
    found = [job for job, one in zip(jobs, done, strict=True) if not isinstance(one, Missed)]
    if choice:
        done += measure_indexes(ground, found, choice, hubness.value)
    if spots := weak_spots(asked.tell(done)):
        print(shown(spots))
    stop_if_missed(done)


def gap(
    connection: Connection = None,
    query: Query = None,
    query_where: Where = None,
    gallery: Gallery = None,
    gallery_where: Where = None,
    store: Store = None,
    pipeline: Recipe = None,
    no_pipeline: NoRecipe = False,
    csv: Csv = None,
    latex: Latex = None,
    as_json: Json = False,
) -> None:
    """Distance, alignment and uniformity of two modalities, before and after connecting."""
    from cmcr.cli.recipes.tasks import do_jobs

    asked = Asked(connection, query, query_where, store, pipeline, no_pipeline, as_json, csv, latex)
    ground, jobs = _searches(asked, gallery, gallery_where)
    done = list(do_jobs(ground, "gap", jobs))
    asked.tell(done)
    stop_if_missed(done)


def _searches(
    asked: Asked, gallery: str | None, gallery_where: list[str] | None
) -> tuple["Ground", list["Job"]]:
    """What retrieval and gap are about; the first lines say it."""
    from cmcr.cli.recipes.searches import choose_searches, not_made
    from cmcr.cli.recipes.tasks import names

    ground = asked.ground(gallery)
    flags = asked.section | {"gallery": gallery, "gallery_where": gallery_where}
    jobs = choose_searches(ground, flags, asked.connection)
    say(ground.line("evaluate", *names(jobs)))
    if not (asked.connection or asked.query or gallery):
        for name in not_made(ground):
            say(f"evaluate  the recipe's pairs of {name}, which is not made yet, are left out")
    return ground, jobs


def zero_shot(
    connection: Connection = None,
    query: Query = None,
    query_where: Where = None,
    classes: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|modelnet40", help="Classes to tell apart.", show_default="the gallery's"
        ),
    ] = None,
    templates: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|ulip64|sound|none",
            help="Prompts to average.",
            show_default="the gallery's",
        ),
    ] = None,
    gallery: Prompts = None,
    gallery_where: Where = None,
    store: Store = None,
    pipeline: Recipe = None,
    no_pipeline: NoRecipe = False,
    csv: Csv = None,
    latex: Latex = None,
    per_query: PerQuery = None,
    as_json: Json = False,
) -> None:
    """Classify items by the prompts nearest to them, without training examples."""
    flags = {"gallery": gallery, "gallery_where": gallery_where}
    asked = Asked(
        connection, query, query_where, store, pipeline, no_pipeline, as_json, csv, latex, per_query
    )
    _evaluate("zero_shot", asked, gallery, flags | {"classes": classes, "templates": templates})


def localization(
    connection: Connection = None,
    query: Query = None,
    query_where: Where = None,
    regions: Regions = None,
    regions_where: Where = None,
    truth: Truth = None,
    store: Store = None,
    pipeline: Recipe = None,
    no_pipeline: NoRecipe = False,
    csv: Csv = None,
    latex: Latex = None,
    as_json: Json = False,
) -> None:
    """Find the region of a picture that makes a sound."""
    flags = {"regions": regions, "regions_where": regions_where, "truth": truth}
    asked = Asked(connection, query, query_where, store, pipeline, no_pipeline, as_json, csv, latex)
    _evaluate("localization", asked, regions, flags)


def counterfactual(
    connection: Connection = None,
    query: Query = None,
    query_where: Where = None,
    regions: Regions = None,
    regions_where: Where = None,
    truth: Truth = None,
    store: Store = None,
    pipeline: Recipe = None,
    no_pipeline: NoRecipe = False,
    csv: Csv = None,
    latex: Latex = None,
    as_json: Json = False,
) -> None:
    """Tell sounds whose source is in the picture from silent and absent ones."""
    flags = {"regions": regions, "regions_where": regions_where, "truth": truth}
    asked = Asked(connection, query, query_where, store, pipeline, no_pipeline, as_json, csv, latex)
    _evaluate("counterfactual", asked, regions, flags)


def _evaluate(task: "Task", asked: Asked, searched: str | None, flags: dict[str, Any]) -> None:
    from cmcr.cli.recipes.tasks import choose_jobs, do_jobs, names

    ground = asked.ground(searched, task)
    jobs = choose_jobs(ground, task, asked.section | flags, asked.connection)
    say(ground.line("evaluate", *names(jobs)))
    done = list(do_jobs(ground, task, jobs))
    asked.tell(done)
    stop_if_missed(done)


def _write_per_query(file: Path, done: "Sequence[Evaluated]") -> None:
    import pyarrow.parquet as pq

    from cmcr.evaluate import PER_QUERY_FILES, write_per_query

    files = [(one.folder, PER_QUERY_FILES.get(one.rows[0]["task"])) for one in done]
    there = [folder / name for folder, name in dict.fromkeys(files) if name]
    if not there:
        raise _no_number(done[0].rows[0].get("unknown", "no truth") if done else "no result")
    opened = map(pq.ParquetFile, there)
    write_per_query(
        file, (one.read_row_group(at) for one in opened for at in range(one.num_row_groups))
    )


def _refuse_without_truth(ground: "Ground", jobs: "Sequence[Job]") -> None:
    """Raise CmcrError where no job can say how a query did; what fails otherwise is told later."""
    from cmcr.cli.recipes.tasks import arguments, selections
    from cmcr.evaluate import why_no_truth

    reasons = []
    for job in jobs:
        try:
            store, _, query, gallery = arguments(ground, job)
            reasons.append(why_no_truth(store, query, gallery, **selections(job)))
        except CmcrError:
            return
    if reasons and all(reasons):
        raise _no_number(reasons[0])


def _no_number(why: str) -> CmcrError:
    return CmcrError(
        f"there is no number of a query: nothing says what matches: {why}",
        fix="give both datasets labels or groups, or neither and the same ids",
    )
