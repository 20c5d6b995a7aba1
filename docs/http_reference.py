"""Write docs/http.md from the OpenAPI document of a server that runs.

lobule serve run/model --port 8000 --token a-token-of-some-length
python docs/http_reference.py http://127.0.0.1:8000 a-token-of-some-length > docs/http.md
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import Any
from urllib.request import Request, urlopen

HEAD = """# HTTP reference

Made by `python docs/http_reference.py` from `/openapi.json`, which a running server gives to
programs. How to ask, and who may: [Serving](serving.md). Research use only. Not for diagnosis.
"""

Json = dict[str, Any]


def reference(openapi: Json) -> str:
    """Return the page."""
    return "\n".join([HEAD, *_requests(openapi["paths"]), *_objects(openapi)]).rstrip() + "\n"


def _requests(paths: Json) -> Iterator[str]:
    for path, verbs in paths.items():
        for verb, request in verbs.items():
            yield f"## `{verb.upper()} {path}`\n\n{request['description']}\n"
            if body := request.get("requestBody"):
                kinds = " or ".join(f"`{kind}`" for kind in body["content"])
                form = next(iter(body["content"].values()))["schema"]
                yield f"Body: {kinds}. Fields of a form:\n"
                yield from _table(form)
            if asked := request.get("parameters"):
                yield "Asked in the address:\n"
                named = {one["name"]: _with_text(one) for one in asked}
                yield from _table({"properties": named})
            yield "| status | what |\n| --- | --- |"
            for status, answer in request["responses"].items():
                schema = answer.get("content", {}).get("application/json", {}).get("schema", {})
                what = answer["description"] if int(status) >= 400 else _kind(schema)
                yield f"| {status} | {what} |"
            yield ""


def _with_text(parameter: Json) -> Json:
    return {"description": parameter.get("description", ""), **parameter["schema"]}


def _objects(openapi: Json) -> Iterator[str]:
    for name, schema in openapi["components"]["schemas"].items():
        yield f"## {name}\n\n{schema['description'].strip()}\n"
        yield from _table(schema)


def _table(schema: Json) -> Iterator[str]:
    yield "| field | type | meaning |\n| --- | --- | --- |"
    for name, field in schema["properties"].items():
        told = field.get("description", "")
        if field.get("default") not in (None, field.get("const")):
            told = f"{told} Default: `{field['default']}`.".strip()
        yield f"| `{name}` | {_kind(field)} | {told} |"
    yield ""


def _kind(schema: Json) -> str:
    """Return the type of a field in words; of an object, where it stands on the page."""
    if name := schema.get("$ref", "").rpartition("/")[2]:
        return f"[{name}](#{name.lower()})"
    if "const" in schema:
        return f"`{schema['const']}`"
    if "enum" in schema:
        return ", ".join(f"`{one}`" for one in schema["enum"])
    if "anyOf" in schema:
        return " or ".join(_kind(one) for one in schema["anyOf"])
    if schema.get("type") == "array":
        return f"list of {_kind(schema['items'])}"
    if isinstance(schema.get("additionalProperties"), dict):
        return f"{_kind(schema['additionalProperties'])} by name"
    if schema.get("format") == "binary":
        return "file"
    return _bounded(schema)


def _bounded(schema: Json) -> str:
    name = str(schema.get("type", "text"))
    if "minimum" in schema:
        return f"{name}, {schema['minimum']} to {schema['maximum']}"
    return name


if __name__ == "__main__":
    url, token = sys.argv[1:]
    asked = Request(f"{url}/openapi.json", headers={"Authorization": f"Bearer {token}"})
    with urlopen(asked) as reply:
        print(reference(json.load(reply)), end="")  # noqa: T201  what it is for
