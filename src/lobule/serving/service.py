"""A model at work for many at once: decode, predict, explain, find similar cases."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TypeVar

import pandas as pd
from starlette.requests import Request

from lobule.audit_log import AuditLog
from lobule.data.images import ImageArray, shrink
from lobule.data.manifest import SCHEMA, Manifest
from lobule.errors import LobuleError
from lobule.explain.faithfulness import Faithfulness, judge, shuffled
from lobule.explain.maps import Map, Method, explain
from lobule.explain.neighbours import Cases, Similar
from lobule.inference.predictor import predict_features
from lobule.models.bundle import Model
from lobule.models.classifier import Features
from lobule.serving.answers import Answer, as_answer
from lobule.serving.batching import AT_ONCE, Batches
from lobule.serving.decoding import Decoder
from lobule.serving.limits import Limits, Refused
from lobule.serving.uploads import Form, Upload, read_form
from lobule.training.features import Extractor

T = TypeVar("T")

_JUDGED_PX = 1_024
"""Longer side of the photograph that a map is judged on: networks see no more of it."""


@dataclass(frozen=True, eq=False)
class Answered:
    """An answer, and what further questions are asked of: pixels (h, w, 3) uint8 and features."""

    answer: Answer
    image: ImageArray
    features: Features


@dataclass(frozen=True, eq=False)
class Explained:
    """A heat map for one class."""

    of_class: str
    map: Map


class Service:
    """One model, its queue and its decoders. Use `running` around all calls."""

    def __init__(
        self,
        model: Model,
        extractor: Extractor,
        *,
        limits: Limits | None = None,
        cases: Cases | None = None,
        log: AuditLog | None = None,
    ) -> None:
        """Start the decoders; the queue begins with `running`."""
        self.model = model
        self.limits = limits or Limits()
        self.cases = cases
        self.batches = Batches(extractor, places=self.limits.waiting)
        self.decoder = Decoder(self.limits, n=2)
        self.ready = False
        self._log = log
        self._explained = 0
        # as many decoded images as are soon worked on; the others wait as the files they came as
        self._decoded = asyncio.Semaphore(AT_ONCE + 2)
        # explaining takes all cores; decoding and writing mostly wait
        self._explaining = ThreadPoolExecutor(1, thread_name_prefix="lobule-explain")
        self._waiting = ThreadPoolExecutor(8, thread_name_prefix="lobule-wait")

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Work on what is asked until the end of the block."""
        working = asyncio.create_task(self.batches.run())
        self.ready = True
        try:
            yield
        finally:
            self.ready = False
            working.cancel()
            self.batches.close()
            self._explaining.shutdown(cancel_futures=True)
            self._waiting.shutdown(cancel_futures=True)
            self.decoder.close()

    async def predict(self, data: bytes, name: str, *, patient: str | None = None) -> Answered:
        """Answer for one image file.

        name: for display. patient: as the sender calls them. Raises Refused if it cannot be read.
        """
        loop = asyncio.get_running_loop()
        async with self._decoded:
            decoding = loop.run_in_executor(self._waiting, self.decoder.decode, data)
            # meanwhile, as it takes some ms
            row = _manifest(data, patient)
            image = await decoding
            views, colour = await self.batches.features(image)
        features = Features(views[None], colour[None])
        predictions = predict_features(self.model, row, features, source="served")
        height, width = image.shape[:2]
        answer = as_answer(self.model, predictions, 0, name=name, size=(width, height))
        if self._log is not None:
            await loop.run_in_executor(self._waiting, _note, self._log, answer)
        return Answered(answer, image, features)

    async def explain(self, answered: Answered, of_class: str, method: Method) -> Explained:
        """Say where the evidence for a class lies; raises Refused if this network cannot."""
        target = self.model.info.classes.index(of_class)
        work = partial(explain, self.model, answered.image, target=target, method=method)
        return Explained(of_class, await self._in_turn(work))

    async def judge(self, answered: Answered, found: Explained) -> Faithfulness:
        """Say how far a map can be believed, which takes several times as long as the map."""
        return await self._in_turn(partial(self._judge, answered.image, found.map))

    async def _in_turn(self, work: Callable[[], T]) -> T:
        """Do what takes all cores, after what was asked before; raises Refused."""
        if self._explained >= self.limits.explaining:
            raise Refused(
                429, "busy", f"{self._explained} heat maps are waiting already",
                fix="try again in some seconds", retry_s=5,
            )  # fmt: skip
        self._explained += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._explaining, work)
        except LobuleError as error:
            raise Refused(
                422, "no-map", error.what, fix=error.fix or "ask for no heat map"
            ) from error
        finally:
            self._explained -= 1

    async def similar(self, answered: Answered, *, k: int = 5) -> Similar | None:
        """Return the nearest cases of other patients; None if the model came without cases."""
        if self.cases is None:
            return None
        find = partial(
            self.cases.similar, answered.features,
            sha256=answered.answer.sha256, patient=answered.answer.patient, k=k,
        )  # fmt: skip
        return await asyncio.get_running_loop().run_in_executor(self._waiting, find)

    def _judge(self, image: ImageArray, found: Map) -> Faithfulness:
        other = explain(self._shuffled, image, target=found.target, method=found.method)

        def score(image: ImageArray) -> float:
            # one view: eight would take eight times as long
            views = self.batches.extractor.of_one(image)
            return float(self.model.heads.tissue.probabilities(views)[found.target])

        return judge(found, shrink(image, _JUDGED_PX), score, randomised=other)

    @cached_property
    def _shuffled(self) -> Model:
        return shuffled(self.model)


async def admit(request: Request, service: Service, places: ExitStack) -> Form:
    """Read the images of a request; places are taken before its body is read."""
    places.enter_context(service.batches.place())
    form = await read_form(request, service.limits)
    places.enter_context(service.batches.place(len(form.uploads) - 1))
    return form


async def answer_each(
    service: Service, uploads: list[Upload]
) -> list[Answered | tuple[Upload, Refused]]:
    """Answer for each image, or say why not."""

    async def one(upload: Upload) -> Answered | tuple[Upload, Refused]:
        try:
            return await service.predict(upload.data, upload.name, patient=upload.patient)
        except Refused as refused:
            return upload, refused

    return list(await asyncio.gather(*(one(upload) for upload in uploads)))


def _note(log: AuditLog, answer: Answer) -> None:
    """Log an answer; what cannot be logged is not said, which Refused (503) tells."""
    said = answer.model_dump(by_alias=True, exclude={"name", "patient", "identity"})
    who = answer.identity.model_dump(exclude={"time", "notice"})
    try:
        log.append("predict", answer=said, identity=who)
    except LobuleError as error:
        raise Refused(
            503, "log", error.what, fix=error.fix or "see to the audit log of the server"
        ) from error


def _manifest(data: bytes, patient: str | None) -> Manifest:
    """Return the manifest of one image, whose path is the hash of its file."""
    sha256 = hashlib.sha256(data).hexdigest()
    known = {"path": sha256, "patient": patient, "bytes": len(data), "sha256": sha256}
    columns = {key: pd.array([known.get(key)], dtype=dtype) for key, dtype in SCHEMA.items()}
    return Manifest(Path(), pd.DataFrame(columns))
