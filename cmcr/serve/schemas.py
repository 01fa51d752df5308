"""Requests and answers: OpenAI's embeddings, with inputs as Jina and Cohere write them.

Every error has one shape, {"error": {"message", "type", "param", "code"}}.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

INPUTS = 256  # of a request


def _encodable(text: str) -> str:
    """A text that is one: half of a surrogate pair has no bytes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("this is no text in Unicode") from None
    return text


Text = Annotated[str, AfterValidator(_encodable)]


class ServiceError(Exception):
    """What a client is told: a status, and a message that shows nothing of the server."""

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.headers = status, message, param, headers
        self.code = code

    def body(self) -> dict[str, Any]:
        """The JSON of the answer."""
        return error_body(self.status, self.message, self.param, self.code)


_TYPES = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}


def error_body(
    status: int, message: str, param: str | None = None, code: str | None = None
) -> dict[str, Any]:
    """The one shape of an error."""
    kind = _TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


class ErrorDetail(BaseModel):
    """What went wrong with a request."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorAnswer(BaseModel):
    """The shape of every error."""

    error: ErrorDetail


class InputObject(BaseModel):
    """One input: a text, or media as a data URI or in base64. `format` is a suffix, such as ply.

    Other modalities than these four go by their own name, where an encoder takes them.
    """

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, str]

    text: Text | None = None
    image: str | None = None
    audio: str | None = None
    pointcloud: str | None = None
    format: str | None = Field(None, max_length=16, pattern=r"^\.?[A-Za-z0-9]+$")

    @model_validator(mode="after")
    def _one(self) -> "InputObject":
        if len(self.given()) != 1:
            raise ValueError("an input has one of text, image, audio, pointcloud")
        return self

    def given(self) -> dict[str, str]:
        """What is given, by its modality."""
        own = {name: getattr(self, name) for name in ("text", "image", "audio", "pointcloud")}
        told = own | (self.__pydantic_extra__ or {})
        return {name: value for name, value in told.items() if value is not None}


Input = Text | InputObject


class Address(BaseModel):
    """Media in a message, as a data URI: no address is fetched."""

    url: str


class TextPart(BaseModel):
    """A text in a message."""

    type: Literal["text"]
    text: Text

    @property
    def given(self) -> Input:
        """The same as an input."""
        return self.text


class ImagePart(BaseModel):
    """A picture in a message."""

    type: Literal["image_url"]
    image_url: Address

    @property
    def given(self) -> Input:
        """The same as an input."""
        return InputObject.model_validate({"image": self.image_url.url})


class AudioPart(BaseModel):
    """A sound in a message."""

    type: Literal["audio_url"]
    audio_url: Address

    @property
    def given(self) -> Input:
        """The same as an input."""
        return InputObject.model_validate({"audio": self.audio_url.url})


Part = Annotated[TextPart | ImagePart | AudioPart, Field(discriminator="type")]


class Message(BaseModel):
    """A message as vLLM's servers take it in the place of an input."""

    role: str = "user"
    content: Text | Annotated[list[Part], Field(fail_fast=True, min_length=1, max_length=INPUTS)]

    @property
    def inputs(self) -> list[Input]:
        """What it holds."""
        return [self.content] if isinstance(self.content, str) else [p.given for p in self.content]


Talk = Annotated[list[Message], Field(fail_fast=True, min_length=1, max_length=INPUTS)]


