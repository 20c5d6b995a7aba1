"""Exports as they lie on disk: read back, and refused when they are not what was checked."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from lobule.errors import ModelError
from lobule.models.exports import Export, find_exports, hash_file, read_export

WEIGHTS = "a" * 64


@pytest.fixture
def export(tmp_path):
    folder = tmp_path / "model" / "exports" / "onnx-fp32"
    folder.mkdir(parents=True)
    (folder / "network-8x9.onnx").write_bytes(b"a network")
    files = {"network-8x9.onnx": hash_file(folder / "network-8x9.onnx")}
    found = Export(folder, "onnx", "fp32", WEIGHTS, files, {"images": 3}, {"torch": "2"})
    (folder / "export.json").write_text(json.dumps(found.to_json()))
    return found


def test_an_export_comes_back_as_it_was(export):
    assert read_export(export.folder) == export
    assert export.name == "onnx-fp32"


def test_exports_of_these_weights_alone_are_found(export):
    model = export.folder.parents[1]
    assert list(find_exports(model, WEIGHTS)) == [export]
    assert list(find_exports(model, "b" * 64)) == []
    assert list(find_exports(model.parent, WEIGHTS)) == []
    assert list(find_exports(None, WEIGHTS)) == []


def test_an_export_that_was_interrupted_is_passed_over(export):
    (export.folder / "export.json").unlink()
    assert list(find_exports(export.folder.parents[1], WEIGHTS)) == []


def test_a_file_that_was_changed_is_not_opened(export):
    (export.folder / "network-8x9.onnx").write_bytes(b"another")
    with pytest.raises(ModelError, match=r"network-8x9\.onnx is not the file that export\.json"):
        export.open("fp32")


def test_a_file_that_is_gone_is_named(export):
    (export.folder / "network-8x9.onnx").unlink()
    with pytest.raises(ModelError, match=r"cannot read .*network-8x9\.onnx: No such file"):
        export.open("fp32")


@pytest.mark.parametrize(
    "damage",
    [
        lambda record: {**record, "schema": "lobule.export/9"},
        lambda record: {**record, "engine": "other"},
        lambda record: {**record, "files": {"../../x": "0"}},
        lambda record: {k: v for k, v in record.items() if k != "files"},
        lambda record: [record],
    ],
)
def test_a_record_that_is_none_of_ours_is_refused(export, damage):
    file = export.folder / "export.json"
    file.write_text(json.dumps(damage(json.loads(file.read_text()))))
    with pytest.raises(ModelError, match=r"export\.json cannot be used"):
        read_export(export.folder)


def test_the_hash_of_an_export_changes_with_any_file(export):
    other = replace(export, files={"network-8x9.onnx": "0" * 64})
    assert other.sha256 != export.sha256
