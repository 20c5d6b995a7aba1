"""The audit log: it is found as it was written, and whatever is done to it is seen."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from lobule.audit_log import NOTHING, SCHEMA, AuditLog, verify
from lobule.cli.app import app
from lobule.errors import DataError, OutputError


def written(path, n=5):
    log = AuditLog(path)
    for i in range(n):
        log.append("predict", image=f"{i:02}", p=i / 7)
    return path


def refusal(path, **options):
    with pytest.raises(DataError) as caught:
        verify(path, **options)
    return str(caught.value)


@pytest.fixture(scope="module")
def lines(tmp_path_factory):
    path = written(tmp_path_factory.mktemp("log") / "a.jsonl", 6)
    return path.read_bytes().splitlines(keepends=True)


def test_records_count_and_hold_the_hash_of_the_line_before_and_their_own(tmp_path):
    data = written(tmp_path / "a.jsonl", 3).read_bytes().splitlines()
    records = [json.loads(line) for line in data]
    assert [r["n"] for r in records] == [0, 1, 2]
    assert {r["schema"] for r in records} == {SCHEMA}
    assert [r["image"] for r in records] == ["00", "01", "02"]
    before = [hashlib.sha256(line).hexdigest() for line in data]
    assert [r["previous"] for r in records] == ["0" * 64, before[0], before[1]]
    for record, line in zip(records, data, strict=True):
        own = record.pop("sha256")
        assert hashlib.sha256(json.dumps(record).encode()).hexdigest() == own
        assert line.endswith(f'"sha256": "{own}"}}'.encode())


def test_a_whole_log_tells_its_number_times_and_head(tmp_path):
    path = written(tmp_path / "new" / "folder" / "a.jsonl", 4)
    data = path.read_bytes().splitlines()
    found = verify(path)
    assert found.records == 4
    assert (found.first, found.last) == tuple(json.loads(data[i])["time"] for i in (0, 3))
    assert found.head == hashlib.sha256(data[-1]).hexdigest()


def test_an_empty_log_is_whole(tmp_path):
    AuditLog(tmp_path / "a.jsonl")
    found = verify(tmp_path / "a.jsonl")
    assert (found.records, found.first, found.last, found.head) == (0, None, None, NOTHING)


def test_a_log_is_gone_on_with_after_it_was_opened_again(tmp_path):
    written(tmp_path / "a.jsonl", 2)
    written(tmp_path / "a.jsonl", 3)
    assert verify(tmp_path / "a.jsonl").records == 5


def test_a_record_longer_than_what_is_read_at_once_is_gone_on_from(tmp_path):
    log = AuditLog(tmp_path / "a.jsonl")
    for i in range(3):
        log.append("predict", images=["x" * 9] * (i * 3_000))
    assert verify(tmp_path / "a.jsonl").records == 3


# ---- what is done to it


@given(data=st.data())
@settings(max_examples=300, deadline=None)
def test_any_change_of_a_byte_is_found_at_its_line(lines, data, tmp_path_factory):
    k = data.draw(st.integers(0, len(lines) - 1))
    at = data.draw(st.integers(0, len(lines[k]) - 1))
    byte = data.draw(st.integers(0, 255).filter(lambda b: b != lines[k][at]))
    changed = [*lines]
    changed[k] = lines[k][:at] + bytes([byte]) + lines[k][at + 1 :]
    path = tmp_path_factory.mktemp("log") / "a.jsonl"
    path.write_bytes(b"".join(changed))
    assert f"is broken at line {k + 1}: " in refusal(path)


@given(data=st.data())
@settings(max_examples=200, deadline=None)
def test_any_line_taken_out_moved_doubled_or_put_in_is_found(lines, data, tmp_path_factory):
    k = data.draw(st.integers(0, len(lines) - 1), label="line")
    other = data.draw(st.integers(0, len(lines) - 1).filter(lambda i: i != k), label="other")
    do = data.draw(st.sampled_from(["take out", "swap", "double", "put in"]))
    left = [*lines]
    if do == "take out":
        # without the last one it is a whole log of fewer records: see the test of the head
        k = min(k, len(lines) - 2)
        del left[k]
        first = k
    elif do == "swap":
        left[k], left[other] = left[other], left[k]
        first = min(k, other)
    elif do == "double":
        left.insert(other, lines[k])
        # a copy before itself or right behind itself is where a copy is first
        first = other + 1 if other == k else other
    else:
        own = {"schema": SCHEMA, "n": k, "time": "t", "event": "e", "previous": NOTHING}
        sha256 = hashlib.sha256(json.dumps(own).encode()).hexdigest()
        left.insert(k, json.dumps({**own, "sha256": sha256}).encode() + b"\n")
        # in front of all it is a first line like any other, and the next one does not fit
        first = max(k, 1) if k else 1
    path = tmp_path_factory.mktemp("log") / "a.jsonl"
    path.write_bytes(b"".join(left))
    assert f"is broken at line {first + 1}: " in refusal(path)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda x: [x[0], *x[2:]], "line 2: it is record 2, not 1: a line is missing before it"),
        (lambda x: [x[0], x[0], *x[1:]], "line 2: it is record 0, not 1: it was put in or moved"),
        (lambda x: [*x[:2], b"{}\n"], "line 3: it is no record (KeyError)"),
        (lambda x: [*x[:2], b"\n"], "line 3: it is no record (JSONDecodeError)"),
        (lambda x: [*x[:2], b"[" * 99_999 + b"\n"], "line 3: it is no record (RecursionError)"),
        (lambda x: [*x[:5], x[5][:-9]], "line 6: it was not written to its end"),
        (lambda x: [*x[:5], x[5].replace(b"0.7", b"0.8")], "line 6: it was changed"),
        (lambda x: [*x[:5], x[5].replace(b": ", b":")], "line 6: it was changed"),
        (lambda x: [*x[:5], x[5].replace(b'"n": 5', b'"n": 5.0')], "line 6: it was changed"),
    ],
)
def test_what_does_not_fit_is_said_with_the_reason(lines, spoil, message, tmp_path):
    path = tmp_path / "a\nb.jsonl"
    path.write_bytes(b"".join(spoil(lines)))
    assert f"the audit log {tmp_path}/a\\nb.jsonl is broken at {message}" in refusal(path)


def test_a_line_rewritten_with_a_hash_that_fits_is_found_by_the_line_behind_it(lines, tmp_path):
    record = json.loads(lines[2])
    del record["sha256"]
    record["p"] = 0.99
    sha256 = hashlib.sha256(json.dumps(record).encode()).hexdigest()
    forged = json.dumps({**record, "sha256": sha256}).encode() + b"\n"
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"".join([*lines[:2], forged, *lines[3:]]))
    assert "line 4: the line before it is not the one it followed" in refusal(path)


def test_a_cut_off_end_is_seen_only_by_who_kept_the_head(lines, tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"".join(lines))
    head = verify(path).head
    assert verify(path, head=head).records == 6
    AuditLog(path).append("more")
    assert verify(path, head=head).records == 7
    path.write_bytes(b"".join(lines[:5]))
    assert verify(path).records == 5
    assert f"does not hold the line of hash {head}: its end was cut off" in refusal(path, head=head)


# ---- writing


def test_a_line_half_written_is_told_and_nothing_is_added_to_it(tmp_path):
    path = written(tmp_path / "a.jsonl")
    log = AuditLog(path)
    path.write_bytes(path.read_bytes()[:-20])
    torn = path.read_bytes()
    with pytest.raises(DataError, match=r"a\.jsonl ends within a line\n  see what is wrong"):
        AuditLog(path)
    with pytest.raises(DataError, match="ends within a line"):
        log.append("predict")
    assert path.read_bytes() == torn


def test_a_last_line_that_was_changed_is_not_built_upon(tmp_path):
    path = written(tmp_path / "a.jsonl")
    path.write_bytes(path.read_bytes().replace(b'"04"', b'"05"'))
    with pytest.raises(DataError, match="broken at its last line: it was changed"):
        AuditLog(path)


def test_a_full_disk_is_told_and_leaves_a_whole_log_that_can_be_gone_on_with(small_disk):
    path = small_disk(64) / "a.jsonl"
    log = AuditLog(path)
    log.append("predict", image="00")
    with pytest.raises(OutputError, match=r"a\.jsonl: no space left on the device"):
        log.append("predict", image="x" * 200_000)
    assert verify(path).records == 1
    log.append("predict", image="01")
    assert verify(path).records == 2


def test_what_json_does_not_hold_is_refused_and_not_half_written(tmp_path):
    log = AuditLog(tmp_path / "a.jsonl")
    for fields, kind in (({"p": float("nan")}, ValueError), ({"p": {1, 2}}, TypeError)):
        with pytest.raises(kind):
            log.append("predict", **fields)
    with pytest.raises(ValueError, match=r"cannot be given: \['n', 'sha256'\]"):
        log.append("predict", n=3, sha256="x")
    assert verify(tmp_path / "a.jsonl").records == 0


def test_threads_and_processes_write_one_chain(tmp_path):
    path = tmp_path / "a.jsonl"
    code = (
        "import sys; from pathlib import Path; from lobule.audit_log import AuditLog\n"
        "log = AuditLog(Path(sys.argv[1]))\n"
        "for i in range(30): log.append('other', i=i)"
    )
    others = [subprocess.Popen([sys.executable, "-c", code, path]) for _ in range(2)]
    log = AuditLog(path)
    threads = [
        threading.Thread(target=lambda: [log.append("mine", i=i) for i in range(30)])
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [other.wait(60) for other in others] == [0, 0]
    assert verify(path).records == 150


# ---- the command


def command(*words):
    return CliRunner().invoke(app, ["audit-log", "verify", *map(str, words)])


def test_the_command_says_that_the_chain_holds_and_its_head(tmp_path):
    path = written(tmp_path / "a.jsonl")
    head = verify(path).head
    shown = command(path)
    assert shown.exit_code == 0
    assert shown.stdout.startswith("the chain holds: 5 records, from 20")
    assert f"head: {head}" in shown.stdout
    record = json.loads(command(path, "--head", head, "--json").stdout)
    assert (record["schema"], record["records"], record["head"]) == (SCHEMA, 5, head)


def test_the_command_ends_with_3_if_the_chain_is_broken_cut_or_not_there(tmp_path):
    path = written(tmp_path / "a.jsonl")
    head = verify(path).head
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))
    for words in ((path, "--head", head), (tmp_path / "nowhere",), (tmp_path,)):
        ended = command(*words)
        assert (ended.exit_code, ended.stdout) == (3, "")
        assert ended.stderr.startswith("error: ")
    path.write_text("x")
    assert "broken at line 1: it was not written to its end" in command(path).stderr
