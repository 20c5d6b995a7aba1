"""The page for people: what the model says of photographs, where it looked, what is alike."""

from __future__ import annotations

import asyncio
import io
import math
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from importlib.resources import files
from typing import Any, TypeVar

import numpy as np
from fastapi import APIRouter, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from lobule.data.images import ImageArray, shrink
from lobule.data.tissue import draw_field, draw_stain
from lobule.errors import ImageError
from lobule.evaluation.predictions import decide
from lobule.explain import overlay
from lobule.explain.faithfulness import Faithfulness
from lobule.explain.maps import METHODS, Method
from lobule.identity import NOTICE
from lobule.serving import words
from lobule.serving.answers import Answer, identify
from lobule.serving.downloads import as_csv, as_json, data_uri, picture
from lobule.serving.limits import Refused
from lobule.serving.service import Answered, Explained, Service, admit, answer_each
from lobule.serving.store import Batch, Entry, Store
from lobule.serving.uploads import Upload, display_name, within

T = TypeVar("T")

EXAMPLES = ("benign", "malignant", "malignant")
"""What the made-up photographs of the first page show."""

_THUMBNAIL_PX = 320


@dataclass(frozen=True)
class Patient:
    """All photographs of one patient together: mean probability and decision."""

    name: str
    images: int
    probability: float
    decision: str


