"""The run folder's record: who may write where."""

from __future__ import annotations

import json

import pytest

from lobule.errors import OutputError
from lobule.run import claim, complete, refuse_taken

REQUEST = {"recipe": {"seed": 0}, "data_hash": "abc", "allow": []}


def test_a_new_and_an_empty_folder_are_free(tmp_path):
    assert refuse_taken(tmp_path / "new") is None
    assert refuse_taken(tmp_path) is None


def test_a_folder_with_other_things_is_refused_and_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(OutputError, match="is not empty and holds no run of Lobule") as caught:
        claim(tmp_path, REQUEST)
    assert caught.value.exit_code == 2
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(OutputError, match="is a file, not a folder"):
        refuse_taken(tmp_path / "run")


def test_an_unfinished_run_of_the_same_request_goes_on(tmp_path):
    claim(tmp_path / "run", REQUEST)
    claim(tmp_path / "run", REQUEST)
    assert json.loads((tmp_path / "run" / "run.json").read_text())["state"] == "incomplete"


def test_an_unfinished_run_of_other_settings_is_refused(tmp_path):
    claim(tmp_path / "run", REQUEST)
    with pytest.raises(OutputError, match="holds an unfinished run of other data or settings"):
        claim(tmp_path / "run", {**REQUEST, "data_hash": "xyz"})


def test_a_finished_run_is_never_written_over(tmp_path):
    claim(tmp_path / "run", REQUEST)
    complete(tmp_path / "run", {"lobule": "1"})
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (record["state"], record["versions"]) == ("complete", {"lobule": "1"})
    with pytest.raises(OutputError, match="already holds a finished run"):
        claim(tmp_path / "run", REQUEST)
