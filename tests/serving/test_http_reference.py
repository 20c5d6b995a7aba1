"""The reference of the HTTP interface is that of the server as it is."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parents[2] / "docs"


@pytest.mark.slow
def test_the_reference_is_made_from_the_server_s_own_description(served):
    reference = runpy.run_path(str(DOCS / "http_reference.py"))["reference"]
    with served.client() as client:
        made = reference(client.get("/openapi.json").json())
    assert made == (DOCS / "http.md").read_text(encoding="utf-8"), "see docs/http_reference.py"


@pytest.mark.slow
def test_every_object_that_is_named_is_described(served):
    with served.client() as client:
        openapi = client.get("/openapi.json").json()
    for name, schema in openapi["components"]["schemas"].items():
        assert schema["description"], name
    for path, verbs in openapi["paths"].items():
        for request in verbs.values():
            for one in request.get("parameters", ()):
                assert one["description"], (path, one["name"])
