"""What a request brings: whatever it is, it is read or refused, and a name is never a path."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.requests import Request

from lobule.serving.limits import Limits, Refused
from lobule.serving.uploads import NAME_LENGTH, display_name, read_form, within


def request(body, kind, *, query=b"", chunks=1, left=False):
    """Return a request whose body comes in pieces; `left`: the client goes before the last."""
    size = max(1, -(-len(body) // chunks))
    parts = [body[i : i + size] for i in range(0, len(body), size)] or [b""]
    messages = [{"type": "http.request", "body": part, "more_body": True} for part in parts]
    messages[-1]["more_body"] = False
    if left:
        messages[-1] = {"type": "http.disconnect"}

    async def receive():
        if messages:
            return messages.pop(0)
        await asyncio.sleep(60)

    scope = {
        "type": "http", "method": "POST", "path": "/", "query_string": query,
        "headers": [(b"content-type", kind)], "app": None,
    }  # fmt: skip
    return Request(scope, receive)


def read(body, kind, *, limits=None, **more):
    return asyncio.run(read_form(request(body, kind, **more), limits or Limits()))


def refused(body, kind, **more):
    with pytest.raises(Refused) as caught:
        read(body, kind, **more)
    return caught.value


def part(name, data, filename=None):
    named = f'; filename="{filename}"' if filename is not None else ""
    return f'--b\r\nContent-Disposition: form-data; name="{name}"{named}\r\n\r\n'.encode() + (
        data + b"\r\n"
    )


FORM = b"multipart/form-data; boundary=b"

END = b"--b--\r\n"


@pytest.mark.parametrize(
    ("sent", "shown"),
    [
        ("a.png", "a.png"), ("../../etc/passwd", "passwd"), ("C:\\x\\a.png", "a.png"),
        ("/", "image"), (None, "image"), ("", "image"), ("a\nb\x1b[2J.png", "a\\nb\\x1b[2J.png"),
        ("\u202egnp.exe", "\\u202egnp.exe"), ("Größe 4.png", "Größe 4.png"), ("..", ".."),
    ],
)  # fmt: skip
def test_a_name_is_shown_by_its_last_part_on_one_line(sent, shown):
    assert display_name(sent) == shown


@given(st.text(max_size=600))
def test_no_name_holds_a_separator_or_what_cannot_be_printed(name):
    shown = display_name(name)
    assert 0 < len(shown) <= NAME_LENGTH
    assert shown.isprintable()
    assert "/" not in shown


@given(st.binary(max_size=200), st.integers(1, 7))
def test_a_file_comes_out_of_a_form_as_it_went_in_however_it_is_cut(data, chunks):
    body = part("images", data, "x.png") + part("patient", b"7") + part("mpp", b"0.5") + END
    if b"\r\n--b" in data:
        return
    form = read(body, FORM, chunks=chunks)
    assert [(u.data, u.name, u.patient) for u in form.uploads] == [(data, "x.png", "7")]
    assert form.fields["mpp"] == "0.5"


def test_of_a_field_that_comes_twice_the_first_counts():
    body = part("images", b"1", "a") + part("mpp", b"1") + part("mpp", b"2") + END
    assert read(body, FORM).fields == {"mpp": "1"}


@given(
    st.sampled_from([
        b"multipart/form-data", b"multipart/form-data; boundary=", b"multipart/form-data; charset=",
        b"multipart/form-data; boundary=b; charset=",
    ]),
    st.binary(max_size=12) | st.sampled_from(
        [b"punycode", b"idna", b"utf-16", b"undefined", b"rot13", b"hex", b"unicode_escape", b"b"]
    ),
    st.binary(max_size=60) | st.sampled_from(
        [part("images", b"x", "\\ud800\\xff-.png") + END,
         part("patient", b"\xff\\ud800-\x80") + END]
    ),
)  # fmt: skip
def test_whatever_a_form_claims_to_be_it_is_read_or_refused(head, more, body):
    try:
        form = read(body, head + more)
    except Refused as error:
        assert error.status in (400, 415, 422)  # noqa: PT017
    else:
        assert all(u.name.isprintable() for u in form.uploads)


@pytest.mark.parametrize(
    ("body", "kind", "status", "code"),
    [
        (b"x", b"text/plain", 415, "unsupported"), (b"x", b"", 415, "unsupported"),
        (b"", b"image/png", 422, "no-image"), (END, FORM, 422, "no-image"),
        (part("images", b"", "") + END, FORM, 422, "no-image"),
        (part("images", b"not a file") + END, FORM, 422, "no-image"),
        (part("images", b"x", "a") * 33 + END, FORM, 422, "too-many-images"),
        (part("patient", b"x") * 99 + END, FORM, 422, "too-many-images"),
        (part("patient", b"x" * 5_000) + END, FORM, 400, "malformed"),
        (b"no form", FORM, 400, "malformed"),
    ],
)  # fmt: skip
def test_what_holds_no_images_is_refused_by_its_cause(body, kind, status, code):
    error = refused(body, kind)
    assert (error.status, error.code) == (status, code)
    assert error.fix


def test_a_patient_is_for_all_images_or_there_is_one_for_each():
    images = part("images", b"1", "a") + part("images", b"2", "b")

    def patients(*names):
        body = images + b"".join(part("patient", name) for name in names) + END
        return [u.patient for u in read(body, FORM).uploads]

    assert patients() == [None, None]
    assert patients(b"7") == ["7", "7"]
    assert patients(b"7", b" ") == ["7", None]
    error = refused(images + part("patient", b"1") * 3 + END, FORM)
    assert (error.status, error.code) == (422, "patients")


def test_a_raw_image_has_its_patient_in_the_address():
    (upload,) = read(b"data", b"image/png", query=b"patient=7%0a").uploads
    assert (upload.data, upload.patient) == (b"data", "7")


def test_a_character_set_that_cannot_be_read_is_the_client_s_fault():
    error = refused(part("images", b"x", "a") + END, FORM + b"; charset=undefined")
    assert (error.status, error.code) == (400, "malformed")


def test_a_body_that_does_not_come_is_not_waited_for():
    async def stalled():
        async def receive():
            await asyncio.sleep(60)

        scope = {"type": "http", "headers": [(b"content-type", b"image/png")], "query_string": b""}
        await read_form(Request(scope, receive), Limits(request_s=0.05))

    with pytest.raises(Refused) as caught:
        asyncio.run(stalled())
    assert (caught.value.status, caught.value.code) == (408, "slow")


@pytest.mark.parametrize("kind", [FORM, b"image/png"])
def test_a_client_that_leaves_while_it_sends_is_noted(kind):
    error = refused(part("images", b"x" * 99, "a"), kind, chunks=3, left=True)
    assert (error.status, error.code) == (499, "gone")


def waiting(*, leaves, seconds):
    """Wait for work without end; return the refusal, and whether the work was dropped."""
    dropped = []

    async def work():
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            dropped.append(True)
            raise

    async def run():
        asking = request(b"", b"", left=leaves)
        with pytest.raises(Refused) as caught:
            await within(asking, work(), seconds)
        await asyncio.sleep(0)
        return caught.value

    return asyncio.run(run()), bool(dropped)


def test_work_is_dropped_once_its_client_has_left():
    error, dropped = waiting(leaves=True, seconds=30)
    assert (error.status, dropped) == (499, True)


def test_work_that_takes_too_long_is_dropped_and_says_when_to_come_again():
    error, dropped = waiting(leaves=False, seconds=0.05)
    assert (error.status, error.retry_s, dropped) == (504, 1, True)
