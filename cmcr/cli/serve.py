"""`cmcr serve`: embeddings and search over HTTP, and a page."""

import ipaddress
import logging
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cmcr.cli.terminal.console import answer, say
from cmcr.cli.terminal.options import Device, Json, NoRecipe, Recipe
from cmcr.cli.terminal.options import Store as StoreFolder
from cmcr.errors import CmcrError, UsageError, near

if TYPE_CHECKING:
    from cmcr.search.store import Store

MIB = 1 << 20


def serve(
    encoder: Annotated[
        list[str] | None,
        typer.Option(metavar="SPACE", help="Can be repeated.", show_default="all of the store"),
    ] = None,
    connection: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Can be repeated.", show_default="all of the store"),
    ] = None,
    places: Annotated[
        list[str] | None,
        typer.Option(
            "--in",
            metavar="SPACE/MODALITY[:DATASET]",
            help="What may be searched in. Can be repeated.",
            show_default="all of the store",
        ),
    ] = None,
    media: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FOLDER", help="Media below it are shown to whoever asks. Can be repeated."
        ),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to serve on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free.")] = 8765,
    token_file: Annotated[
        Path | None, typer.Option(help="A file with the bearer token that clients have to send.")
    ] = None,
    no_token: Annotated[
        bool, typer.Option("--no-token", help="Serve anybody, on whatever address.")
    ] = False,
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="Processes that decode.", show_default="one a core"),
    ] = None,
    max_batch: Annotated[int, typer.Option(min=1, help="Inputs encoded at once.")] = 64,
    max_queue: Annotated[int, typer.Option(min=1, help="Inputs in work; more get a 429.")] = 512,
    max_body: Annotated[int, typer.Option(min=1, help="MiB of a request.")] = 32,
    deadline: Annotated[float, typer.Option(min=0.1, help="Seconds for a request.")] = 30,
    drain: Annotated[
        float, typer.Option(min=0, help="Seconds between not being ready and the end.")
    ] = 2,
    checkpoint: Annotated[
        list[str] | None,
        typer.Option(metavar="SPACE=FILE", help="Weights that are not at their usual place."),
    ] = None,
    store: StoreFolder = None,
    device: Device = "auto",
    pipeline: Recipe = None,
    no_pipeline: NoRecipe = False,
    as_json: Json = False,
) -> None:
    """Serve embeddings, search and a page over HTTP, until it is stopped."""
    _check_installed()
    token = _token(token_file)
    local = _is_local(host)
    if not local and token is None and not no_token:
        raise UsageError(
            f"anybody who reaches {host} could use this server",
            fix="--token-file FILE, or --no-token where that is meant",
        )
    from cmcr.cli.recipes.ground import find_checkpoints, ground_to_measure, recipes
    from cmcr.devices import cores, find_device, share_arenas
    from cmcr.search.store import open_store
    from cmcr.serve.http.app import make_app
    from cmcr.serve.http.run import bind, run
    from cmcr.serve.limits import Limits
    from cmcr.serve.service import Service

    share_arenas()
    for folder in media or []:
        if not folder.is_dir():
            raise UsageError("there is no such folder of media", where=folder, fix="see its name")
    recipe = recipes(pipeline, no_pipeline)
    ground = ground_to_measure(recipe, pipeline, store, None, places or [])
    opened = open_store(
        ground.store,
        device=str(find_device(device)),
        checkpoints=find_checkpoints(ground, checkpoint or []),
    )
    with bind(host, port) as bound:
        service = Service(
            opened,
            spaces=_spaces(opened, encoder or []),
            connections=_connections(opened, connection),
            datasets=_datasets(opened, places or []),
            limits=Limits(body=max_body * MIB, queue=max_queue, deadline=deadline,
                          item=min(deadline, Limits.item)),
            workers=workers or cores(),
            batch=max_batch,
            media_roots=media or [],
        )  # fmt: skip
        service.load()
        _log_requests()
        name = f"[{host}]" if ":" in host else host
        url = f"http://{name}:{bound.getsockname()[1]}"

        def told() -> None:
            models = service.models()
            say(f"serve     store {ground.store}: {', '.join(row['id'] for row in models)}")
            say(f"ready     {url} (a page), {url}/docs (the interface); Ctrl-C ends it")
            if as_json:
                answer({"url": url, "store": str(ground.store), "models": models,
                        "datasets": list(service.datasets)})  # fmt: skip

        hosts = {"localhost", "127.0.0.1", "::1", host} if local and token is None else None
        run(make_app(service, token, hosts), service, bound, drain, told)


