"""The HTTP interface for programs: /v1/..., and what stands around it."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from importlib.resources import files
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.staticfiles import StaticFiles
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp

from lobule import __version__
from lobule.explain import overlay
from lobule.explain.maps import Method
from lobule.identity import NOTICE
from lobule.serving.answers import Answer, Identity, identify
from lobule.serving.downloads import picture
from lobule.serving.guard import Access, Guard, error_body
from lobule.serving.limits import Refused
from lobule.serving.metrics import Counting, Metrics
from lobule.serving.pages import Pages
from lobule.serving.service import Answered, Service, admit, answer_each
from lobule.serving.uploads import Upload, within


class ErrorBody(BaseModel):
    """Why a request, or one image, was not answered."""

    schema_: Literal["lobule.error/1"] = Field("lobule.error/1", alias="schema")
    status: int = Field(description="As in HTTP.")
    code: str = Field(description="One word, for programs.")
    what: str = Field(description="What is wrong, one line.")
    fix: str = Field(description="What to do.")
    name: str | None = Field(description="Of the image, as sent; null where none is to blame.")


class Result(BaseModel):
    """One image: an answer, or an error."""

    answer: Answer | None = Field(default=None, description="Null if there is an error.")
    error: ErrorBody | None = Field(default=None, description="Null if there is an answer.")


class Answers(BaseModel):
    """The answers to a request, in the order of its images."""

    schema_: Literal["lobule.answers/1"] = Field("lobule.answers/1", alias="schema")
    results: list[Result]


class ModelBody(BaseModel):
    """Which model answers."""

    schema_: Literal["lobule.served-model/1"] = Field("lobule.served-model/1", alias="schema")
    classes: list[str] = Field(description="In the order of the heads, the positive one last.")
    positive: str = Field(description="Which class thresholds and figures are about.")
    operating_points: dict[str, Any] = Field(description="By level, as in model.json.")
    calibration: dict[str, Any] = Field(description="As in model.json.")
    sets: dict[str, Any] = Field(description="As in model.json.")
    training: dict[str, Any] = Field(description="As in model.json.")
    performance: dict[str, Any] = Field(description="As in model.json.")
    limits: dict[str, float] = Field(description="What this server takes at most.")
    identity: Identity


class ExplainedBody(BaseModel):
    """A heat map of one image."""

    schema_: Literal["lobule.explanation/1"] = Field("lobule.explanation/1", alias="schema")
    answer: Answer
    of_class: str = Field(description="Which class the evidence is for.")
    method: str
    unit: str = Field(description="Of the evidence.")
    bias: float = Field(description="What the head says before it looks; 0 for gradcam.")
    evidence: list[list[float]] = Field(description="Rows of the grid, from the upper left.")
    faithfulness: dict[str, float | None] = Field(
        description="The map beside maps that know nothing; null where a figure is undefined."
    )
    overlay_png: str = Field(description="Photograph, map and legend, base64.")


class CaseBody(BaseModel):
    """One known image."""

    path: str = Field(description="Below the folder of the training images.")
    label: str
    patient: str | None
    distance: float = Field(description="1 less the cosine of the features.")


class SimilarBody(BaseModel):
    """Known cases that look alike, nearest first."""

    schema_: Literal["lobule.similar/1"] = Field("lobule.similar/1", alias="schema")
    answer: Answer
    cases: list[CaseBody] | None = Field(description="Null if the model came without its cases.")
    limit: float | None = Field(description="Distance within which training images have another.")
    none_close: bool | None = Field(description="Whether even the nearest is beyond the limit.")


class Health(BaseModel):
    """Whether the server takes requests."""

    status: Literal["ok", "starting"]
    version: str


_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["images"],
                    "properties": {
                        "images": {
                            "type": "array",
                            "items": {"type": "string", "format": "binary"},
                            "description": "PNG, JPEG, TIFF, BMP or WebP.",
                        },
                        "patient": {
                            "type": "array",
                            "items": {"type": "string"},
                            "description": "One for all images, or one for each.",
                        },
                    },
                }
            },
            "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
        },
    }
}

_STATUSES = {
    400: "The body is not what it says.",
    401: "No valid token.",
    403: "From a page of another site.",
    408: "The request came too slowly.",
    413: "Too many bytes or pixels.",
    415: "Not an image of a format that is read.",
    421: "For a host that this server is not.",
    422: "Damaged, or not as described here.",
    429: "Too much is waiting; see Retry-After.",
    503: "Starting or stopping.",
    504: "No answer in time.",
}

_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorBody, "description": what} for status, what in _STATUSES.items()
}

_OF_NO_BODY: dict[int | str, dict[str, Any]] = {s: _ERRORS[s] for s in (401, 403, 421, 503)}


def make_app(service: Service, access: Access) -> ASGIApp:
    """Return the ASGI application around a service."""
    metrics = Metrics(service)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with service.running():
            yield

    app = FastAPI(
        title="Lobule", version=__version__, description=NOTICE, lifespan=lifespan,
        docs_url=None, redoc_url=None, openapi_url="/openapi.json",
    )  # fmt: skip
    _add_errors(app)
    _add_verbs(app, service, metrics)
    _add_state(app, service, metrics)
    app.include_router(Pages(service).router, include_in_schema=False)
    static = str(files("lobule.serving") / "static")
    app.mount("/static", StaticFiles(directory=static), name="static")
    return Guard(Counting(app, metrics), access, service.limits)


def _add_errors(app: FastAPI) -> None:
    """Let every refusal speak the same language."""

    @app.exception_handler(Refused)
    async def refused(request: Request, error: Refused) -> Response:
        headers = {} if error.retry_s is None else {"Retry-After": str(error.retry_s)}
        return JSONResponse(error_body(error), error.status, headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        what = f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}"
        refusal = Refused(422, "invalid", what, fix="see /openapi.json")
        return JSONResponse(error_body(refusal), 422)

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> Response:
        refusal = Refused(error.status_code, "http", str(error.detail), fix="see /openapi.json")
        return JSONResponse(error_body(refusal), error.status_code, error.headers)


def _add_verbs(app: FastAPI, service: Service, metrics: Metrics) -> None:
    @app.post("/v1/predict", response_model=Answers, responses=_ERRORS, openapi_extra=_BODY)
    async def predict(request: Request) -> Any:  # noqa: ANN401  a response or its body
        """Answer for one image or many."""
        with ExitStack() as places:
            found = await _all(request, service, places)
        for one in found:
            metrics.images.labels("answered" if isinstance(one, Answered) else "refused").inc()
        results = [
            Result(answer=one.answer)
            if isinstance(one, Answered)
            else Result(error=ErrorBody.model_validate(error_body(one[1], one[0].name)))
            for one in found
        ]
        refused = [one[1] for one in found if not isinstance(one, Answered)]
        if len(refused) == len(found):
            first = next(one[0].name for one in found if not isinstance(one, Answered))
            return JSONResponse(error_body(refused[0], first), refused[0].status)
        return Answers(schema="lobule.answers/1", results=results)

    @app.post("/v1/explain", response_model=ExplainedBody, responses=_ERRORS, openapi_extra=_BODY)
    async def explain(
        request: Request,
        method: Annotated[Method, Query(description="How the map is made.")] = "cam",
        of_class: Annotated[
            str | None,
            Query(
                alias="class",
                max_length=255,
                description="Which class the evidence is for; by default the one decided on.",
            ),
        ] = None,
        kind: Annotated[
            Literal["json", "png"],
            Query(alias="as", description="All of it as JSON, or the picture alone."),
        ] = "json",
    ) -> Any:  # noqa: ANN401  a response or its body
        """Say where in one image the evidence for a class lies; as JSON or as a picture."""
        classes = service.model.info.classes
        if of_class is not None and of_class not in classes:
            raise Refused(
                422, "class", "the model knows no such class", fix=f"ask for {', '.join(classes)}"
            )
        with ExitStack() as places:
            one = await _one(request, service, places)
            asked = of_class or one.answer.decision or classes[-1]
            seconds = service.limits.request_s
            found = await within(request, service.explain(one, asked, method), seconds)
            overlay_png = picture(one, found)
            if kind == "png":
                return Response(overlay_png, media_type="image/png")
            worth = await within(request, service.judge(one, found), seconds)
        return ExplainedBody(
            schema="lobule.explanation/1",
            answer=one.answer,
            of_class=asked,
            method=method,
            unit=overlay.unit(found.map),
            bias=found.map.bias,
            evidence=found.map.evidence.tolist(),
            faithfulness={k: _finite(v) for k, v in vars(worth).items()},
            overlay_png=base64.b64encode(overlay_png).decode(),
        )

    @app.post("/v1/similar", response_model=SimilarBody, responses=_ERRORS, openapi_extra=_BODY)
    async def similar(
        request: Request, k: Annotated[int, Query(ge=1, le=50, description="How many cases.")] = 5
    ) -> SimilarBody:
        """Name the nearest known cases of one image, of other patients than its own."""
        with ExitStack() as places:
            one = await _one(request, service, places)
            found = await service.similar(one, k=k)
        return SimilarBody(
            schema="lobule.similar/1",
            answer=one.answer,
            cases=None if found is None else [CaseBody(**vars(case)) for case in found.cases],
            limit=None if found is None else _finite(found.limit),
            none_close=None if found is None else found.none_close,
        )


def _add_state(app: FastAPI, service: Service, metrics: Metrics) -> None:
    @app.get("/v1/model", response_model=ModelBody, responses=_OF_NO_BODY)
    async def model() -> ModelBody:
        """Say which model answers, and what is known of it."""
        info = service.model.info
        return ModelBody(
            schema="lobule.served-model/1",
            classes=list(info.classes),
            positive=info.classes[-1],
            operating_points=info.operating_points,
            calibration=info.calibration,
            sets=info.sets,
            training=info.training,
            performance=info.performance,
            limits=vars(service.limits),
            identity=identify(service.model),
        )

    @app.get(
        "/healthz", response_model=Health,
        responses={503: {"model": Health, "description": _STATUSES[503]}},
    )  # fmt: skip
    async def healthz() -> Any:  # noqa: ANN401  a response or its body
        """Say whether the server takes requests; needs no token."""
        if service.ready:
            return Health(status="ok", version=__version__)
        return JSONResponse({"status": "starting", "version": __version__}, 503)

    @app.get("/metrics", response_class=Response, responses=_OF_NO_BODY)
    async def counters() -> Response:
        """Return what was counted, as Prometheus reads it."""
        return Response(metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


async def _all(
    request: Request, service: Service, places: ExitStack
) -> list[Answered | tuple[Upload, Refused]]:
    """Answer for each image of a request."""
    form = await admit(request, service, places)
    return await within(request, answer_each(service, form.uploads), service.limits.request_s)


async def _one(request: Request, service: Service, places: ExitStack) -> Answered:
    found = await _all(request, service, places)
    if len(found) != 1:
        raise Refused(422, "one-image", f"{len(found)} images, not one", fix="send them one by one")
    if isinstance(found[0], Answered):
        return found[0]
    raise found[0][1]


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
