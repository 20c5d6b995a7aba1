"""What came with a request: image files and what is said of them; and waiting for the answer."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import TypeVar

from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request

from lobule.errors import show
from lobule.serving.limits import Limits, Refused

T = TypeVar("T")

NAME_LENGTH = 255

_FIELD_BYTES = 4_096


@dataclass(frozen=True)
class Upload:
    """One image file. name: for display only, never a path. patient: as sent."""

    data: bytes
    name: str
    patient: str | None


@dataclass(frozen=True)
class Form:
    """The images of a request and its other fields, the first value of each name."""

    uploads: list[Upload]
    fields: dict[str, str]


async def read_form(request: Request, limits: Limits) -> Form:
    """Read a request's body: multipart with files `images`, or one image as it is.

    Raises Refused: 400 if it is not what it says, 408 if it takes too long, 413 if it is too large,
    415 if it is of another kind, 422 if there is no image or too many.
    """
    try:
        return await asyncio.wait_for(_read(request, limits), limits.request_s)
    except TimeoutError as error:
        raise Refused(
            408, "slow", f"the request was not complete within {limits.request_s:g} s",
            fix="send fewer images at a time",
        ) from error  # fmt: skip
    except ClientDisconnect as error:
        raise gone() from error


async def _read(request: Request, limits: Limits) -> Form:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        form = await _multipart(request, limits)
    elif kind.startswith("image/") or kind == "application/octet-stream":
        patient = request.query_params.get("patient")
        upload = Upload(await request.body(), "image", _patient(patient))
        form = Form([upload] if upload.data else [], {})
    else:
        raise Refused(
            415, "unsupported", f"a request of type {kind or 'unknown'!r} holds no images",
            fix="send multipart/form-data with files 'images', or one file as image/...",
        )  # fmt: skip
    if not form.uploads:
        raise Refused(
            422, "no-image", "there is no image in the request",
            fix="send one file or more in the field 'images'",
        )  # fmt: skip
    return form


async def _multipart(request: Request, limits: Limits) -> Form:
    try:
        form = await request.form(
            max_files=limits.images, max_fields=limits.images + 8, max_part_size=_FIELD_BYTES
        )
    except (HTTPException, ValueError) as error:
        # a ValueError comes of a character set in which the form's own names cannot be read
        why = str(error.detail) if isinstance(error, HTTPException) else str(error)
        too_many = "too many" in why.lower()
        raise Refused(
            422 if too_many else 400, "too-many-images" if too_many else "malformed",
            f"the form cannot be read: {show(why)}",
            fix=f"send at most {limits.images} images at a time, as multipart/form-data",
        ) from error  # fmt: skip
    try:
        files = [v for k, v in form.multi_items() if k == "images" and isinstance(v, UploadFile)]
        # a form that is sent with nothing picked holds one nameless empty file
        files = [file for file in files if file.filename or file.size]
        fields = [(k, v) for k, v in form.multi_items() if isinstance(v, str)]
        patients = [_patient(v) for k, v in fields if k == "patient"]
        if len(patients) not in (0, 1, len(files)):
            raise Refused(
                422, "patients", f"{len(patients)} patients for {len(files)} images",
                fix="send none, one for all, or one for each image",
            )  # fmt: skip
        each = patients * len(files) if len(patients) == 1 else patients or [None] * len(files)
        uploads = [
            Upload(await file.read(), display_name(file.filename), patient)
            for file, patient in zip(files, each, strict=True)
        ]
        return Form(uploads, dict(reversed(fields)))
    finally:
        await form.close()


def display_name(name: str | None) -> str:
    """Return the last part of a file name on one line, at most NAME_LENGTH characters."""
    last = re.split(r"[/\\]", name or "")[-1]
    return show(last)[:NAME_LENGTH] or "image"


def _patient(text: str | None) -> str | None:
    text = (text or "").strip()
    return show(text)[:NAME_LENGTH] or None


async def within(request: Request, work: Awaitable[T], seconds: float) -> T:
    """Wait for work; drop it once the client has left or the time is over.

    Raises Refused (499, which nobody receives, or 504).
    """
    task = asyncio.ensure_future(work)
    left = asyncio.ensure_future(_left(request))
    try:
        done, _ = await asyncio.wait(
            {task, left}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED
        )
    finally:
        left.cancel()
        if not task.done():
            task.cancel()
    if task in done:
        return task.result()
    if left in done:
        raise gone()
    raise Refused(
        504, "late", f"there was no answer within {seconds:g} s",
        fix="send fewer images at a time, or try again later", retry_s=max(1, round(seconds)),
    )  # fmt: skip


def gone() -> Refused:
    """Return what is noted of a client that left before its answer."""
    return Refused(499, "gone", "the client has left", fix="wait for the answer")


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