class Pages:
    """The pages of one service, and the results they show."""

    def __init__(self, service: Service) -> None:
        """Draw the examples and read the templates."""
        self.service = service
        self.store = Store()
        self.examples = [_png(image) for image in _drawn_examples()]
        self.templates = Environment(
            loader=PackageLoader("lobule.serving"), autoescape=True, undefined=StrictUndefined,
            trim_blocks=True, lstrip_blocks=True,
        )  # fmt: skip
        self.templates.globals.update(
            notice=NOTICE,
            words=words,
            methods=METHODS,
            # the same look, inside a page that stands alone
            css=Markup((files("lobule.serving") / "static" / "page.css").read_text()),
        )
        self.router = APIRouter()
        for method, path, run in (
            ("GET", "/", self.index),
            ("POST", "/analyse", self.analyse),
            ("GET", "/examples/{n}.png", self.example_png),
            ("POST", "/examples/{n}", self.example),
            ("GET", "/results/{name}", self.result),
            ("GET", "/results/{name}/photo.png", self.photo),
            ("GET", "/results/{name}/maps/{method}", self.map),
            ("GET", "/results/{name}/maps/{method}/worth", self.worth),
            ("GET", "/results/{name}/maps/{method}/{layer}.png", self.layer),
            ("GET", "/results/{name}/cases/{k}.png", self.case),
            ("GET", "/results/{name}/answer.csv", self.answer_csv),
            ("GET", "/results/{name}/answer.json", self.answer_json),
            ("GET", "/results/{name}/report.html", self.report),
            ("GET", "/batches/{name}", self.batch),
            ("GET", "/batches/{name}/answers.csv", self.batch_csv),
            ("GET", "/batches/{name}/answers.json", self.batch_json),
        ):
            self.router.add_api_route(path, run, methods=[method])

    async def index(self) -> Response:
        """Show what the model is, and the form."""
        return self._page("index.html.j2", model=self.service.model, limits=self.service.limits,
                          examples=EXAMPLES)  # fmt: skip

    async def analyse(self, request: Request) -> Response:
        """Answer for what the form brings, and go to the result."""
        try:
            with ExitStack() as places:
                form = await admit(request, self.service, places)
                mpp = _mpp(form.fields.get("mpp", ""))
                return await self._answer(request, form.uploads, mpp)
        except Refused as refused:
            return self.problem(refused)

    async def example(self, request: Request, n: int) -> Response:
        """Answer for one of the made-up photographs."""
        try:
            upload = Upload(self._example(n), f"example-{n + 1}.png", None)
            with self.service.batches.place():
                return await self._answer(request, [upload], None)
        except Refused as refused:
            return self.problem(refused)

    async def example_png(self, n: int) -> Response:
        """Return a made-up photograph."""
        return Response(self._example(n), media_type="image/png")

    async def result(self, name: str) -> Response:
        """Show one photograph's result."""
        try:
            entry = self.store.entry(name)
        except Refused as refused:
            return self.problem(refused)
        return self._page("result.html.j2", entry=entry, answer=entry.answered.answer,
                          of_class=_of_class(entry.answered.answer))  # fmt: skip

    async def photo(self, name: str) -> Response:
        """Return the photograph as it was decoded."""
        image = self.store.entry(name).answered.image
        return Response(await asyncio.to_thread(_png, image), media_type="image/png")

    async def map(self, request: Request, name: str, method: Method) -> Response:
        """Say what a heat map's numbers are."""
        found = await self._map(request, self.store.entry(name), method)
        low, high = overlay.limits(found.map)
        return JSONResponse(
            {
                "low": low, "high": high, "unit": overlay.unit(found.map),
                "means": words.of_map(found.map, found.of_class),
            }
        )  # fmt: skip

    async def worth(self, request: Request, name: str, method: Method) -> Response:
        """Say how far a heat map can be believed."""
        found = await self._worth(request, self.store.entry(name), method)
        return JSONResponse({"believable": words.believable(found)})

    async def layer(self, request: Request, name: str, method: Method, layer: str) -> Response:
        """Return a heat map as a picture: heat, contours, legend, or overlay."""
        entry = self.store.entry(name)
        found = await self._map(request, entry, method)
        height, width = entry.answered.image.shape[:2]
        draw = {
            "heat": lambda: _png(overlay.coloured(found.map, width, height)),
            "contours": lambda: _png(overlay.contours(found.map, width, height)),
            "legend": lambda: _png(overlay.legend(found.map)),
            "overlay": lambda: picture(entry.answered, found),
        }
        if layer not in draw:
            raise Refused(404, "gone", "there is no such picture", fix="go back to the result")
        headers = _attached("overlay.png") if layer == "overlay" else {}
        return Response(await asyncio.to_thread(draw[layer]), 200, headers, "image/png")

    async def case(self, name: str, k: int) -> Response:
        """Return the photograph of a similar case, small."""
        found, cases = self.store.entry(name).similar, self.service.cases
        if found is None or cases is None or not 0 <= k < len(found.cases):
            raise Refused(404, "gone", "there is no such case", fix="go back to the result")
        one = found.cases[k]
        try:
            small = await asyncio.to_thread(lambda: _png(shrink(cases.read(one), _THUMBNAIL_PX)))
        except ImageError as error:
            raise Refused(404, "gone", error.what, fix="the folder may have moved") from error
        return Response(small, media_type="image/png")

    async def answer_csv(self, name: str) -> Response:
        """Return one answer as CSV."""
        return _csv([self.store.entry(name).answered.answer])

    async def answer_json(self, name: str) -> Response:
        """Return one answer as JSON."""
        return _json([self.store.entry(name).answered.answer])

    async def report(self, request: Request, name: str) -> Response:
        """Return a page that needs neither server nor script."""
        entry = self.store.entry(name)
        try:
            found: Explained | None = await self._map(request, entry, "cam")
            worth: Faithfulness | None = await self._worth(request, entry, "cam")
        except Refused as refused:
            # a network that keeps no map of places has a report all the same
            if refused.code != "no-map":
                raise
            found = worth = None
        text = await asyncio.to_thread(self._report, entry, found, worth)
        return HTMLResponse(text, headers=_attached("report.html"))

    async def batch(self, name: str) -> Response:
        """Show the results of several photographs, and of their patients."""
        try:
            batch = self.store.batch(name)
        except Refused as refused:
            return self.problem(refused)
        return self._page("batch.html.j2", batch=batch, patients=self._patients(batch),
                          positive=self.service.model.info.classes[-1])  # fmt: skip

    async def batch_csv(self, name: str) -> Response:
        """Return all answers of a request as CSV."""
        return _csv([entry.answered.answer for entry in self.store.batch(name).entries])

    async def batch_json(self, name: str) -> Response:
        """Return all answers of a request as JSON."""
        return _json([entry.answered.answer for entry in self.store.batch(name).entries])

    def problem(self, refused: Refused) -> Response:
        """Show why there is no result."""
        page = self._page("problem.html.j2", refused=refused)
        page.status_code = refused.status
        if refused.retry_s is not None:
            page.headers["Retry-After"] = str(refused.retry_s)
        return page

    async def _answer(self, request: Request, uploads: list[Upload], mpp: float | None) -> Response:
        found = await within(
            request, answer_each(self.service, uploads), self.service.limits.request_s
        )
        if len(found) == 1 and not isinstance(found[0], Answered):
            return self.problem(found[0][1])
        batch = self.store.add(found, mpp=mpp)
        for entry in batch.entries:
            entry.similar = await self.service.similar(entry.answered)
        where = f"/results/{batch.entries[0].id}" if len(found) == 1 else f"/batches/{batch.id}"
        return RedirectResponse(where, 303)

    async def _map(self, request: Request, entry: Entry, method: Method) -> Explained:
        of_class = _of_class(entry.answered.answer)
        work = partial(self.service.explain, entry.answered, of_class, method)
        return await self._once(request, entry.maps, method, work)

    async def _worth(self, request: Request, entry: Entry, method: Method) -> Faithfulness:
        found = await self._map(request, entry, method)
        work = partial(self.service.judge, entry.answered, found)
        return await self._once(request, entry.worth, method, work)

    async def _once(
        self,
        request: Request,
        known: dict[Method, asyncio.Future[T]],
        method: Method,
        work: Callable[[], Awaitable[T]],
    ) -> T:
        """Return what is known, computed once however many ask for it."""
        if method not in known:
            known[method] = asyncio.ensure_future(work())
        task = known[method]
        # one who leaves must not take it from the others
        waited = asyncio.shield(task)
        try:
            return await within(request, waited, self.service.limits.request_s)
        except Refused:
            if task.done() and known.get(method) is task:
                # it may be refused only for now
                del known[method]
            raise

    def _report(self, entry: Entry, found: Explained | None, worth: Faithfulness | None) -> str:
        cases = []
        for case in entry.similar.cases if entry.similar is not None else ():
            try:
                image = None
                if self.service.cases is not None:
                    small = shrink(self.service.cases.read(case), _THUMBNAIL_PX)
                    image = data_uri("image/png", _png(small))
            except ImageError:
                # the table still says which one it was
                image = None
            cases.append((case, image))
        return self.templates.get_template("answer-report.html.j2").render(
            answer=entry.answered.answer, entry=entry, found=found, worth=worth, cases=cases,
            overlay=None if found is None
            else data_uri("image/png", picture(entry.answered, found)),
            photo=data_uri("image/png", _png(entry.answered.image)),
        )  # fmt: skip

    def _patients(self, batch: Batch) -> list[Patient]:
        """Average the probabilities of each patient, as evaluation does, where all are named."""
        info = self.service.model.info
        point = info.operating_points.get("patient")
        by_patient: dict[str, list[Answer]] = {}
        for entry in batch.entries:
            answer = entry.answered.answer
            if answer.patient is None:
                return []
            if answer.verdict != "unlike":
                by_patient.setdefault(answer.patient, []).append(answer)
        found = []
        for name, answers in sorted(by_patient.items()):
            mean = np.mean([list(a.probabilities.values()) for a in answers], axis=0)
            index = decide(mean[None], None if point is None else point["threshold"])[0]
            found.append(Patient(name, len(answers), float(mean[-1]), info.classes[index]))
        return found

    def _example(self, n: int) -> bytes:
        if not 0 <= n < len(self.examples):
            raise Refused(404, "gone", "there is no such example", fix="go back to the first page")
        return self.examples[n]

    def _page(self, template: str, **fields: Any) -> HTMLResponse:  # noqa: ANN401
        page = self.templates.get_template(template)
        return HTMLResponse(page.render(identity=identify(self.service.model), **fields))


