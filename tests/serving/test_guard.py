"""Nobody reaches anything but who was let in: by token, from no other site, for this host."""

from __future__ import annotations

import asyncio
import json

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lobule.serving.guard import HEADERS, Access, Guard
from lobule.serving.limits import Limits

TOKEN = "correct-horse-battery-staple"

BEARER = f"Authorization: Bearer {TOKEN}"

REBINDING = [
    "evil.example", "evil.example:{port}", "127.0.0.1.evil.example:{port}", "127.0.0.1",
    "localhost", "localhost:1", "localhost.:{port}", "localhost.evil.example:{port}",
    "evil.example#localhost:{port}", "localhost:{port}@evil.example", "127.0.0.1:0{port}",
    "127.1:{port}", "0.0.0.0:{port}", "2130706433:{port}", "0x7f000001:{port}", "127.0.0.2:{port}",
    "[::]:{port}", "[::ffff:127.0.0.1]:{port}", "localhost:{port}:{port}",
    "localhost:{port}, evil.example", "localhost :{port}", 
    "l\u043ecalhost:{port}".encode().decode("latin-1"),
    "",
]  # fmt: skip
"""Values of Host that a name which was made to point here, or a confused client, may bring."""

CROSS_SITE = [
    "Origin: https://evil.example", "Origin: null", "Origin: ", "Origin: http://localhost",
    "Origin: http://localhost:1", "Origin: http://localhost:{port}.evil.example",
    "Origin: http://localhost:{port}@evil.example", "Origin: http://localhost.:{port}",
    "Origin: http://localhost:{port}/", "Origin: ftp://localhost:{port}",
    "Origin: http://127.0.0.1:{port}", "Origin: http://[::1]:{port}", "Origin: file://",
    "Origin: http://localhost:{port} http://evil.example", "Origin: chrome-extension://abc",
    "Origin: localhost:{port}", "Origin: *", "Origin: http://LOCALHOST:{port}/evil",
    "Sec-Fetch-Site: cross-site", "Sec-Fetch-Site: same-site",
    "Origin: http://localhost:{port}\r\nOrigin: https://evil.example",
    "Origin: http://localhost:{port}\r\nSec-Fetch-Site: cross-site",
]  # fmt: skip
"""Headers that a browser sends for a page of another site, to the host localhost."""


def test_there_are_more_than_twenty_spellings_of_each():
    assert min(len(REBINDING), len(CROSS_SITE)) > 20


@pytest.mark.parametrize("host", REBINDING)
def test_a_host_that_this_server_is_not_is_refused(guarded, host):
    for line in ("GET /v1/model", "GET /healthz", "POST /v1/predict", f"GET /?token={TOKEN}"):
        status, said = guarded.say(line, f"Host: {host.format(port=guarded.port)}", BEARER)
        # a Host that is none at all is refused by the HTTP parser
        assert status in (421, 400), line
        assert "Set-Cookie" not in said


def test_no_host_and_two_hosts_are_refused(guarded):
    assert guarded.say("GET /v1/model", BEARER)[0] == 400
    own = f"Host: {guarded.host}"
    assert guarded.say("GET /v1/model", own, "Host: evil.example", BEARER)[0] in (400, 421)


@pytest.mark.parametrize("name", ["127.0.0.1", "localhost", "LocalHost", "[::1]"])
def test_the_names_of_this_machine_are_taken(guarded, name):
    assert guarded.say("GET /v1/model", f"Host: {name}:{guarded.port}", BEARER)[0] == 200


@pytest.mark.parametrize("header", CROSS_SITE)
def test_a_page_of_another_site_is_refused_though_it_had_the_token(guarded, header):
    host = f"Host: localhost:{guarded.port}"
    cookie = f"Cookie: lobule_token={TOKEN}"
    lines = [line.format(port=guarded.port) for line in header.split("\r\n")]
    for way in ("POST /v1/predict", "GET /v1/model", "POST /analyse", f"GET /?token={TOKEN}"):
        status, said = guarded.say(way, host, cookie, BEARER, *lines)
        assert status == 403, way
        assert '"cross-site"' in said


