"""The hub: what is fetched from a repository and what never is, and each refusal in its own words.

A small server speaks the hub's protocol, and a process of its own is pointed at it, as a user would
do it: by environment variables.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

COMMIT = "c" * 40
FILES = {
    "config.json": b'{"architecture": "test_resnet"}',
    "README.md": b"---\nlicense: mit\n---\n",
    "model.safetensors": b"not read here",
    "pytorch_model.bin": b"a pickle",
    "code.py": b"raise SystemExit",
}


class Hub(BaseHTTPRequestHandler):
    """Answers as the hub does for the repositories org/open, org/gated, org/broken and no other."""

    def log_message(self, *_):
        pass

    def do_CONNECT(self):
        self.answer(403)

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        self.server.asked.append(self.path)
        path = self.path.partition("?")[0].removeprefix("/api/models/").strip("/")
        name = "/".join(path.split("/")[:2])
        if name == "org/broken":
            self.answer(500)
        elif name not in ("org/open", "org/gated"):
            self.answer(
                401, b'{"error": "Invalid username or password."}', X_Error_Code="RepoNotFound"
            )
        elif "/revision/" in path and not path.endswith(("/main", "/v1")):
            self.answer(404, X_Error_Code="RevisionNotFound")
        elif "/revision/" in path:
            self.answer(200, json.dumps({"id": name, "sha": COMMIT}).encode())
        elif "/tree/" in path:
            files = [
                {"type": "file", "path": key, "size": len(value), "oid": f"{i:040}"}
                for i, (key, value) in enumerate(FILES.items())
            ]
            self.answer(200, json.dumps(files).encode())
        elif name == "org/gated":
            self.answer(401, X_Error_Code="GatedRepo")
        else:
            file = path.rpartition("/")[2]
            self.answer(200, FILES[file], ETag=f'"{file}"', X_Repo_Commit=COMMIT)

    def answer(self, status, body=b"{}", **headers):
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(key.replace("_", "-"), value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)


@pytest.fixture(scope="module")
def server():
    made = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    made.asked = []
    threading.Thread(target=made.serve_forever, daemon=True).start()
    yield made
    made.shutdown()
    made.server_close()


ASK = """
import json, sys
from lobule.errors import LobuleError
from lobule.models.hub import fetch
for repository, revision, files in json.load(sys.stdin):
    try:
        print(json.dumps(["ok", str(fetch(repository, revision, files=files))]))
    except LobuleError as error:
        print(json.dumps([error.exit_code, error.what, error.fix]))
