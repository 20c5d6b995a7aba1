"""A real server on a free port, its token, and photographs to send."""

from __future__ import annotations

import io
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import pytest
import uvicorn
from PIL import Image

from lobule.data.images import FORMATS
from lobule.explain.neighbours import read_cases
from lobule.models.engines import make_engine
from lobule.serving.app import make_app
from lobule.serving.guard import Access
from lobule.serving.limits import Limits
from lobule.serving.service import Service
from lobule.training.features import Extractor

TOKEN = "correct-horse-battery-staple"


@dataclass(frozen=True)
class Served:
    """A server that runs: where it is, and its process."""

    url: str
    process: subprocess.Popen
    log: Path

    def client(self, **options):
        headers = {"authorization": f"Bearer {TOKEN}"} | options.pop("headers", {})
        return httpx.Client(base_url=self.url, headers=headers, timeout=60, **options)

    @property
    def memory_mb(self):
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1024

    @property
    def decoders(self):
        """Process numbers of its decoders."""
        listed = subprocess.run(
            ["pgrep", "-P", str(self.process.pid)], capture_output=True, text=True
        )
        return [int(number) for number in listed.stdout.split()]


def start(model, folder, *options):
    log = folder / "audit-log.jsonl"
    command = [sys.executable, "-c", "from lobule.cli import main; main()", "serve", str(model),
               "--port", "0", "--token", TOKEN, "--audit-log", str(log), *options]  # fmt: skip
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env=os.environ | {"LOBULE_CACHE": str(folder)}
    )
    line = process.stdout.readline()
    url = re.search(r"http://[\d.]+:\d+", line)
    assert url, f"the server said {line!r}"
    served = Served(url[0], process, log)
    for _ in range(200):
        try:
            if httpx.get(f"{served.url}/healthz").status_code == 200:
                return served
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    raise AssertionError("the server did not become healthy")


def stop(served):
    served.process.send_signal(signal.SIGINT)
    served.process.wait(timeout=30)
    served.process.stdout.close()


@pytest.fixture(scope="session")
def served(finished_run, tmp_path_factory):
    """A server of the made-up run's model."""
    server = start(finished_run.folder / "model", tmp_path_factory.mktemp("served"))
    yield server
    stop(server)


@pytest.fixture(scope="session")
def photographs(tissue):
    return sorted(tissue.images.rglob("*.png"))


@dataclass(frozen=True)
class Guarded:
    """A server inside this process, which can be spoken to byte by byte."""

    port: int

    @property
    def host(self):
        return f"127.0.0.1:{self.port}"

    def client(self):
        headers = {"authorization": f"Bearer {TOKEN}"}
        return httpx.Client(base_url=f"http://{self.host}", headers=headers, timeout=60)

    def raw(self, data):
        """Send bytes and return the connection."""
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=20)
        connection.sendall(data)
        return connection

    def say(self, line, *headers):
        """Send a request of one line and headers; return status and all that came back."""
        lines = [f"{line} HTTP/1.1", *headers, "Content-Length: 0", "Connection: close"]
        with self.raw(("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")) as connection:
            answer = b""
            while part := connection.recv(65_536):
                answer += part
        text = answer.decode("latin-1")
        return int(text.split(" ")[1]), text


@pytest.fixture(scope="session")
def serving(finished_run):
    """A context manager that serves the made-up run's model: serving(limits=Limits())."""

    @contextmanager
    def run(*, limits=None, model=None):
        model = model or finished_run.model
        engine = make_engine(model.backbone.module)
        service = Service(
            model, Extractor(engine, model.preprocessing, model.features_id),
            limits=limits or Limits(), cases=read_cases(model, finished_run.folder),
        )  # fmt: skip
        with socket.create_server(("127.0.0.1", 0)) as bound:
            port = bound.getsockname()[1]
            names = ("127.0.0.1", "localhost", "[::1]")
            access = Access(frozenset(f"{name}:{port}" for name in names), TOKEN)
            config = uvicorn.Config(
                make_app(service, access), log_level="warning", ws="none", http="h11"
            )
            server = uvicorn.Server(config)
            thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
            thread.start()
            try:
                while not server.started and thread.is_alive():
                    time.sleep(0.01)
                yield Guarded(port)
            finally:
                # a test that fails must not leave a thread that keeps the process from ending
                server.should_exit = True
                thread.join(timeout=30)

    return run


@pytest.fixture(scope="session")
def guarded(serving):
    with serving() as server:
        yield server


@pytest.fixture(scope="session")
def in_formats():
    """The same photograph in each format that is read."""
    pixels = np.random.default_rng(1).integers(0, 256, (40, 60, 3)).astype(np.uint8)
    found = {}
    for form in FORMATS:
        out = io.BytesIO()
        Image.fromarray(pixels).save(out, form)
        found[form] = out.getvalue()
    return found


@pytest.fixture(scope="session")
def odd_images():
    """Rare but readable kinds: CMYK, 16 bits, palette, transparency, turned by EXIF."""
    rng = np.random.default_rng(2)
    rgb = Image.fromarray(rng.integers(0, 256, (40, 60, 3)).astype(np.uint8))
    grey = Image.fromarray(rng.integers(0, 65536, (40, 60)).astype(np.uint16))
    turned = Image.Exif()
    turned[0x0112] = 6
    found = {}
    for name, image, form, options in (
        ("cmyk", rgb.convert("CMYK"), "JPEG", {}), ("16 bits", grey, "PNG", {}),
        ("palette", rgb.convert("P"), "PNG", {}), ("clear", rgb.convert("RGBA"), "PNG", {}),
        ("turned", rgb, "JPEG", {"exif": turned}), ("one bit", rgb.convert("1"), "TIFF", {}),
    ):  # fmt: skip
        out = io.BytesIO()
        image.save(out, form, **options)
        found[name] = out.getvalue()
    return found