def test_the_own_page_and_programs_are_let_in(guarded):
    host = f"Host: localhost:{guarded.port}"
    for lines in (
        (), (f"Origin: http://localhost:{guarded.port}", "Sec-Fetch-Site: same-origin"),
        ("Sec-Fetch-Site: none",),
    ):  # fmt: skip
        assert guarded.say("GET /v1/model", host, BEARER, *lines)[0] == 200


@pytest.mark.parametrize(
    "header",
    [
        "X-Nothing: 1", "Authorization: Bearer", "Authorization: Bearer wrong",
        f"Authorization: Basic {TOKEN}", f"Authorization: {TOKEN}",
        f"Authorization: Bearer {TOKEN}x",
        f"Authorization: Bearer {TOKEN[:-1]}", f"Authorization: Bearer {TOKEN.upper()}",
        "Authorization: Bearer \xff\xfe", "Cookie: lobule_token=", "Cookie: lobule_token=wrong",
        f"Cookie: token={TOKEN}", f"Cookie: lobule_token={TOKEN}x", "Cookie: ;;;=;\xff",
        f"X-Token: {TOKEN}",
    ],
)  # fmt: skip
@pytest.mark.parametrize(
    "line",
    [
        "GET /", "GET /v1/model", "POST /v1/predict", "GET /metrics", "GET /openapi.json",
        "GET /static/page.css", "GET /nowhere", "GET /healthz/", "GET //healthz", "GET /healthz%2f",
        "GET /healthz/../v1/model", "GET /?token=wrong", "GET /?token=", "POST /?token=" + TOKEN,
        f"GET /?token={TOKEN}&token=wrong", "OPTIONS /v1/predict", "HEAD /v1/model",
    ],
)  # fmt: skip
def test_without_the_token_there_is_nothing(guarded, line, header):
    status, said = guarded.say(line, f"Host: {guarded.host}", header)
    assert status == 401
    assert "www-authenticate: bearer" in said.lower()
    assert "Set-Cookie" not in said


def test_health_needs_no_token_and_tells_no_secret(guarded):
    status, said = guarded.say("GET /healthz", f"Host: {guarded.host}")
    assert status == 200
    assert set(json.loads(said.split("\r\n\r\n")[1])) == {"status", "version"}


def test_the_address_with_the_token_sets_a_cookie_and_leads_to_one_without(guarded):
    with httpx.Client(base_url=f"http://{guarded.host}") as client:
        first = client.get(f"/?token={TOKEN}")
        assert first.status_code == 303
        assert first.headers["location"] == "/"
        cookie = first.headers["set-cookie"]
        assert "HttpOnly" in cookie
        assert "SameSite=Strict" in cookie
        assert client.get("/").status_code == 200
        assert client.get("/v1/model").status_code == 200


def test_a_cookie_of_another_program_on_this_machine_does_not_hide_ours(guarded):
    """Cookies are shared by all ports of a host, and not all of them are tidy."""
    for odd in ('a={"b": 1, "c": [2]}', "x y z", "a=b c; =; ;", 'open="', "ключ=знач", "a@b=[c]"):
        cookie = f"Cookie: {odd}; lobule_token={TOKEN}; z=1".encode().decode("latin-1")
        assert guarded.say("GET /v1/model", f"Host: {guarded.host}", cookie)[0] == 200, odd


@pytest.mark.parametrize(
    "path",
    ["//evil.example/", "/\\evil.example", "/%0d%0aX-Evil:%201", "/%09//evil.example",
     "/%2f%2fevil.example", "/a%20b?c=d", "http://evil.example/"],
)  # fmt: skip
def test_where_the_token_leads_is_on_this_server(guarded, path):
    question = "&" if "?" in path else "?"
    status, said = guarded.say(f"GET {path}{question}token={TOKEN}", f"Host: {guarded.host}")
    assert status == 303
    head = said.split("\r\n\r\n")[0].lower()
    (where,) = [x.split(": ", 1)[1] for x in head.split("\r\n") if x.startswith("location")]
    assert where.startswith("/")
    assert not where.startswith(("//", "/\\"))
    assert "\nx-evil" not in head
    assert not set(where) & set("\t\r\n \\")
    assert TOKEN not in head.split("set-cookie")[0]