class EmbeddingRequest(BaseModel):
    """What `POST /v1/embeddings` takes: `input`, or `messages` in its place."""

    model: str = Field(
        description="A space, SPACE@CONNECTION for the joint space, or @CONNECTION for the same "
        "by way of whichever space takes an input."
    )
    input: (
        Input
        | Annotated[list[Input], Field(fail_fast=True, min_length=1, max_length=INPUTS)]
        | None
    ) = None
    messages: (
        Talk | Annotated[list[Talk], Field(fail_fast=True, min_length=1, max_length=INPUTS)] | None
    ) = Field(
        None,
        description="One embedding for each list of messages, of the mean of all that it holds.",
    )
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = None
    truncate: Literal["NONE", "END"] = Field("END", description="Of texts that are too long.")
    user: str | None = None

    @model_validator(mode="after")
    def _one(self) -> "EmbeddingRequest":
        if (self.input is None) == (self.messages is None):
            raise ValueError("a request has one of input and messages")
        if sum(map(len, self.inputs)) > INPUTS:
            raise ValueError(f"{INPUTS} inputs are the most")
        return self

    @property
    def inputs(self) -> list[list[Input]]:
        """What each embedding is of: one input, or all that a list of messages holds."""
        if self.messages is None:
            assert self.input is not None
            return [[one] for one in (self.input if isinstance(self.input, list) else [self.input])]
        talks = [one for one in self.messages if isinstance(one, list)]
        alone = [one for one in self.messages if isinstance(one, Message)]  # of one talk
        return [[given for message in talk for given in message.inputs]
                for talk in (*talks, *([alone] if alone else []))]  # fmt: skip


class EmbeddingRow(BaseModel):
    """One embedding: numbers, or their little-endian float32 bytes in base64."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str
    truncated: bool


class Usage(BaseModel):
    """Tokens are not counted; the field is there for clients that ask for it."""

    prompt_tokens: int = 0
    total_tokens: int = 0


class EmbeddingAnswer(BaseModel):
    """What `POST /v1/embeddings` gives."""

    object: Literal["list"] = "list"
    data: list[EmbeddingRow]
    model: str
    usage: Usage = Usage()


class Given(BaseModel):
    """A vector of `model`'s space, to search with."""

    embedding: Annotated[list[float], Field(fail_fast=True, min_length=1, max_length=65_536)]
    modality: str = Field(description="What it is an embedding of.")


class Stored(BaseModel):
    """An item of the store, to search with."""

    dataset: Text
    id: Text


class SearchRequest(BaseModel):
    """What `POST /v1/search` takes."""

    model_config = ConfigDict(extra="forbid")

    query: Text | Given | Stored | InputObject
    datasets: list[Text] = Field(
        fail_fast=True, min_length=1, max_length=64, description="SPACE/MODALITY:DATASET each."
    )
    model: str | None = Field(
        None, description="A space, or SPACE@CONNECTION, that the query is embedded in."
    )
    connection: str | None = Field(None, description="Its name; by default the only one that fits.")
    baseline: str | None = Field(
        None, description="A closed form in the connection's place, such as cca."
    )
    top_k: int = Field(10, ge=1)
    filter: dict[
        Text, Annotated[list[Text], Field(fail_fast=True, min_length=1, max_length=INPUTS)]
    ] = Field(default_factory=dict, max_length=16)
    hubness: Literal["none", "nnn"] = "none"
    index: bool = Field(False, description="Ask the FAISS indexes of the datasets.")
    false_positives: float | None = Field(None, gt=0, lt=1)


class FoundItem(BaseModel):
    """An item that was found. `media` is where to get it, where it is still there."""

    rank: int
    score: float
    cosine: float
    false_positives: float | None
    dataset: str
    row: int
    id: str
    modality: str
    label: list[str] | None
    text: str | None
    start: float | None
    end: float | None
    media: str | None


class SearchAnswer(BaseModel):
    """What `POST /v1/search` gives."""

    object: Literal["list"] = "list"
    data: list[FoundItem]
    space: str
    connection: str | None


class ModelRow(BaseModel):
    """A space or a joint space."""

    id: str
    object: Literal["model"] = "model"
    owned_by: Literal["cmcr"] = "cmcr"
    modalities: list[str]
    dimensions: int
    connection: str | None
    baselines: list[str]


class Models(BaseModel):
    """What `GET /v1/models` gives."""

    object: Literal["list"] = "list"
    data: list[ModelRow]


class DatasetRow(BaseModel):
    """A dataset that can be searched in."""

    id: str
    space: str
    modality: str
    rows: int


class Datasets(BaseModel):
    """What `GET /v1/datasets` gives."""

    object: Literal["list"] = "list"
    data: list[DatasetRow]