"""


def ask(cache, *calls, **environment):
    """Call `fetch` in a new process; return for each call ["ok", folder] or [code, what, fix]."""
    kept = {k: v for k, v in os.environ.items() if "proxy" not in k.lower() and k[:3] != "HF_"}
    done = subprocess.run(
        [sys.executable, "-c", ASK],
        input=json.dumps(calls),
        env={**kept, "HF_HUB_CACHE": str(cache), "HF_HUB_DISABLE_TELEMETRY": "1", **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return [json.loads(line) for line in done.stdout.splitlines()], done.stderr


ALL = ["config.json", "README.md", "model.safetensors"]

LOCAL = (
    "give local weights (--weights FILE.safetensors, or --backbone FOLDER), or use the offline "
    "default --backbone tf_efficientnet_lite0"
)


def test_only_the_named_files_are_fetched_and_then_serve_without_network(server, tmp_path):
    here = f"http://127.0.0.1:{server.server_port}"
    server.asked.clear()
    [(ok, folder)], told = ask(tmp_path, ("org/open", None, ALL), HF_ENDPOINT=here)
    assert ok == "ok"
    assert folder == str(tmp_path / "models--org--open" / "snapshots" / COMMIT)
    assert sorted(os.listdir(folder)) == sorted(ALL)
    assert not any(name in path for path in server.asked for name in ("bin", "code.py"))
    assert told == "", "progress belongs to a terminal"
    again, _ = ask(tmp_path, ("org/open", None, ALL), HF_ENDPOINT=here, HF_HUB_OFFLINE="1")
    assert again == [["ok", folder]]


def test_a_copy_in_part_is_enough_for_what_it_holds_and_said_to_be_one(server, tmp_path):
    here = f"http://127.0.0.1:{server.server_port}"
    [(ok, folder)], _ = ask(tmp_path, ("org/open", "v1", ALL[:2]), HF_ENDPOINT=here)
    assert (ok, sorted(os.listdir(folder))) == ("ok", ["README.md", "config.json"])
    (first, second), _ = ask(
        tmp_path, ("org/open", "v1", ALL[:2]), ("org/open", "v1", ALL), HF_HUB_OFFLINE="1"
    )
    assert first == ["ok", folder]
    assert second == [
        4,
        "cannot fetch org/open: the hub may not be asked (HF_HUB_OFFLINE is set), and "
        f"{tmp_path} holds only a part of it",
        LOCAL,
    ]


def test_each_refusal_says_which_it_is_and_what_to_do(server, tmp_path):
    here = f"http://127.0.0.1:{server.server_port}"
    answers, _ = ask(
        tmp_path,
        ("org/gated", None, ALL),
        ("org/nothing", None, ALL),
        ("org/open", "v9", ALL),
        ("org/broken", None, ALL),
        ("a/b/c", None, ALL),
        HF_ENDPOINT=here,
    )
    assert [code for code, *_ in answers] == [4] * 5
    gated, nothing, revision, broken, name = (rest for _, *rest in answers)
    assert gated == [
        "org/gated is gated: its weights are given to those who accept its licence",
        f"accept the licence on {here}/org/gated, and set HF_TOKEN to a token of that account; or "
        + LOCAL,
    ]
    assert nothing == [
        "the hub shows no repository org/nothing: there is none, or it is private",
        f"look at {here}/org/nothing; for a private one set HF_TOKEN; or {LOCAL}",
    ]
    assert revision == [
        "org/open has no revision 'v9'",
        f"its branches, tags and commits stand on {here}/org/open; without @REVISION it is 'main'",
    ]
    assert broken[0].startswith(
        "cannot fetch org/broken: the hub answers with HfHubHTTPError (Server error '500 Internal"
    )
    assert broken[0].endswith(f"and {tmp_path} holds no copy of it")
    assert name[0].startswith("'a/b/c' is not the name of a repository: Repo id must be")
    assert name[1] == "write hf-hub:ORG/NAME or hf-hub:ORG/NAME@REVISION"


def test_a_hub_that_cannot_be_reached_is_told_from_one_that_may_not_be_asked(tmp_path):
    # nothing listens on port 9 of this machine
    closed, _ = ask(tmp_path, ("org/open", None, ALL), HF_ENDPOINT="http://127.0.0.1:9")
    assert closed[0][1].startswith(
        "cannot fetch org/open: the hub cannot be reached: ConnectError ("
    )
    assert closed[0][2] == LOCAL
    offline, _ = ask(tmp_path, ("org/open", None, ALL), HF_HUB_OFFLINE="1")
    assert offline == [
        [
            4,
            "cannot fetch org/open: the hub may not be asked (HF_HUB_OFFLINE is set), and "
            f"{tmp_path} holds no copy of it",
            LOCAL,
        ]
    ]


def test_a_proxy_that_refuses_is_a_refusal_and_no_fault_of_ours(server, tmp_path):
    proxy = f"http://127.0.0.1:{server.server_port}"
    answers, _ = ask(
        tmp_path,
        ("org/open", None, ALL),
        HF_ENDPOINT="https://hub.invalid",
        HTTPS_PROXY=proxy,
        https_proxy=proxy,
    )
    assert answers == [[4, "cannot fetch org/open: ProxyError (403 Forbidden)", LOCAL]]
