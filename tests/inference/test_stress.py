"""The stress test: damaged images are what they would be from files, and nothing else changes."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sklearn.metrics import roc_auc_score

from lobule.data.damage import DAMAGES, Damage
from lobule.data.images import decode
from lobule.data.scan import scan
from lobule.errors import DataError
from lobule.evaluation.evaluate import evaluate
from lobule.evaluation.intervals import Interval
from lobule.evaluation.predictions import Predictions
from lobule.inference.predictor import open_extractor, predict, predict_with
from lobule.inference.stress import Stress, _figures, stress

NOTHING = Damage("nothing", "times", (1,), 1, lambda image, level: image)
BLACKNESS = Damage("blackness", "share", (0.5, 1), 1, lambda image, level: (
    image if level < 1 else np.zeros_like(image)
))  # fmt: skip


@pytest.fixture(scope="module")
def manifest(tissue):
    return scan(tissue.images)


@pytest.fixture(scope="module")
def few(manifest):
    """An image of each patient."""
    return manifest.where(~manifest.table["patient"].duplicated())


@pytest.fixture(scope="module")
def found(finished_run, manifest):
    damages = [NOTHING, BLACKNESS, replace(DAMAGES["stain"], levels=(0.3,))]
    return stress(finished_run.model, manifest, damages=damages, draws=200)


def row(found, damage, severity, level="image", figure="roc_auc"):
    (only,) = [
        r
        for r in found.rows
        if (r.damage, r.severity, r.level, r.figure) == (damage, severity, level, figure)
    ]
    return only


def test_undamaged_figures_are_those_of_an_evaluation(finished_run, manifest, found):
    evaluation = evaluate(predict(finished_run.model, manifest), draws=200)
    for level in ("image", "patient"):
        figures = evaluation.levels[level]
        assert found.undamaged[level]["roc_auc"] == figures.metrics["roc_auc"]
        (at_point,) = [d for d in figures.decisions if d.rule == "operating point"]
        assert found.undamaged[level]["accuracy"] == at_point.metrics["accuracy"]


def test_damaged_figures_are_those_of_damaged_files(finished_run, tissue, tmp_path, found):
    for path in tissue.images.rglob("*.png"):
        damaged = DAMAGES["stain"].apply(decode(path), 0.3)
        out = tmp_path / path.relative_to(tissue.images)
        out.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(damaged).save(out)
    from_files = predict(finished_run.model, scan(tmp_path))
    auc = roc_auc_score(from_files.y, from_files.probabilities()[:, 1])
    right = from_files.table["decision"] == from_files.table["label"]
    assert row(found, "stain", 0.3).value.estimate == pytest.approx(auc)
    accuracy = row(found, "stain", 0.3, figure="accuracy").value.estimate
    assert accuracy == pytest.approx(right.mean())


def test_a_damage_that_changes_nothing_costs_nothing(found):
    rows = [r for r in found.rows if r.damage == "nothing"]
    assert len(rows) == 4
    for r in rows:
        assert r.value == found.undamaged[r.level][r.figure]
        assert (r.difference.estimate, r.difference.low, r.difference.high) == (0, 0, 0)


def test_images_that_are_all_alike_are_told_apart_by_chance(found):
    gone = row(found, "blackness", 1)
    before = found.undamaged["image"]["roc_auc"].estimate
    assert gone.value.estimate == 0.5
    assert gone.difference.estimate == pytest.approx(0.5 - before)
    assert gone.difference.high < 0


def test_rows_come_by_damage_then_severity_then_level_then_figure(found):
    order = [(r.damage, r.severity, r.level, r.figure) for r in found.rows]
    assert order == [
        (damage, severity, level, figure)
        for damage, severity in (
            ("nothing", 1), ("blackness", 0.5), ("blackness", 1), ("stain", 0.3)
        )
        for level in ("image", "patient")
        for figure in ("roc_auc", "accuracy")
    ]  # fmt: skip
    assert [r.moderate for r in found.rows[::4]] == [True, False, True, False]
    assert {r.unit for r in found.rows} == {"times", "share", "share of density"}


def test_the_record_names_model_and_data(finished_run, found):
    assert found.model == finished_run.model.id
    assert (found.n_images, found.n_patients, found.patients_known) == (48, 12, True)
    assert found.classes == ("benign", "malignant")


def test_damaged_images_neither_come_from_the_cache_nor_go_there(finished_run, few, tmp_path):
    def kept():
        return {p.name: p.read_bytes() for p in (tmp_path / "features").rglob("*.npz")}

    def stressed():
        return stress(finished_run.model, few, damages=[BLACKNESS], cache=tmp_path, draws=10)

    first, files = stressed(), kept()
    assert set(files) == {f"{sha256}.npz" for sha256 in few.table["sha256"]}
    assert stressed() == first
    assert kept() == files
    assert row(first, "blackness", 1).value.estimate == 0.5
    assert first.undamaged["image"]["roc_auc"].estimate != 0.5


def test_features_of_changed_images_are_not_kept_even_where_a_cache_is_named(
    finished_run, few, tmp_path
):
    extractor = open_extractor(finished_run.model, few)
    black = replace(extractor, change=np.zeros_like)
    predictions = [
        predict_with(finished_run.model, one, few, cache=tmp_path).probabilities()
        for one in (black, extractor, black)
    ]
    assert len(list((tmp_path / "features").rglob("*.npz"))) == 12
    np.testing.assert_array_equal(predictions[0], predictions[2])
    assert np.ptp(predictions[0][:, 1]) < 1e-6
    assert np.ptp(predictions[1][:, 1]) > 1e-3


def test_unless_told_every_damage_is_done_at_every_severity(finished_run, few):
    found = stress(finished_run.model, few.where(np.arange(len(few)) < 2), draws=10)
    done = {(r.damage, r.severity) for r in found.rows}
    assert done == {(d.name, level) for d in DAMAGES.values() for level in d.levels}
    assert len(found.rows) == 4 * len(done)


# What cannot be stressed


def test_images_without_a_label_are_left_out(finished_run, few):
    some = few.with_columns(label=few.table["label"].where(np.arange(12) % 4 < 3))
    assert stress(finished_run.model, some, damages=[NOTHING], draws=10).n_images == 9


def test_no_label_at_all_is_an_error(finished_run, few):
    nameless = few.with_columns(label=few.table["label"].where(np.zeros(12, dtype=bool)))
    with pytest.raises(DataError, match=r"none of 12 image\(s\) has a label"):
        stress(finished_run.model, nameless)


def test_a_class_that_the_model_does_not_know_is_told_before_any_work(finished_run, manifest):
    def no_work(items, *, total, task):
        pytest.fail(f"began {task}")

    other = manifest.with_columns(label=manifest.table["label"].str.replace("benign", "healthy"))
    with pytest.raises(DataError, match="no image of class healthy"):
        stress(finished_run.model, other, progress=no_work)


def test_one_class_alone_has_accuracy_and_no_auc(finished_run, few):
    benign = few.where(few.table["label"] == "benign")
    found = stress(finished_run.model, benign, damages=[NOTHING], draws=10)
    assert np.isnan(row(found, "nothing", 1).value.estimate)
    assert row(found, "nothing", 1).value.reason
    assert 0 <= row(found, "nothing", 1, figure="accuracy").value.estimate <= 1
    assert json.loads(json.dumps(found.to_json(), allow_nan=False))


# The figures


def estimates(classes, labels, prob, **columns):
    table = pd.DataFrame({"label": labels, **columns})
    for name, values in zip(classes, np.transpose(prob), strict=True):
        table[f"prob_{name}"] = values
    values = _figures(Predictions(table, classes))(np.ones((1, len(table))))
    return {name: value.item() for name, value in values.items()}


TWO = (
    ("benign", "malignant"),
    ["benign", "malignant", "benign", "malignant"],
    [[0.7, 0.3], [0.55, 0.45], [0.45, 0.55], [0.3, 0.7]],
)


def test_without_an_operating_point_half_is_the_threshold():
    assert estimates(*TWO) == {"roc_auc": 0.75, "accuracy": 0.5}


def test_each_row_is_decided_at_its_own_operating_point():
    thresholds = [0.2, 0.4, 0.6, 0.6]
    assert estimates(*TWO, threshold=thresholds) == {"roc_auc": 0.75, "accuracy": 0.75}


def test_of_three_classes_the_most_probable_counts_and_the_auc_is_the_mean_over_them():
    rng = np.random.default_rng(0)
    classes = ("a", "b", "c")
    y = rng.integers(0, 3, 50)
    prob = rng.dirichlet([1, 1, 1], 50) * 0.5 + 0.5 * np.eye(3)[rng.permutation(y)]
    found = estimates(classes, np.array(classes)[y], prob)
    auc = roc_auc_score(y, prob, multi_class="ovr", average="macro")
    assert found["roc_auc"] == pytest.approx(auc)
    assert found["accuracy"] == pytest.approx((prob.argmax(axis=1) == y).mean())


# The record


def test_a_record_comes_back_from_json_as_it_was(found):
    record = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert record["schema"] == "lobule.stress/1"
    assert Stress.from_json(record) == found


def test_another_schema_or_a_missing_field_is_refused(found):
    record = found.to_json()
    with pytest.raises(DataError, match="not a stress record"):
        Stress.from_json(record | {"schema": "lobule.stress/9"})
    for field in set(record) - {"schema"}:
        short = {key: value for key, value in record.items() if key != field}
        with pytest.raises(DataError, match="stress record cannot be read"):
            Stress.from_json(short)


@pytest.mark.parametrize("change", [{"value": None}, {"difference": {}}, {"colour": "red"}])
def test_a_malformed_row_is_refused(found, change):
    record = found.to_json()
    with pytest.raises(DataError, match="cannot be read"):
        Stress.from_json(record | {"rows": [record["rows"][0] | change]})


def test_undefined_figures_survive_json(found):
    nan = float("nan")
    undefined = Interval(nan, nan, nan, 10, 10, "undefined on these rows")
    odd = replace(found, rows=(replace(found.rows[0], value=undefined),))
    (again,) = Stress.from_json(json.loads(json.dumps(odd.to_json(), allow_nan=False))).rows
    assert np.isnan(again.value.estimate)
    assert again.value.reason == "undefined on these rows"
