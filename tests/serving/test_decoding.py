"""Decoding apart: the same pixels, and a process that may die or hang without harm."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from lobule.data.images import FORMATS, decode
from lobule.serving.decoding import Decoder
from lobule.serving.limits import Limits, Refused


@pytest.fixture
def decoder():
    one = Decoder(Limits(), n=1)
    yield one
    one.close()


def process(decoder):
    """Return the process of an idle decoder that has one."""
    worker = decoder._idle.get()
    decoder._idle.put(worker)
    return worker._process


def png(width, height, colour="pink"):
    out = io.BytesIO()
    Image.new("RGB", (width, height), colour).save(out, "PNG")
    return out.getvalue()


def refused(decoder, data):
    with pytest.raises(Refused) as caught:
        decoder.decode(data)
    return caught.value


@pytest.mark.parametrize("kind", FORMATS)
def test_pixels_are_those_of_the_one_decoder(decoder, in_formats, kind):
    assert np.array_equal(decoder.decode(in_formats[kind]), decode(in_formats[kind]))


def test_pixels_of_rare_kinds_are_those_of_the_one_decoder(decoder, odd_images):
    for name, data in odd_images.items():
        assert np.array_equal(decoder.decode(data), decode(data)), name


@pytest.mark.parametrize(
    ("data", "status", "code", "what"),
    [
        (b"benign", 415, "unsupported", "not a PNG"),
        (b"GIF89a" + b"\0" * 99, 415, "unsupported", "not a PNG"),
        (b"", 422, "damaged", "empty"),
        (png(64, 64)[:-40], 422, "damaged", "truncated"),
        (png(5_001, 5_000), 413, "too-large", "5,001 x 5,000 pixels"),
    ],
)
def test_what_cannot_be_decoded_is_refused_by_its_cause(decoder, data, status, code, what):
    error = refused(decoder, data)
    assert (error.status, error.code) == (status, code)
    assert what in error.what
    assert error.fix
    assert decoder.restarts == 0
    assert decoder.decode(png(3, 2)).shape == (2, 3, 3)


def test_a_process_that_an_image_brings_down_is_replaced_and_the_image_refused(decoder):
    running = process(decoder)
    # stopped, it takes the file and does not answer
    running.send_signal(signal.SIGSTOP)
    threading.Timer(0.3, running.kill).start()
    error = refused(decoder, png(8, 8))
    assert (error.status, error.code) == (422, "damaged")
    assert "brought the decoder down" in error.what
    assert decoder.restarts == 1
    assert decoder.decode(png(3, 2)).shape == (2, 3, 3)


def test_a_process_that_died_while_idle_costs_no_image(decoder):
    running = process(decoder)
    running.kill()
    running.wait()
    assert decoder.decode(png(3, 2)).shape == (2, 3, 3)
    assert decoder.restarts == 1


def test_an_image_that_takes_too_long_is_refused_in_time():
    decoder = Decoder(Limits(decode_s=1.0), n=1)
    try:
        # the imports of a new process count as well
        for _ in range(20):
            try:
                decoder.decode(png(3, 2))
                break
            except Refused:
                continue
        before = decoder.restarts
        process(decoder).send_signal(signal.SIGSTOP)
        began = time.monotonic()
        error = refused(decoder, png(8, 8))
        assert time.monotonic() - began < 3
        assert error.status == 422
        assert "not decoded within 1 s" in error.what
        assert decoder.restarts == before + 1
    finally:
        decoder.close()


def test_memory_of_the_process_is_bounded():
    decoder = Decoder(Limits(decoder_bytes=400 * 2**20), n=1)
    try:
        assert decoder.decode(png(100, 100)).shape == (100, 100, 3)
        # RGBA of 25 million pixels is decoded, laid on white and converted: over 300 MB
        out = io.BytesIO()
        Image.new("RGBA", (5_000, 5_000), (1, 2, 3, 4)).save(out, "PNG", compress_level=1)
        error = refused(decoder, out.getvalue())
        assert error.status in (413, 422)
        assert "memory" in error.what or "down" in error.what
        assert decoder.decode(png(3, 2)).shape == (2, 3, 3)
    finally:
        decoder.close()


def test_many_threads_get_each_its_own_pixels():
    decoder = Decoder(Limits(), n=2)
    try:
        with ThreadPoolExecutor(8) as pool:
            colours = [(k, 2 * k, 255 - k) for k in range(40)]
            found = list(pool.map(lambda c: decoder.decode(png(20, 10, c)), colours))
        assert [tuple(image[5, 5]) for image in found] == colours
    finally:
        decoder.close()


def test_closing_leaves_no_process():
    decoder = Decoder(Limits(), n=2)
    workers = [decoder._idle.get() for _ in range(2)]
    for worker in workers:
        decoder._idle.put(worker)
    decoder.close()
    assert all(worker._process.poll() is not None for worker in workers)


def test_a_file_in_the_working_folder_is_not_imported(tmp_path):
    """Someone serves from a folder of downloads, where a numpy.py may lie."""
    for name in ("json", "numpy", "PIL", "struct"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('taken in')")
    code = (
        "import sys; sys.path = [p for p in sys.path if p]\n"
        "import os; from lobule.serving.decoding import Decoder\n"
        "from lobule.serving.limits import Limits; os.chdir(sys.argv[1])\n"
        "decoder = Decoder(Limits(), n=1)\n"
        "print(decoder.decode(bytes.fromhex(sys.argv[2])).shape)\n"
        "decoder.close()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path), png(3, 2).hex()],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.stdout == "(2, 3, 3)\n", done.stderr


def test_a_key_press_that_stops_the_server_leaves_its_decoders_at_work(decoder):
    """Ctrl-C goes to all processes of the terminal's group."""
    assert os.getpgid(process(decoder).pid) != os.getpgid(0)
