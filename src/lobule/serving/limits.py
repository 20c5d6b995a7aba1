"""What the server takes at most, and how it says no."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Bounds on one request and on all that wait.

    upload_bytes, images: of one request. pixels: of one image. waiting: images that wait or are in
    work, of all requests. explaining: heat maps likewise. request_s: until an answer must be there.
    decode_s: until one image must be decoded. decoder_bytes: memory of the process that decodes.
    """

    upload_bytes: int = 32 * 2**20
    images: int = 32
    pixels: int = 25_000_000
    waiting: int = 64
    explaining: int = 8
    request_s: float = 30.0
    decode_s: float = 5.0
    decoder_bytes: int = 2 * 2**30


class Refused(Exception):  # noqa: N818  it is no fault of the program
    """A request, or one image of it, that is not answered; `status` as in HTTP.

    code: one word for programs. what, fix: for people. retry_s: when it is worth another try.
    """

    def __init__(
        self, status: int, code: str, what: str, *, fix: str, retry_s: int | None = None
    ) -> None:
        super().__init__(what)
        self.status = status
        self.code = code
        self.what = what
        self.fix = fix
        self.retry_s = retry_s


def too_many_bytes(limits: Limits) -> Refused:
    """Return what is said to a request that is too large."""
    return Refused(
        413, "too-many-bytes", f"the request has more than {limits.upload_bytes:,} bytes",
        fix="send fewer images at a time, or start the server with a larger --max-upload",
    )  # fmt: skip
