"""`lobule serve`: who may ask, where it listens, how it ends."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading

import httpx
import numpy as np
import pytest
from tests.serving.conftest import TOKEN, start, stop
from typer.testing import CliRunner

from lobule.audit_log import AuditLog, verify
from lobule.cli.app import app
from lobule.data.images import shrink
from lobule.errors import OutputError, UsageError
from lobule.serving.answers import Answer
from lobule.serving.decoding import Decoder
from lobule.serving.limits import Limits, Refused
from lobule.serving.server import Address, check, new_token, serve
from lobule.serving.service import _JUDGED_PX, _note

SERVE = [sys.executable, "-c", "from lobule.cli import main; main()", "serve"]


def model_of(run):
    return str(run.folder / "model")


def run(*arguments):
    return CliRunner().invoke(app, ["serve", *map(str, arguments)])


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.0.1", "localhost", "::1"])
def test_without_a_token_only_this_machine_is_listened_to(host):
    check(Address(host, 0, None))


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.7", "ward.example", ""])
def test_without_a_token_others_are_refused(host):
    with pytest.raises(UsageError, match="without a token"):
        check(Address(host, 0, None))
    check(Address(host, 0, new_token()))


@pytest.mark.parametrize(
    "token",
    ["short", "a b c d e f g h i j", "semicolon;semicolon", "ampersand&ampersand",
     "hash#hash#hash#1", "plus+plus+plus+plus", "per%cent%cent%cent", "quote'quote'quote",
     "ключключключключ", "x" * 257,
     "newline\nnewline\nnewline"],
)  # fmt: skip
def test_a_token_that_does_not_go_into_an_address_and_a_cookie_is_refused(token):
    with pytest.raises(UsageError, match="16 to 256 letters"):
        check(Address("127.0.0.1", 0, token))


def test_new_tokens_are_taken_and_differ():
    tokens = {new_token() for _ in range(50)}
    assert len(tokens) == 50
    for token in tokens:
        check(Address("0.0.0.0", 0, token))


@pytest.mark.parametrize(
    "options",
    [["--token", TOKEN, "--no-token"], ["--no-token", "--host", "0.0.0.0"], ["--token", "short"],
     ["--max-upload", "0"], ["--timeout", "0"], ["--port", "99999"], ["--port", "-1"],
     ["--host", "no.such.host.invalid"]],
)  # fmt: skip
def test_what_cannot_be_served_as_asked_is_a_usage_error(finished_run, tmp_path, options):
    done = run(model_of(finished_run), "--audit-log", tmp_path / "log.jsonl", *options)
    assert done.exit_code == 2, done.output


def test_a_folder_without_a_model_is_a_model_error(tmp_path):
    assert run(tmp_path, "--no-audit-log").exit_code == 4


def test_a_port_that_is_taken_is_named(finished_run):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        said = rf"cannot listen on 127\.0\.0\.1:{port}: Address already in use"
        with pytest.raises(OutputError, match=said):
            serve(
                finished_run.folder / "model", Address("127.0.0.1", port, TOKEN),
                ready=lambda url: pytest.fail("it listens"),
            )  # fmt: skip


@pytest.mark.slow
def test_the_address_that_is_printed_opens_the_page(finished_run, tmp_path):
    process = subprocess.Popen(
        [*SERVE, model_of(finished_run), "--port", "0", "--json", "--allow-host", "ward.example",
         "--audit-log", str(tmp_path / "log.jsonl")],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        record = json.loads(process.stdout.readline())
        assert record["schema"] == "lobule.serve/1"
        assert record["audit_log"] == str(tmp_path / "log.jsonl")
        url = httpx.URL(record["url"])
        with httpx.Client(follow_redirects=True, timeout=30) as client:
            page = client.get(url)
            assert page.status_code == 200
            assert "Research use only. Not for diagnosis." in page.text
            assert page.url.query == b""
            # the cookie is of this port alone: two servers of one machine do not share it
            assert list(client.cookies) == [f"lobule_token_{url.port}"]
            ours = {"host": f"ward.example:{url.port}"}
            assert client.get(url.copy_with(query=None), headers=ours).status_code == 200
            assert "server" not in page.headers
    finally:
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    assert process.returncode == 0
    assert out == ""
    assert "Traceback" not in err


def test_a_connection_is_answered_without_waiting_for_the_network(served):
    """Nagle's algorithm and delayed acknowledgement together cost 40 ms an answer."""
    with served.client() as client:
        seconds = [client.get("/v1/model").elapsed.total_seconds() for _ in range(30)]
    assert np.median(seconds) < 0.03


@pytest.mark.slow
def test_ctrl_c_answers_what_is_in_work_and_ends_well(finished_run, photographs, tmp_path):
    server = start(finished_run.folder / "model", tmp_path)
    found = []

    def ask():
        with server.client() as client:
            sent = [("images", (p.name, p.read_bytes())) for p in photographs[:24]]
            found.append(client.post("/v1/predict", files=sent))

    asking = threading.Thread(target=ask)
    with server.client() as client:
        asking.start()
        while "lobule_images_waiting 24.0" not in client.get("/metrics").text:
            assert not found
    stop(server)
    asking.join(30)
    assert found[0].status_code == 200
    assert all(result["error"] is None for result in found[0].json()["results"])
    assert server.process.returncode == 0
    assert verify(server.log).records == 24
    with pytest.raises(httpx.TransportError):
        httpx.get(f"{server.url}/healthz")


@pytest.mark.slow
def test_no_decoder_outlives_a_server_that_is_killed(finished_run, tmp_path):
    server = start(finished_run.folder / "model", tmp_path)
    left = server.decoders
    assert len(left) == 2
    server.process.kill()
    server.process.wait()
    server.process.stdout.close()
    for number in left:
        for _ in range(200):
            if not alive(number):
                break
            threading.Event().wait(0.05)
        assert not alive(number)


def alive(number):
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    with open(f"/proc/{number}/stat") as stat:
        return stat.read().rsplit(")", 1)[1].split()[0] != "Z"


def test_what_cannot_be_logged_is_not_said(served, photographs, small_disk):
    disk = small_disk(64)
    log = AuditLog(disk / "log.jsonl")
    with served.client() as client:
        sent = {"content": photographs[0].read_bytes(), "headers": {"content-type": "image/png"}}
        said = client.post("/v1/predict", **sent).json()["results"][0]["answer"]
    answer = Answer.model_validate(said)
    _note(log, answer)
    (disk / "rest").write_bytes(b"x" * 48 * 1024)
    with pytest.raises(Refused) as caught:  # noqa: PT012
        for _ in range(100):
            _note(log, answer)
    assert (caught.value.status, caught.value.code) == (503, "log")


def test_a_map_of_a_large_photograph_is_judged_on_a_smaller_one():
    large = np.zeros((3_000, 5_000, 3), np.uint8)
    assert shrink(large, _JUDGED_PX).shape == (614, 1_024, 3)
    usual = np.random.default_rng(0).integers(0, 256, (460, 700, 3), dtype=np.uint8)
    assert np.array_equal(shrink(usual, _JUDGED_PX), usual)


def test_decoders_take_no_more_than_they_may():
    decoder = Decoder(Limits(decoder_bytes=512 * 2**20), n=1)
    worker = decoder._idle.get()
    decoder._idle.put(worker)
    try:
        with pytest.raises(Refused):
            decoder.decode(b"no image")
        with open(f"/proc/{worker._process.pid}/limits") as limits:
            (line,) = [x for x in limits if x.startswith("Max address space")]
        assert line.split()[3:5] == [str(512 * 2**20)] * 2
    finally:
        decoder.close()
