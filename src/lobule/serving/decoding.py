"""Images are decoded in processes of their own, which may die or hang without harm.

A file from outside meets its decoder there, within bounds of time and memory. What comes back is a
line of JSON and the pixels, nothing that could be executed. Decoding is that of `data.images`, so
that the server sees the very pixels that `lobule predict` sees.

    parent -> child   8 bytes, the length of the file; the file
    child -> parent   4 bytes, the length of the line; the line; height * width * 3 bytes if "ok"
"""

from __future__ import annotations

import json
import queue
import resource
import struct
import subprocess
import sys
import threading
from typing import IO, Any

import numpy as np

from lobule.data.images import ImageArray, decode, read_header
from lobule.errors import ImageError, TooLargeError, UnknownFormatError
from lobule.serving.limits import Limits, Refused

_FIX = {
    "unsupported": "send a PNG, JPEG, TIFF, BMP or WebP photograph",
    "too-large": "send a smaller photograph, or cut it into fields first",
    "damaged": "send the original file again",
}

_STATUS = {"unsupported": 415, "too-large": 413, "damaged": 422}


class Decoder:
    """`n` processes that decode; safe to use from many threads."""

    def __init__(self, limits: Limits, *, n: int = 1) -> None:
        """Start the processes."""
        self.limits = limits
        self.restarts = 0
        self._idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
        for _ in range(n):
            self._idle.put(_Worker(limits))

    def decode(self, data: bytes) -> ImageArray:
        """Return the pixels of an encoded image, (h, w, 3) uint8.

        Raises Refused: 415 if it is none, 413 if it has too many pixels, 422 if it is damaged, or
        brought the process down, or took too long.
        """
        worker = self._idle.get()
        try:
            if worker.dead:
                # ended by another's hand while it was idle: no fault of this image
                self.restarts += 1
                worker.kill()
                worker = _Worker(self.limits)
            return worker.decode(data)
        except _DiedError as died:
            self.restarts += 1
            worker = _Worker(self.limits)
            raise Refused(422, "damaged", str(died), fix=_FIX["damaged"]) from died
        finally:
            self._idle.put(worker)

    def close(self) -> None:
        """End the processes that are idle; others end when this process does."""
        while not self._idle.empty():
            self._idle.get().kill()


class _DiedError(Exception):
    pass


class _Worker:
    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        bounds = [str(limits.pixels), str(limits.decoder_bytes)]
        self._process = subprocess.Popen(
            # -P: a numpy.py in the working folder is not to be taken for numpy
            [sys.executable, "-P", "-m", __name__, *bounds],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            # Ctrl-C is for the server, which first answers what waits
            process_group=0,
        )

    @property
    def dead(self) -> bool:
        return self._process.poll() is not None

    def decode(self, data: bytes) -> ImageArray:
        late = threading.Event()

        def stop() -> None:
            late.set()
            self._process.kill()

        timer = threading.Timer(self.limits.decode_s, stop)
        timer.start()
        try:
            return self._exchange(data)
        except (OSError, EOFError) as error:
            self.kill()
            why = (
                f"was not decoded within {self.limits.decode_s:g} s"
                if late.is_set()
                else "brought the decoder down"
            )
            raise _DiedError(f"the image {why}") from error
        finally:
            timer.cancel()

    def _exchange(self, data: bytes) -> ImageArray:
        to, back = self._process.stdin, self._process.stdout
        if to is None or back is None:
            raise EOFError
        to.write(struct.pack(">Q", len(data)))
        to.write(data)
        to.flush()
        (length,) = struct.unpack(">I", _exactly(back, 4))
        said: dict[str, Any] = json.loads(_exactly(back, length))
        if said["kind"] != "ok":
            kind = said["kind"]
            raise Refused(_STATUS[kind], kind, said["what"], fix=_FIX[kind])
        height, width = said["height"], said["width"]
        pixels = np.frombuffer(_exactly(back, height * width * 3), np.uint8)
        return pixels.reshape(height, width, 3)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                try:
                    pipe.close()
                except BrokenPipeError:
                    # what was not yet sent has nobody to go to
                    continue


def _exactly(pipe: IO[bytes], n: int) -> bytes:
    data = pipe.read(n)
    if len(data) < n:
        raise EOFError
    return data


def work(pixels: int, memory_bytes: int) -> None:
    """Decode what comes by standard input until it ends: the body of the process."""
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    source, out = sys.stdin.buffer, sys.stdout.buffer
    while length := source.read(8):
        line, image = _answer(_exactly(source, struct.unpack(">Q", length)[0]), pixels)
        said = json.dumps(line).encode()
        out.write(struct.pack(">I", len(said)) + said)
        if image is not None:
            out.write(image.tobytes())
        out.flush()


def _answer(data: bytes, pixels: int) -> tuple[dict[str, Any], ImageArray | None]:
    try:
        header = read_header(data, "the image")
        if header.width * header.height > pixels:
            size = f"{header.width:,} x {header.height:,} pixels"
            what = f"cannot read the image: {size}, more than the limit of {pixels:,} pixels"
            return {"kind": "too-large", "what": what}, None
        image = decode(data, "the image")
    except UnknownFormatError as error:
        return {"kind": "unsupported", "what": error.what}, None
    except TooLargeError as error:
        return {"kind": "too-large", "what": error.what}, None
    except ImageError as error:
        return {"kind": "damaged", "what": error.what}, None
    except MemoryError:
        return {"kind": "too-large", "what": "the image needs too much memory to decode"}, None
    height, width = image.shape[:2]
    return {"kind": "ok", "height": height, "width": width}, image


if __name__ == "__main__":
    work(int(sys.argv[1]), int(sys.argv[2]))
