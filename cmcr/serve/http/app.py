"""The routes: OpenAI's embeddings, search, what there is, and a page for people.

app = make_app(service, token=None, hosts={"127.0.0.1", "localhost"})
"""

import asyncio
import base64
from collections.abc import AsyncIterator, Collection, Coroutine, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from fastapi import FastAPI, File, Form, Request, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, Response
from starlette.exceptions import HTTPException

from cmcr import __version__
from cmcr.extract import is_of
from cmcr.serve.http.guard import Guard
from cmcr.serve.limits import GIVEN_UP, Gate
from cmcr.serve.schemas import (
    INPUTS,
    Datasets,
    EmbeddingAnswer,
    EmbeddingRequest,
    EmbeddingRow,
    ErrorAnswer,
    ModelRow,
    Models,
    SearchAnswer,
    SearchRequest,
    ServiceError,
    error_body,
)
from cmcr.serve.service import Embedded, Service

PAGE = Path(__file__).parent / "page"
_PAGES = {"/": "index.html", "/page.js": "page.js", "/page.css": "page.css",
          "/docs": "docs.html", "/docs.js": "docs.js"}  # fmt: skip
T = TypeVar("T")
# Types of errors that say less than others.
_OF_ANOTHER_KIND = {"missing": 1, "string_type": 2, "list_type": 2, "model_attributes_type": 2,
                    "model_type": 2}  # fmt: skip
_GONE, _LATE = GIVEN_UP


def _told(*codes: int) -> dict[int | str, dict[str, Any]]:
    return {code: {"model": ErrorAnswer} for code in codes}


_OF_INPUTS = _told(400, 401, 404, 413, 421, 422, 429, 500, 503, 504)


def make_app(service: Service, token: str | None, hosts: Collection[str] | None) -> Guard:
    """The application around a service that is loaded; `hosts` are names it may be called by."""

    @asynccontextmanager
    async def life(app: FastAPI) -> AsyncIterator[None]:
        await service.begin()
        try:
            yield
        finally:
            await service.end()

    app = FastAPI(
        title="cmcr",
        version=__version__,
        description="Embeddings of several modalities in one space, and search among them.",
        lifespan=life,
        docs_url=None,  # a page of our own: theirs comes from elsewhere
        redoc_url=None,
    )
    gate = Gate(service.limits.queue, service.limits.deadline)
    service.metrics.inside.set_function(lambda: gate.inside)

    async def answered(request: Request, count: int, work: Coroutine[Any, Any, T]) -> T:
        """The result of `work`, in time, unless there is no room or nobody waits any more."""
        try:
            if not service.warm:
                raise ServiceError(503, "the server is not ready", code="not_ready",
                                   headers={"Retry-After": "1"})  # fmt: skip
            with gate.entered(count):
                return await _in_time(request, asyncio.ensure_future(work), service.limits.deadline)
        finally:
            work.close()

    _add_errors(app, service)

    @app.post("/v1/embeddings", responses=_OF_INPUTS)
    async def embeddings(request: Request, asked: EmbeddingRequest) -> EmbeddingAnswer:
        """Vectors of texts and media in a space, or in a joint space (SPACE@CONNECTION)."""
        inputs = asked.inputs
        _check_dimensions(service, asked.model, asked.dimensions)
        work = service.embed(asked.model, inputs, asked.truncate)
        found = await answered(request, sum(map(len, inputs)), work)
        return _answer(found, asked.model, asked.encoding_format)

    @app.post("/v1/embeddings/upload", responses=_OF_INPUTS)
    async def upload(
        request: Request,
        model: Annotated[str, Form()],
        files: Annotated[list[UploadFile], File()],
        modality: Annotated[str | None, Form()] = None,
        encoding_format: Annotated[Literal["float", "base64"], Form()] = "float",
    ) -> EmbeddingAnswer:
        """Vectors of files; the modality of each is told from its suffix."""
        if len(files) > INPUTS:
            raise ServiceError(400, f"{INPUTS} files are the most", "files")
        read = [await _uploaded(service, model, file, modality) for file in files]
        found = await answered(request, len(read), service.embed_items(model, read, "END"))
        return _answer(found, model, encoding_format)

    @app.post("/v1/search", responses=_OF_INPUTS)
    async def search(request: Request, asked: SearchRequest) -> SearchAnswer:
        """The nearest items of datasets to a text, media, a vector or an item of the store."""
        found, space, connection = await answered(request, 1, service.search(asked))
        return SearchAnswer(data=found, space=space, connection=connection)

    @app.get("/v1/media/{dataset:path}/{row}", responses=_told(401, 404, 421, 422, 429, 503, 504),
             response_class=Response)  # fmt: skip
    async def media(request: Request, dataset: str, row: int) -> Response:
        """What an item was embedded from: PNG, WAV, text, or points as JSON."""
        kind, content = await answered(request, 1, service.media(dataset, row))
        return Response(content, media_type=kind, headers={"Cache-Control": "private, max-age=600"})

    @app.get("/v1/models", responses=_told(401, 421))
    async def models() -> Models:
        """The spaces, and the spaces of connections."""
        return Models(data=[ModelRow(**row) for row in service.models()])

    @app.get("/v1/datasets", responses=_told(401, 421))
    async def datasets() -> Datasets:
        """What can be searched in."""
        return Datasets(data=await asyncio.to_thread(service.searcher.datasets))

    @app.get("/livez", include_in_schema=False)
    async def livez() -> dict[str, str]:
        return {"status": "alive"}

    @app.get("/readyz", include_in_schema=False)
    async def readyz() -> JSONResponse:
        told = "ready" if service.ready else "not ready"
        return JSONResponse({"status": told}, 200 if service.ready else 503)

    @app.get("/metrics", include_in_schema=False)
    async def metrics() -> Response:
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4")

    for path, name in _PAGES.items():
        app.add_api_route(
            path, _file(PAGE / name), include_in_schema=False, response_class=FileResponse
        )
    # Outside of everything, so that it sees every answer.
    return Guard(app, service.limits.body, token, hosts, service.metrics, gate,
                 lambda: service.draining)  # fmt: skip


