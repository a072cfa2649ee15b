"""The endpoints: each reads what a request asks, and has it computed when it is the request's turn."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.security import HTTPBearer
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException

from sensorium import __version__
from sensorium.base.reading import printable
from sensorium.data.images.gathered import Encoded
from sensorium.serving import answers
from sensorium.serving.bodies import pictures_of
from sensorium.serving.served import Served, chosen
from sensorium.serving.turns import Turns
from sensorium.use.detect import THRESHOLD
from sensorium.web.wire import Refused

LONGEST_PROMPT = 4000  # characters
MOST_TOKENS = 1000
JSON = "application/json"
_FILE = {"type": "string", "format": "binary"}
_PICTURES: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {"schema": {"type": "object", "properties": {"file": {"type": "array", "items": _FILE}}}},
            "application/octet-stream": {"schema": _FILE},
        },
    }
}  # fmt: skip
_ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {"description": "All of the pictures were read."},
    207: {"description": "Some could not be read: theirs is a `problem` instead of an answer."},
    422: {"description": "None could be read, or an option is out of range."},
    503: {"description": "Too many requests are waiting; `Retry-After` says for how many seconds."},
}
_KEY = [Depends(HTTPBearer(auto_error=False, description="The server's key, if it has one."))]
RunName = Annotated[str | None, Query(description="The name of the run; needed if several can do it.")]
Top = Annotated[int, Query(ge=1, le=10_000, description="How many of the likeliest classes to answer.")]
Threshold = Annotated[float, Query(ge=0, le=1, description="Minimum score of an object.")]


class Prompt(BaseModel):
    """What POST /generate takes."""

    model_config = ConfigDict(extra="forbid")
    prompt: str = Field("", max_length=LONGEST_PROMPT, description="The start of the text.")
    most: int = Field(200, ge=1, le=MOST_TOKENS, description="Maximum number of tokens.")
    temperature: float = Field(0.8, ge=0, le=100, allow_inf_nan=False, description="0 is greedy.")
    top_k: int | None = Field(None, ge=1, le=1 << 30, description="Sample from the k most likely tokens.")
    seed: int = Field(0, ge=0, lt=1 << 63, description="Of the sampling.")


def application(runs: Mapping[str, Served], turns: Turns) -> FastAPI:
    """The endpoints of these runs. The description (GET /openapi.json) has those that a run of them can answer."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        turns.close()

    app = FastAPI(
        title="Sensorium", version=__version__, description="Trained runs, answering over HTTP.", lifespan=lifespan,
        docs_url=None, redoc_url=None, openapi_url="/openapi.json", redirect_slashes=False,
    )  # fmt: skip
    app.add_exception_handler(Refused, _refused)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(RequestValidationError, _invalid)

    @app.get("/health")
    async def health() -> dict[str, str]:
        """Whether the server is up; needs no key, since what watches a server has none, and says nothing else."""
        return {"status": "ok"}

    def offered(path: str, about: str, **more: Any) -> Any:
        can = any(path.removeprefix("/") in one.can for one in runs.values())
        return app.post(
            path, summary=about, include_in_schema=can, response_class=Response, responses=_ANSWERS, dependencies=_KEY, **more
        )  # fmt: skip

    @app.get("/runs", dependencies=_KEY)
    async def tell() -> dict[str, list[dict[str, Any]]]:
        """The runs: names, systems, abilities, what they can answer, classes and scores."""
        return {"runs": [one.about() for one in runs.values()]}

    async def pictured(
        request: Request, command: str, run: str | None, function: Callable[[Served, list[Encoded]], dict[str, Any]]
    ) -> Response:
        one, files = chosen(runs, command, run), await pictures_of(request)
        try:
            return await _computed(turns, request, lambda: function(one, files))
        finally:
            files.clear()  # megabytes, which would stay until Python collects what refers to itself

    @offered("/predict", "The class of each picture.", openapi_extra=_PICTURES)
    async def predict(request: Request, run: RunName = None, top: Top = 2) -> Response:
        return await pictured(request, "predict", run, lambda one, files: answers.predicted(one, files, top))

    @offered("/detect", "The objects in each picture.", openapi_extra=_PICTURES)
    async def detect(request: Request, run: RunName = None, threshold: Threshold = THRESHOLD) -> Response:
        return await pictured(request, "detect", run, lambda one, files: answers.detected(one, files, threshold))

    @offered("/embed", "The features of each picture.", openapi_extra=_PICTURES)
    async def embed(request: Request, run: RunName = None) -> Response:
        return await pictured(request, "embed", run, answers.embedded)

    @offered("/generate", "The text that continues a prompt.")
    async def generate(request: Request, given: Prompt, run: RunName = None) -> Response:
        one, how = chosen(runs, "generate", run), given.model_dump()
        return await _computed(turns, request, lambda: answers.generated(one, **how))

    return app


async def _computed(turns: Turns, request: Request, function: Callable[[], dict[str, Any]]) -> Response:
    def whole() -> tuple[int, bytes]:
        found = function()
        return answers.status(found), json.dumps(found, allow_nan=False, ensure_ascii=False).encode("utf-8", "replace")

    code, body = await turns.compute(request.is_disconnected, whole)
    return Response(body, code, media_type=JSON)


def refusal(words: str) -> bytes:
    """The body of an answer that is none, one line in JSON."""
    return json.dumps({"error": words}, ensure_ascii=False).encode("utf-8", "replace")


async def _refused(_: Request, error: Exception) -> Response:
    assert isinstance(error, Refused)
    return Response(refusal(error.words), error.status, dict(error.headers), JSON)


async def _http(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return Response(refusal(str(error.detail)), error.status_code, error.headers, JSON)


async def _invalid(_: Request, error: Exception) -> Response:
    """One line that names the first option that is wrong."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    names = [str(part) for part in first["loc"][1:] if isinstance(part, str)]
    words = f"{'.'.join(names) or 'the body'}: {first['msg']}"
    return Response(refusal(printable(words)[:300]), 422, media_type=JSON)
