"""Similar cases: the nearest, one a patient, never the own patient or file, or none close."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lobule.data.manifest import read_manifest
from lobule.errors import DataError, ImageError
from lobule.explain.neighbours import collect, nearest_of_others, read_cases, write_cases
from lobule.models.classifier import Features
from lobule.models.engines import make_engine
from lobule.training.features import Extractor, gather


@pytest.fixture(scope="module")
def known(finished_run):
    """The run's manifest and the features of its images."""
    model = finished_run.model
    manifest = read_manifest(finished_run.folder / "manifest.parquet")
    engine = make_engine(model.backbone.module)
    return manifest, gather(manifest, Extractor(engine, model.preprocessing, model.features_id))


def test_training_keeps_its_cases_beside_the_model(finished_run, known):
    manifest, features = known
    cases = read_cases(finished_run.model, finished_run.folder)
    expected = collect(manifest, features)
    assert cases.table["path"].tolist() == manifest.table["path"].tolist()
    assert np.allclose(cases.directions, expected.directions, atol=1e-5)
    assert cases.limit == pytest.approx(expected.limit, rel=1e-3)


@settings(max_examples=25, deadline=None)
@given(row=st.integers(0, 47), named=st.booleans(), k=st.integers(1, 20))
def test_no_case_is_of_the_same_patient_or_file_and_none_twice(known, row, named, k):
    manifest, features = known
    table = manifest.table
    cases = collect(manifest, features)
    own = str(table["patient"].iloc[row])
    one = Features(features.views[[row]], features.colour[[row]])
    # a file that is known tells its patient by itself
    found = cases.similar(one, sha256=table["sha256"].iloc[row] if not named else "0" * 64,
                          patient=own if named else None, k=k)  # fmt: skip
    patients = [case.patient for case in found.cases]
    assert own not in patients
    assert len(set(patients)) == len(patients) == min(k, table["patient"].nunique() - 1)
    distances = [case.distance for case in found.cases]
    assert distances == sorted(distances)
    # the nearest is the nearest of all others, by brute force
    directions = cases.directions.astype(float)
    others = (table["patient"] != own).to_numpy()
    assert distances[0] == pytest.approx(1 - (directions[others] @ directions[row]).max(), abs=1e-6)


def test_without_a_patient_another_image_of_theirs_is_found_but_not_the_file(known):
    manifest, features = known
    cases = collect(manifest, features)
    one = Features(features.views[[0]], features.colour[[0]])
    found = cases.similar(one, sha256="0" * 64, k=1)
    # the very image, since neither its file nor its patient was told
    assert found.cases[0].path == manifest.table["path"].iloc[0]
    assert found.cases[0].distance == pytest.approx(0, abs=1e-6)
    assert not found.none_close


def test_what_is_far_from_all_is_said_to_be(known):
    manifest, features = known
    cases = collect(manifest, features)
    rng = np.random.default_rng(0)
    away = Features(rng.normal(size=(1, *features.views.shape[1:])).astype(np.float32),
                    features.colour[[0]])  # fmt: skip
    assert cases.similar(away, sha256="0" * 64).none_close


def test_the_limit_covers_95_percent_of_the_training_images(known):
    manifest, features = known
    cases = collect(manifest, features)
    nearest = nearest_of_others(cases.directions, cases.groups)
    assert (nearest <= cases.limit).mean() >= 0.95
    distance = 1 - cases.directions.astype(float) @ cases.directions.T.astype(float)
    distance[cases.groups[:, None] == cases.groups] = np.inf
    assert np.allclose(nearest, np.maximum(distance.min(axis=1), 0), atol=1e-6)


def test_images_without_patients_are_their_own_groups(known):
    manifest, features = known
    cases = collect(manifest.with_columns(patient=None), features)
    assert len(set(cases.groups)) == len(manifest)


def test_cases_of_another_model_or_a_damaged_file_are_refused(
    finished_run, tuned_run, known, tmp_path
):
    assert read_cases(finished_run.model, tmp_path) is None
    write_cases(collect(*known), finished_run.model, tmp_path)
    with pytest.raises(DataError, match="of another model"):
        read_cases(tuned_run.model, tmp_path)
    (tmp_path / "cases.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(DataError, match=r"cannot read .*cases\.parquet"):
        read_cases(finished_run.model, tmp_path)


def test_a_photograph_that_moved_or_changed_is_not_shown_for_another(finished_run, known, tmp_path):
    manifest, features = known
    shutil.copytree(manifest.root, tmp_path / "images")
    write_cases(collect(manifest, features), finished_run.model, tmp_path)
    cases = read_cases(finished_run.model, tmp_path, root=tmp_path / "images")
    assert cases.read_row(0).shape == (64, 96, 3)
    first, second = (tmp_path / "images" / path for path in cases.table["path"][:2])
    shutil.copy(second, first)
    with pytest.raises(ImageError, match="no longer the file"):
        cases.read_row(0)
    first.unlink()
    with pytest.raises(ImageError, match="no such file"):
        cases.read_row(0)
