"""The HTTP interface on a real server: the same answers as elsewhere, and a reason for each no."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import signal
import threading
import time

import httpx
import numpy as np
import pytest
from PIL import Image
from tests.serving.conftest import TOKEN, start, stop

from lobule.audit_log import verify
from lobule.data.scan import scan_files
from lobule.inference.predictor import predict
from lobule.models.bundle import load_model

PNG = {"content-type": "image/png"}

FORM = {"content-type": "multipart/form-data; boundary=x"}


def files(*paths):
    return [("images", (path.name, path.read_bytes(), "image/png")) for path in paths]


def png(size=(60, 40), mode="RGB", form="PNG", seed=0, **options):
    rng = np.random.default_rng(seed)
    shape = {"RGB": (*size[::-1], 3), "CMYK": (*size[::-1], 4), "L": size[::-1]}[mode]
    out = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, shape).astype(np.uint8), mode).save(out, form, **options)
    return out.getvalue()


def test_many_images_get_what_predict_says_to_1e_6(served, finished_run, photographs):
    expected = predict(load_model(finished_run.folder / "model"), scan_files(photographs))
    with served.client() as client:
        found = []
        for start_at in range(0, len(photographs), 16):
            reply = client.post("/v1/predict", files=files(*photographs[start_at : start_at + 16]))
            assert reply.status_code == 200, reply.text
            found += [result["answer"] for result in reply.json()["results"]]
    assert [a["name"] for a in found] == [p.name for p in photographs]
    table = expected.table
    by_http = np.array([a["probabilities"]["malignant"] for a in found])
    assert np.abs(by_http - table["prob_malignant"].to_numpy()).max() < 1e-6
    assert [a["sha256"] for a in found] == scan_files(photographs).table["sha256"].tolist()
    for answer, (_, row) in zip(found, table.iterrows(), strict=True):
        members = [c for c in ("benign", "malignant") if row[f"set_{c}"]]
        assert answer["set"] == members
        unlike = not row["accepted"]
        verdict = "unlike" if unlike else ("decided" if len(members) == 1 else "uncertain")
        assert answer["verdict"] == verdict
        assert answer["decision"] == (None if unlike else row["decision"])
        identity = answer["identity"]
        assert identity["weights_sha256"] == row["weights"]
        assert identity["preprocessing"] == row["preprocessing"]
        assert identity["notice"] == "Research use only. Not for diagnosis."


@pytest.mark.slow
def test_real_photographs_get_what_predict_says_to_1e_6(served, finished_run, real_data):
    paths = sorted((real_data / "breakhis-100x").rglob("*.jpg"))[::8][:50]
    assert len(paths) == 50
    expected = predict(load_model(finished_run.folder / "model"), scan_files(paths)).table
    with served.client() as client:
        for k, path in enumerate(paths):
            reply = client.post(
                "/v1/predict", content=path.read_bytes(), headers={"content-type": "image/jpeg"}
            )
            found = reply.json()["results"][0]["answer"]["probabilities"]["malignant"]
            assert abs(found - expected["prob_malignant"].iloc[k]) < 1e-6


def test_some_bad_among_good_are_told_apart(served, photographs):
    sent = [
        *files(photographs[0]),
        ("images", ("../../etc/pass\nwd.png", b"no image", "image/png")),
    ]
    with served.client() as client:
        reply = client.post("/v1/predict", files=sent)
    assert reply.status_code == 200
    good, bad = reply.json()["results"]
    assert good["error"] is None
    assert bad["answer"] is None
    assert bad["error"]["status"] == 415
    assert bad["error"]["name"] == "pass%0Awd.png"


@pytest.mark.parametrize(
    ("data", "status", "words"),
    [
        (b"", 422, "no image"),
        (b"plain text, no image at all", 415, "not a PNG"),
        (b"GIF89a" + bytes(40), 415, "not a PNG"),
        (b"%PDF-1.7 x", 415, "not a PNG"),
        (b'<svg xmlns="http://www.w3.org/2000/svg"/>', 415, "not a PNG"),
        (png()[:400], 422, "damaged or truncated"),
        (png((6000, 5000), "L", compress_level=1), 413, "30,000,000|6,000 x 5,000"),
    ],
)
def test_what_is_no_good_image_is_refused_with_its_cause(served, data, status, words):
    with served.client() as client:
        reply = client.post("/v1/predict", content=data, headers=PNG)
        assert reply.status_code == status, reply.text
        body = reply.json()
        assert body["schema"] == "lobule.error/1"
        assert body["status"] == status
        assert body["fix"]
        assert re.search(words, body["what"]), body["what"]
        good = client.post("/v1/predict", content=png(), headers=PNG)
        assert good.status_code == 200


@pytest.mark.parametrize(
    "data",
    [png(mode="CMYK", form="JPEG"), png(mode="L"), png(form="TIFF"), png(form="BMP"),
     png(form="WEBP", lossless=True)],
    ids=["cmyk", "grey", "tiff", "bmp", "webp"],
)  # fmt: skip
def test_odd_but_readable_images_are_answered(served, data):
    with served.client() as client:
        reply = client.post("/v1/predict", content=data, headers={"content-type": "image/x"})
    assert reply.status_code == 200, reply.text


def test_sixteen_bit_grey_is_answered(served):
    out = io.BytesIO()
    grey = np.random.default_rng(0).integers(0, 65536, (40, 60)).astype(np.uint16)
    Image.fromarray(grey).save(out, "PNG")
    with served.client() as client:
        reply = client.post("/v1/predict", content=out.getvalue(), headers=PNG)
    assert reply.status_code == 200, reply.text


@pytest.mark.parametrize(
    ("call", "status", "code"),
    [
        ({"content": b"x", "headers": {"content-type": "text/plain"}}, 415, "unsupported"),
        ({"data": {"patient": "7"}, "files": [("other", b"x")]}, 422, "no-image"),
        ({"content": b"broken", "headers": FORM}, 400, "malformed"),
        ({"content": b"x", "headers": {"content-type": "multipart/form-data"}}, 400, "malformed"),
        ({"files": [("images", ("a.png", png())) for _ in range(40)]}, 422, "too-many-images"),
        (
            {"files": [("images", ("a", png()))] * 3, "data": {"patient": ["1", "2"]}},
            422, "patients",
        ),
        ({"content": b"x" * (33 * 2**20), "headers": PNG}, 413, "too-many-bytes"),
    ],
)  # fmt: skip
def test_a_malformed_request_is_refused_with_its_cause(served, call, status, code):
    with served.client() as client:
        reply = client.post("/v1/predict", **call)
    assert (reply.status_code, reply.json()["code"]) == (status, code)


def test_a_body_that_lies_about_its_length_is_stopped_where_it_is_too_long(served):
    def endless():
        for _ in range(40):
            yield b"x" * 2**20

    with served.client() as client:
        reply = client.post("/v1/predict", content=endless(), headers=PNG)
    assert reply.status_code == 413


def test_a_patient_goes_with_each_image_or_with_all(served, photographs):
    with served.client() as client:
        one = client.post("/v1/predict", files=files(*photographs[:2]), data={"patient": "7"})
        each = client.post(
            "/v1/predict", files=files(*photographs[:2]), data={"patient": ["7", "8"]}
        )
    assert [r["answer"]["patient"] for r in one.json()["results"]] == ["7", "7"]
    assert [r["answer"]["patient"] for r in each.json()["results"]] == ["7", "8"]


@pytest.mark.parametrize("method", ["cam", "gradcam"])
def test_explain_gives_a_grid_and_a_picture(served, photographs, method):
    with served.client() as client:
        reply = client.post(
            f"/v1/explain?method={method}&class=malignant", files=files(photographs[0])
        )
        assert reply.status_code == 200, reply.text
        body = reply.json()
        as_png = client.post(f"/v1/explain?method={method}&as=png", files=files(photographs[0]))
    assert np.array(body["evidence"]).ndim == 2
    assert body["of_class"] == "malignant"
    assert set(body["faithfulness"]) >= {"insertion", "deletion_random", "randomised"}
    with Image.open(io.BytesIO(base64.b64decode(body["overlay_png"]))) as picture:
        assert picture.width == 320  # 96 px would leave no room for the legend
        assert picture.text["notice"] == "Research use only. Not for diagnosis."
    assert as_png.headers["content-type"] == "image/png"


@pytest.mark.parametrize(
    "query", ["method=lime", "class=purple", "as=gif", "method=cam&as="],
)  # fmt: skip
def test_explain_refuses_what_it_does_not_know(served, photographs, query):
    with served.client() as client:
        reply = client.post(f"/v1/explain?{query}", files=files(photographs[0]))
    assert reply.status_code == 422
    assert reply.json()["schema"] == "lobule.error/1"


def test_explain_takes_one_image(served, photographs):
    with served.client() as client:
        reply = client.post("/v1/explain", files=files(*photographs[:2]))
    assert reply.json()["code"] == "one-image"


def test_similar_cases_are_of_other_patients_than_the_file_s_own(served, photographs):
    with served.client() as client:
        for path in photographs[::6]:
            body = client.post("/v1/similar?k=20", files=files(path)).json()
            own = path.name.split("_")[0].removeprefix("patient-")
            patients = [case["patient"] for case in body["cases"]]
            assert own not in patients
            assert len(patients) == 11
        none = client.post("/v1/similar?k=0", files=files(photographs[0]))
    assert none.status_code == 422


def test_the_model_says_who_it_is_and_counters_count(served, finished_run):
    with served.client() as client:
        model = client.get("/v1/model").json()
        client.get("/no/such/place")
        counters = client.get("/metrics").text
    assert model["classes"] == ["benign", "malignant"]
    assert model["identity"]["weights_sha256"] == finished_run.model.weights_sha256
    assert model["training"]["data_hash"] == finished_run.model.info.training["data_hash"]
    assert 'lobule_requests_total{route="/v1/model",status="200"}' in counters
    assert 'route="other",status="404"' in counters
    assert "/no/such" not in counters


def test_every_answer_is_in_an_unbroken_log_without_names(served, photographs):
    with served.client() as client:
        before = verify(served.log).records
        sent = [("images", ("secret-name.png", photographs[0].read_bytes(), "image/png"))]
        answer = client.post("/v1/predict", files=sent, data={"patient": "Mrs Smith"}).json()
    assert verify(served.log).records == before + 1
    text = served.log.read_text()
    assert "secret-name" not in text
    assert "Smith" not in text
    last = json.loads(text.splitlines()[-1])
    assert last["answer"]["sha256"] == answer["results"][0]["answer"]["sha256"]
    assert last["identity"]["model"] == answer["results"][0]["answer"]["identity"]["model"]


def test_decoders_that_are_killed_are_replaced(served, photographs):
    with served.client() as client:
        for _ in range(3):
            for number in served.decoders:
                os.kill(number, signal.SIGKILL)
            replies = [client.post("/v1/predict", files=files(photographs[0])) for _ in range(4)]
            assert {r.status_code for r in replies} <= {200, 422}
            assert replies[-1].status_code == 200


@pytest.mark.slow
def test_a_full_queue_refuses_at_once_and_says_when_to_come_again(
    finished_run, photographs, tmp_path
):
    server = start(finished_run.folder / "model", tmp_path, "--max-waiting", "4")
    try:
        seconds, replies = [], []

        def ask():
            with server.client() as client:
                began = time.perf_counter()
                reply = client.post("/v1/predict", files=files(*photographs[:4]))
                seconds.append(time.perf_counter() - began)
                replies.append(reply)

        threads = [threading.Thread(target=ask) for _ in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        statuses = [reply.status_code for reply in replies]
        assert set(statuses) == {200, 429}
        refused = next(reply for reply in replies if reply.status_code == 429)
        assert int(refused.headers["retry-after"]) >= 1
        assert refused.json()["code"] == "busy"
    finally:
        stop(server)


@pytest.mark.slow
def test_work_that_takes_too_long_is_given_up(finished_run, photographs, tmp_path):
    server = start(finished_run.folder / "model", tmp_path, "--timeout", "0.01")
    try:
        with server.client() as client:
            reply = client.post("/v1/predict", files=files(*photographs[:16]))
            assert reply.status_code in (408, 504)
            # what was given up is not held against the next one for ever
            time.sleep(1)
            assert "lobule_images_waiting 0.0" in client.get("/metrics").text
    finally:
        stop(server)


def test_a_client_that_leaves_gives_its_places_back(served, photographs):
    many = files(*photographs[:16])
    with served.client() as client, pytest.raises(httpx.ReadTimeout):
        client.post("/v1/predict", files=many, timeout=httpx.Timeout(5, read=0.02))
    with served.client() as client:
        for _ in range(50):
            if "lobule_images_waiting 0.0" in client.get("/metrics").text:
                break
            time.sleep(0.1)
        else:
            raise AssertionError("places were not given back")


def test_openapi_describes_what_is_there(served):
    with served.client() as client:
        document = client.get("/openapi.json").json()
    assert set(document["paths"]) == {
        "/v1/predict", "/v1/explain", "/v1/similar", "/v1/model", "/healthz", "/metrics",
    }  # fmt: skip


def test_the_token_is_needed_for_all_but_health(served):
    with httpx.Client(base_url=served.url) as client:
        assert client.get("/healthz").status_code == 200
        for path in ("/", "/v1/model", "/metrics", "/openapi.json", "/static/page.css"):
            reply = client.get(path)
            assert reply.status_code == 401
            assert reply.headers["www-authenticate"] == "Bearer"
        wrong = client.get("/v1/model", headers={"authorization": f"Bearer {TOKEN}x"})
        assert wrong.status_code == 401