def _of_class(answer: Answer) -> str:
    """Return the class that a map is drawn for: that decided on, or the likeliest."""
    likeliest = max(answer.probabilities, key=lambda name: answer.probabilities[name])
    return answer.decision or likeliest


def _mpp(text: str) -> float | None:
    if not text.strip():
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0.01 <= value <= 100:
        raise Refused(
            422, "scale", f"the scale of {display_name(text)!r} micrometres a pixel cannot be",
            fix="give a number from 0.01 to 100, or leave it out",
        )  # fmt: skip
    return value


def _drawn_examples() -> list[ImageArray]:
    found = []
    for n, label in enumerate(EXAMPLES):
        rng = np.random.default_rng([7, n])
        stain = draw_stain(rng)
        found.append(draw_field(rng, stain=stain, malignant=label == "malignant")[0])
    return found


def _png(image: ImageArray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(image).save(out, "PNG", compress_level=1)
    return out.getvalue()


def _csv(answers: list[Answer]) -> Response:
    if not answers:
        raise Refused(404, "gone", "there is no answer to write", fix="see the errors on the page")
    return Response(as_csv(answers), 200, _attached("answers.csv"), "text/csv; charset=utf-8")


def _json(answers: list[Answer]) -> Response:
    return Response(as_json(answers), 200, _attached("answers.json"), "application/json")


def _attached(name: str) -> dict[str, str]:
    return {"content-disposition": f'attachment; filename="lobule-{name}"'}
