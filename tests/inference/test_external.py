"""A model on images of another site: the figures of its predictions, and what is not known."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from functools import partial

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from lobule.data.cohort import write_tissue
from lobule.data.manifest import write_manifest
from lobule.data.scan import scan
from lobule.errors import DataError
from lobule.evaluation.drift import score_drift
from lobule.evaluation.evaluate import evaluate
from lobule.evaluation.intervals import Interval
from lobule.evaluation.local import local_gains
from lobule.evaluation.predictions import Predictions
from lobule.inference.external import External, _refused, _seen, external
from lobule.inference.predictor import predict
from lobule.models.bundle import load_model


@pytest.fixture(scope="module")
def model(finished_run):
    return load_model(finished_run.folder / "model")


@pytest.fixture(scope="module")
def trial(tmp_path_factory):
    """`external` with few draws, on features that are computed once."""
    return partial(external, draws=50, choices=4, cache=tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Photographs as another laboratory has them: larger, TIFF, and no patients in the names."""
    tissue = write_tissue(
        tmp_path_factory.mktemp("elsewhere"), seed=5, patients=8, images_per_patient=3,
        width_px=180, height_px=140, plant=False,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("site")
    for i, path in enumerate(sorted(tissue.images.rglob("*.png"))):
        out = folder / path.relative_to(tissue.images).parts[0] / f"{i:03d}.tif"
        out.parent.mkdir(exist_ok=True)
        Image.open(path).save(out)
    return folder


@pytest.fixture(scope="module")
def found(trial, model, site):
    return trial(model, scan(site))


def unlabelled(manifest, rows=slice(None)):
    label = manifest.table["label"].copy()
    label[rows] = pd.NA
    return manifest.with_columns(label=label)


def says(found, words):
    return any(words in line for line in found.cannot_know)


# What is found


def test_figures_are_those_of_an_evaluation_of_the_predictions(model, site, found):
    predictions = predict(model, scan(site), source="external images")
    tables = [of.table.drop(columns="time") for of in (found.predictions, predictions)]
    pd.testing.assert_frame_equal(*tables)
    whole = evaluate(predictions, draws=50)
    # as JSON, in which what is undefined equals itself
    assert found.evaluation.to_json()["levels"] == {"image": whole.to_json()["levels"]["image"]}
    assert found.evaluation.source == "external images"
    point = model.info.operating_points["image"]
    decision = found.evaluation.levels["image"].decisions[-1]
    assert decision.threshold == (point["threshold"], point["threshold"])
    assert found.target == ("sensitivity", point["value"])


def test_gains_are_those_of_the_labelled_predictions(found):
    assert found.gains == local_gains(found.predictions, target=found.target, choices=4)
    assert {gain.k for gain in found.gains} == {5, 10}


def test_scores_are_held_against_the_models_own_out_of_fold_ones(model, found):
    kept = model.info.out_of_fold
    assert found.drift == score_drift(
        found.predictions.probabilities()[:, 1],
        found.predictions.groups.tolist(),
        kept["quantiles"],
        threshold=model.info.operating_points["image"]["threshold"],
        source=kept["source"],
        draws=50,
        seed=0,
    )
    assert "12 patients" in found.drift.source


def test_the_record_tells_model_data_and_photographs(model, finished_run, site, found):
    assert found.model == model.id
    assert found.data_hash == scan(site).data_hash
    assert (found.n_images, found.n_labelled, found.patients_known) == (24, 24, False)
    assert found.seen == 0
    seen = found.photographs
    assert (seen.width_px, seen.height_px) == ((180, 180), (140, 140))
    assert (seen.endings, seen.magnifications, seen.long_side_px) == ((".tif",), (), 96)
    own = finished_run.evaluation.levels["image"].metrics["roc_auc"]
    assert found.recorded.startswith(own.told())


def test_where_patients_are_unknown_it_is_said_and_no_figure_is_by_patient(found):
    assert says(found, "Who the patients are")
    assert says(found, "among those it was tried on")
    assert says(found, "At what magnification")
    assert set(found.evaluation.levels) == {"image"}
    assert {level for of in found.evaluation.baselines.values() for level in of} == {"image"}
    assert {level for of in found.evaluation.gain.values() for level in of} == {"image"}
    assert set(found.evaluation.decision_curve) == {"image"}


def test_where_patients_are_known_they_are_the_cases(trial, model, tissue):
    found = trial(model, scan(tissue.images))
    assert found.patients_known
    assert (found.n_images, found.n_patients) == (48, 12)
    assert set(found.evaluation.levels) == {"image", "slide", "patient"}
    assert {gain.k for gain in found.gains} == {5}
    assert not says(found, "Who the patients are")
    assert says(found, "at the magnification of these photographs (100X)")


# What is missing


def test_without_any_label_only_the_scores_are_told(trial, model, site, found):
    bare = trial(model, unlabelled(scan(site)))
    assert (bare.n_images, bare.n_labelled) == (24, 0)
    assert (bare.evaluation, bare.gains) == (None, ())
    assert bare.drift == found.drift
    assert "no image has a label" in bare.cannot_know[0]
    assert not says(bare, "Whether the labels are right")


def test_images_without_a_label_count_for_the_scores_alone(trial, model, site, found):
    some = trial(model, unlabelled(scan(site), slice(0, 24, 6)))
    assert (some.n_images, some.n_labelled) == (24, 20)
    assert some.evaluation.n_images == 20
    assert some.drift == found.drift
    assert says(some, "4 image(s) without a label")
    others = trial(model, scan(site).where(np.arange(24) % 6 > 0))
    assert some.evaluation.to_json() == others.evaluation.to_json()


def test_an_image_that_cannot_be_read_is_left_out_and_named(trial, model, site, tmp_path):
    folder = shutil.copytree(site, tmp_path / "site")
    broken = folder / "benign" / "broken.tif"
    broken.write_bytes(next(folder.rglob("*.tif")).read_bytes()[:900])
    found = trial(model, scan(folder))
    assert found.n_images == 24
    assert list(found.failed) == ["benign/broken.tif"]
    assert says(found, "1 image(s) show that could not be read")


def test_one_class_alone_has_decisions_and_no_ranking(trial, model, site):
    manifest = scan(site)
    only = manifest.where(manifest.table["label"] == "malignant")
    found = trial(model, only)
    assert np.isnan(found.evaluation.levels["image"].metrics["roc_auc"].estimate)
    assert 0 <= found.evaluation.levels["image"].decisions[-1].metrics["sensitivity"].estimate <= 1
    assert found.gains == ()
    assert says(found, "How images of class benign are judged")
    assert says(found, "it takes 10 of them or more")
    assert json.loads(json.dumps(found.to_json(), allow_nan=False))


def test_a_model_of_before_has_no_scores_to_compare_with(trial, model, site):
    old = replace(model, info=replace(model.info, out_of_fold={}))
    found = trial(old, scan(site).where(np.arange(24) % 6 == 0))
    assert found.drift is None
    assert says(found, "this model keeps no scores to compare with")


def test_a_class_that_the_model_does_not_know_is_told_before_any_work(trial, model, site):
    def no_work(items, *, total, task):
        pytest.fail(f"began {task}")

    manifest = scan(site)
    other = manifest.with_columns(label=manifest.table["label"].str.replace("benign", "Benign"))
    with pytest.raises(DataError, match=r"no image of class Benign was there.*\n  call the class"):
        trial(model, other, progress=no_work)


# What the model has seen


def test_the_images_it_was_trained_on_are_recognised(model, finished_run, tissue):
    manifest = scan(tissue.images)
    assert _seen(model, manifest) == 48
    assert _seen(model, manifest.where(np.arange(48) % 4 == 0)) == 12
    assert _seen(model, unlabelled(manifest)) == 48
    # a model that lies nowhere still knows the hash of all of them
    assert _seen(finished_run.model, manifest) == 48
    assert _seen(finished_run.model, unlabelled(manifest)) is None


def test_held_out_images_are_not_among_those_it_was_trained_on(model, tissue, tmp_path):
    shutil.copytree(model.folder, tmp_path / "model")
    manifest = scan(tissue.images)
    held_out = np.arange(48) % 4 == 0
    learned = manifest.where(~held_out)
    info = replace(model.info, training={**model.info.training, "data_hash": learned.data_hash})
    write_manifest(manifest.with_columns(fold=np.where(held_out, -1, 0)),
                   tmp_path / "manifest.parquet")  # fmt: skip
    moved = replace(model, info=info, folder=tmp_path / "model")
    assert _seen(moved, manifest) == 36
    assert _seen(moved, manifest.where(held_out)) == 0


def test_away_from_its_run_a_model_does_not_know_what_it_has_seen(trial, model, site, tmp_path):
    shutil.copytree(model.folder, tmp_path / "model")
    moved, some = load_model(tmp_path / "model"), scan(site).where(np.arange(24) % 6 == 0)
    found = trial(moved, some)
    assert found.seen is None
    assert says(found, "their list does not lie beside it")
    # nor does a damaged manifest tell, or that of another run
    (tmp_path / "manifest.parquet").write_bytes(b"PAR1")
    assert _seen(moved, some) is None
    write_manifest(some, tmp_path / "manifest.parquet")
    assert _seen(moved, scan(site)) is None


# The gate


def test_what_the_models_gate_turns_away_is_told_by_patient():
    table = pd.DataFrame({
        "path": [f"{i}.png" for i in range(8)],
        "patient": pd.array([f"P{i // 2}" for i in range(8)], dtype="string"),
        "accepted": [True, False, True, True, False, False, True, True],
    })  # fmt: skip
    found = _refused(Predictions(table, ("a", "b")), draws=100, seed=0)
    assert found.estimate == 3 / 8
    assert found.low < 3 / 8 < found.high
    assert _refused(Predictions(table.drop(columns="accepted"), ("a", "b")), 100, 0) is None


# The record


@pytest.mark.parametrize("refused", [None, Interval(0.2, 0.1, 0.3, 50, 0)])
def test_a_record_comes_back_from_json_as_it_was(found, refused):
    found = replace(found, refused=refused)
    record = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert record["schema"] == "lobule.external/1"
    assert record["cannot_know"] == found.cannot_know
    again = External.from_json(record, found.predictions)
    # of what is not a number, none is like another
    assert again.to_json() == found.to_json()
    assert replace(again, evaluation=None) == replace(found, evaluation=None)


def test_another_schema_or_a_missing_field_is_refused(found):
    record = found.to_json()
    with pytest.raises(DataError, match="not an external record"):
        External.from_json(record | {"schema": "lobule.external/9"}, found.predictions)
    for field in set(record) - {"schema", "cannot_know"}:
        short = {key: value for key, value in record.items() if key != field}
        with pytest.raises(DataError, match="external record cannot be read"):
            External.from_json(short, found.predictions)