def test_every_response_carries_the_security_headers(guarded):
    host = f"Host: {guarded.host}"
    for line, lines in {
        "GET /": (BEARER,), "GET /v1/model": (BEARER,), "GET /nowhere": (BEARER,),
        "POST /v1/predict": (BEARER,), "GET /static/page.css": (BEARER,), "GET /healthz": (),
        "GET /metrics": (), "GET /openapi.json": ("Origin: null",), "PUT /": (BEARER,),
        f"GET /?token={TOKEN}": (),
    }.items():  # fmt: skip
        head = guarded.say(line, host, *lines)[1].split("\r\n\r\n")[0].lower().split("\r\n")
        for name, value in HEADERS.items():
            assert f"{name}: {value}".lower() in head, (line, name)
    policy = HEADERS["content-security-policy"]
    assert "unsafe" not in policy
    assert policy.startswith("default-src 'none'")


def test_a_request_that_says_it_is_too_large_is_refused_before_its_body_is_read(guarded):
    head = (
        f"POST /v1/predict HTTP/1.1\r\nHost: {guarded.host}\r\n{BEARER}\r\n"
        f"Content-Type: image/png\r\nContent-Length: {40 * 2**20}\r\n\r\n"
    )
    with guarded.raw(head.encode()) as connection:
        # not a byte of the body was sent
        answer = connection.recv(65_536)
    assert answer.startswith(b"HTTP/1.1 413")


def test_a_client_that_sends_on_sees_why_it_was_refused(serving):
    with serving(limits=Limits(upload_bytes=1_000_000)) as server, server.client() as client:
        answers = [
            client.post("/v1/predict", content=b"x" * 20_000_000, headers={"Content-Type": kind})
            for kind in ("image/png", "multipart/form-data; boundary=b") * 5
        ]
        assert {a.status_code for a in answers} == {413}
        assert "1,000,000 bytes" in answers[0].json()["what"]


def test_a_body_that_grows_too_large_as_it_comes_is_refused(serving):
    def endless():
        yield b'--b\r\nContent-Disposition: form-data; name="images"; filename="x"\r\n\r\n'
        for _ in range(400):
            yield b"x" * 65_536

    with serving(limits=Limits(upload_bytes=500_000)) as server, server.client() as client:
        for kind in ("image/png", "multipart/form-data; boundary=b"):
            found = client.post("/v1/predict", content=endless(), headers={"Content-Type": kind})
            assert found.status_code == 413, kind
            assert found.json()["code"] == "too-many-bytes"
        assert client.get("/healthz").status_code == 200


async def _nothing(scope, receive, send):
    await send({"type": "http.response.start", "status": 204, "headers": []})
    await send({"type": "http.response.body", "body": b""})


@given(
    st.lists(st.tuples(
        st.sampled_from([b"host", b"origin", b"cookie", b"authorization", b"content-length",
                         b"sec-fetch-site"]),
        st.binary(max_size=30) | st.sampled_from(
            [b"localhost:80", b"http://localhost:80", b"none", b"\xb2", b"-1", b"1" * 99]),
    ), max_size=6),
    st.binary(max_size=40),
    st.text(max_size=20),
)  # fmt: skip
def test_whatever_the_headers_without_the_token_all_is_refused_and_nothing_breaks(
    headers, query, path
):
    guard = Guard(_nothing, Access(frozenset({"localhost:80"}), TOKEN), Limits())
    sent = []

    async def send(message):
        sent.append(message)

    async def receive():
        return {"type": "http.request", "body": b"", "more_body": False}

    scope = {
        "type": "http", "method": "GET", "path": "/" + path, "query_string": query,
        "headers": headers,
    }  # fmt: skip
    asyncio.run(guard(scope, receive, send))
    passed = 204 if path == "healthz" else 401
    assert sent[0]["status"] in (401, 403, 413, 421, passed)
