"""The routes: what is asked, by whom it is answered, and what OpenAPI says of both."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastapi import FastAPI
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request as HttpRequest
from starlette.responses import HTMLResponse, Response

from ehrtrack.serving.batching import Batcher
from ehrtrack.serving.gate import Bodies, Gate
from ehrtrack.serving.messages import Answer, Facts, Health, Refusal, request_schema
from ehrtrack.serving.models import Models
from ehrtrack.serving.reading import Refused, read_request

LARGE_BYTES = 256 * 2**10
"""A body that takes some milliseconds to check, in which others would wait."""

_REFUSALS = {
    400: "the model knows hardly any of the codes, or the body broke off",
    401: "the token is missing or wrong",
    403: "a name of this machine that it does not answer to",
    404: "no model of this name is served",
    408: "the body did not come",
    413: "more than is answered at once",
    415: "no JSON",
    422: "what is wrong, place by place; no value is repeated",
    500: "the model failed at these records",
    503: "too many wait already",
}
_ASKS = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Request"}}},
    }
}


def make_app(models: Models, batcher: Batcher, *, token: str, host: str, registry: Callable[[], str]) -> Gate:
    """The application that uvicorn serves.

    Parameters
    ----------
    token, host : of `Gate`
    registry : says whether a champion that moves would be noticed
    """
    app = FastAPI(title="EHRTrack", docs_url=None, redoc_url=None)
    bodies = Bodies()
    refusals: dict[int | str, dict[str, Any]] = {
        status: {"model": Refusal, "description": text} for status, text in _REFUSALS.items()
    }
    of_health: dict[int | str, dict[str, Any]] = {503: {"model": Health, "description": "requests are not answered"}}
    of_all: dict[int | str, dict[str, Any]] = {status: refusals[status] for status in (401, 403)}

    @app.exception_handler(Refused)
    async def refuse(_request: HttpRequest, refused: Refused) -> Response:
        headers = {"Retry-After": "1"} if refused.status == 503 else None
        return _json(refused.refusal, refused.status, headers)

    @app.post("/predict", response_model=Answer, responses=refusals, openapi_extra=_ASKS)
    async def predict(http: HttpRequest) -> Response:
        """Risk and survival of subjects at prediction times, all from one version of the model."""
        body = await bodies.read(http)
        request = read_request(body) if len(body) < LARGE_BYTES else await run_in_threadpool(read_request, body)
        return _json(await batcher.ask(request))

    @app.get("/health", response_model=Health, responses=of_health)
    async def health() -> Response:
        """Whether requests are answered, by which models, and whether the registry can be reached."""
        named = [served.named for served in models.now().values()]
        found = Health(is_serving=batcher.is_working, models=named, n_waiting=batcher.n_waiting, registry=registry())
        return _json(found, 200 if found.is_serving else 503)

    @app.get("/model", responses=of_all)
    async def model() -> list[Facts]:
        """What the registered runs say of the models: outcome, cohort, measures on test subjects."""
        return [served.facts for served in models.now().values()]

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return HTMLResponse(_page(app.openapi()))

    plain = app.openapi

    def openapi() -> dict[str, Any]:
        """With the schema of the request, whose body is read by us."""
        schema = plain()
        schema["components"]["schemas"] |= request_schema()
        return schema

    app.openapi = openapi  # type: ignore[method-assign]
    return Gate(app, token, host)


def _json(message: Answer | Health | Refusal, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(message.model_dump_json(), status, headers, "application/json")


def _page(schema: dict[str, Any]) -> str:
    """The routes in plain HTML, which fetches nothing."""
    rows = "".join(
        f"<tr><td><code>{method.upper()} {path}</code><td>{told['description']}"
        for path, of_path in schema["paths"].items()
        for method, told in of_path.items()
    )
    return (
        "<!doctype html><html lang=en><meta charset=utf-8><title>EHRTrack</title><h1>EHRTrack</h1>"
        f'<table>{rows}</table><p>The schema of all of it: <a href="openapi.json">openapi.json</a>.'
    )