def _check_installed() -> None:
    try:
        import fastapi  # noqa: F401
        import prometheus_client  # noqa: F401
        import python_multipart  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise UsageError(
            f"the server needs {error.name}, which is not installed",
            fix="pip install 'cmcr[serve]'",
        ) from error


def _log_requests() -> None:
    """A line a request on stderr; --log has it too."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    requests = logging.getLogger("cmcr.serve")
    requests.addHandler(handler)
    requests.setLevel(logging.INFO)


def _token(file: Path | None) -> str | None:
    if file is None:
        return None
    try:
        token = file.read_text().strip()
    except (OSError, ValueError) as error:
        raise UsageError(
            "the token cannot be read", where=file, fix="give a file with one line"
        ) from error
    if len(token) < 16 or not token.isascii() or len(token.split()) != 1:
        raise UsageError(
            "a token is one word of 16 letters or more",
            where=file,
            fix=f"openssl rand -hex 32 > {file}",
        )
    return token


def _is_local(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _spaces(store: "Store", named: Sequence[str]) -> list[str]:
    """The spaces to embed in: those that are named, or all whose encoder is there."""
    from cmcr.embeddings import list_datasets

    there = sorted({key.space for key in list_datasets(store.path)})
    for name in named:
        if name not in there:
            raise UsageError(
                f"the store has no space {name}", where=store.path, fix=near(name, there)
            )
    found = []
    for space in named or there:
        made_by = store.models.example(space).manifest.encoder
        if not named and (made_by.get("imported") or "spaces" in made_by):
            continue
        try:
            store.models.encoder(space)
        except CmcrError as error:
            if named:
                raise
            say(f"left out  {space}: {error.what}")
        else:
            found.append(space)
    if not found:
        raise UsageError(
            "the store has no space whose encoder is here", where=store.path,
            fix="`cmcr info` lists its spaces, --checkpoint SPACE=FILE gives weights",
        )  # fmt: skip
    return found


def _connections(store: "Store", named: Sequence[str] | None) -> list[str]:
    """Those that are named, or all that can be read."""
    there = sorted(path.parent.name for path in store.path.glob("connections/*/config.json"))
    for name in named or []:
        if name not in there:
            raise UsageError(
                f"there is no connection {name!r}",
                where=store.path / "connections",
                fix=near(name, there),
            )
    opened = partial(_opens, lambda name: store.models.opened(store.path / "connections" / name))
    return list(filter(opened, there)) if named is None else list(named)


def _datasets(store: "Store", places: Sequence[str]) -> list[str]:
    """Those that are named, or all that can be read but what lies between the links of a chain."""
    from cmcr.connect import describe_connections
    from cmcr.embeddings import Key, list_datasets, open_dataset

    if places:
        return [str(store.find(one)) for one in places]
    inner = {joint for line in describe_connections(store.path) for joint in line["joints"]}
    there = [str(key) for key in list_datasets(store.path) if key.space not in inner]
    return list(filter(partial(_opens, lambda one: open_dataset(store.path, Key.parse(one))),
                       there))  # fmt: skip


def _opens(opened: Callable[[str], object], name: str) -> bool:
    """Whether it can be opened; it is told of where not."""
    try:
        opened(name)
    except CmcrError as error:
        say(f"left out  {name}: {error.what}")
        return False
    return True