def _file(path: Path) -> Any:
    async def file() -> FileResponse:
        return FileResponse(path, headers={"Cache-Control": "no-cache"})

    return file


async def _in_time(request: Request, task: "asyncio.Future[T]", seconds: float) -> T:
    gone = asyncio.ensure_future(_gone(request))
    both: set[asyncio.Future[Any]] = {task, gone}
    try:
        done, _ = await asyncio.wait(both, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if task in done:
            return task.result()
        if gone in done:
            raise ServiceError(_GONE, "the client went away", code="gone")
        raise ServiceError(_LATE, f"it took longer than {seconds:g} s", code="deadline")
    finally:
        gone.cancel()
        task.cancel()
        await asyncio.gather(gone, task, return_exceptions=True)


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _add_errors(app: FastAPI, service: Service) -> None:
    def refuse(status: int, body: dict[str, Any], headers: Any = None) -> JSONResponse:
        service.metrics.failures.labels(body["error"]["code"] or str(status)).inc()
        return JSONResponse(body, status, headers=headers)

    @app.exception_handler(ServiceError)
    async def service_error(request: Request, error: ServiceError) -> JSONResponse:
        return refuse(error.status, error.body(), error.headers)

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> JSONResponse:
        return refuse(error.status_code, error_body(error.status_code, str(error.detail)),
                      error.headers)  # fmt: skip

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        # Of an input that could be several things the one that it nearly is tells most.
        told = min(error.errors(), key=lambda one: _OF_ANOTHER_KIND.get(one["type"], 0))
        places = [str(part) for part in told["loc"][1:]]
        place = places[0][:100] if told["type"] != "json_invalid" and places else None
        message = f"{place}: {told['msg']}" if place else told["msg"]
        return refuse(422, error_body(422, message[:500], place))

    @app.exception_handler(Exception)
    async def unforeseen(request: Request, error: Exception) -> JSONResponse:
        return refuse(500, error_body(500, "something went wrong here; the log says what"))


def _check_dimensions(service: Service, model: str, dimensions: int | None) -> None:
    _, joint = service.model(model)
    true = service.encoders[model].dim if joint is None else joint.joint_dim
    if dimensions not in (None, true):
        raise ServiceError(400, f"{model} has {true} dimensions, and no other", "dimensions")


def _answer(found: Sequence[Embedded], model: str, encoding: str) -> EmbeddingAnswer:
    rows = [
        EmbeddingRow(
            index=place,
            embedding=base64.b64encode(one.vector.astype("<f4").tobytes()).decode()
            if encoding == "base64"
            else one.vector.tolist(),
            truncated=one.truncated,
        )
        for place, one in enumerate(found)
    ]
    return EmbeddingAnswer(data=rows, model=model)


async def _uploaded(
    service: Service, model: str, file: UploadFile, modality: str | None
) -> tuple[str, Any]:
    """The modality and the item of an uploaded file, of whose name the suffix counts."""
    name = Path(Path(file.filename or "").name)
    takes = sorted({*service.model(model)[0]} - {"text"})
    kind = modality or next((one for one in takes if is_of(one, name)), None)
    if kind not in takes:
        raise ServiceError(
            400, f"{model} takes no file of {name.suffix[:16] or 'no suffix'}; it takes "
            f"{', '.join(takes) or 'texts alone'}", "files",
        )  # fmt: skip
    return kind, service.item(kind, await file.read(), name.suffix)
