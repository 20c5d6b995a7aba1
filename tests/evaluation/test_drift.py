"""The distances are those that scipy finds between the two samples."""

import json

import numpy as np
import pytest
from scipy.stats import ks_2samp, wasserstein_distance

from lobule.errors import DataError
from lobule.evaluation.drift import Drift, largest_difference, score_drift, share_below, share_up_to

AT = np.linspace(0, 1, 101)
RNG = np.random.default_rng(0)
THERE = RNG.beta(2, 3, 5000)
HERE = RNG.beta(4, 2, 300)
PATIENT = [f"P{i // 10}" for i in range(300)]


def drift(score=HERE, there=THERE, *, threshold=0.5, patient=PATIENT):
    return score_drift(
        score, patient[: len(score)], np.quantile(there, AT), threshold=threshold, source="pooled",
        draws=300, seed=0,
    )  # fmt: skip


def test_distances_are_scipys_of_the_samples():
    found = drift()
    assert found.distance == pytest.approx(ks_2samp(HERE, THERE).statistic, abs=0.01)
    assert found.moved == pytest.approx(wasserstein_distance(HERE, THERE), abs=0.003)
    assert found.mean_there == pytest.approx(THERE.mean(), abs=0.002)
    assert found.mean_here.estimate == pytest.approx(HERE.mean())
    assert found.shift.estimate == pytest.approx(HERE.mean() - THERE.mean(), abs=0.002)
    assert found.over_there == pytest.approx((THERE >= 0.5).mean(), abs=0.01)
    assert found.over_here.estimate == (HERE >= 0.5).mean()


def test_scores_that_are_the_same_have_not_moved():
    found = drift(THERE, patient=[str(i) for i in range(len(THERE))])
    assert found.distance < 0.01
    assert found.moved == 0
    assert abs(found.shift.estimate) < 0.002
    assert found.shift.low < 0 < found.shift.high


def test_the_distance_sees_scores_that_stand_in_one_place():
    """Of many scores of exactly 0 and 1 the shares jump, and the jumps are what counts."""
    there = np.repeat([0.0, 1.0], [80, 20])
    here = np.repeat([0.0, 1.0], [30, 70])
    found = largest_difference(here, np.quantile(there, AT))
    assert found == pytest.approx(ks_2samp(here, there).statistic, abs=0.011)
    assert largest_difference(there, np.quantile(there, AT)) <= 0.011


def test_shares_below_and_up_to_differ_by_what_stands_there():
    quantiles = np.concatenate([np.zeros(51), np.linspace(0.02, 1, 50)])
    assert share_below(quantiles, 0.0) == 0
    assert share_up_to(quantiles, 0.0) == 0.5
    assert share_below(quantiles, 2.0) == 1
    assert share_up_to(quantiles, -1.0) == 0


def test_patients_are_redrawn_not_images():
    alike = np.repeat(RNG.random(30), 10)
    by_patient = drift(alike).shift.half_width
    by_image = drift(alike, patient=[str(i) for i in range(300)]).shift.half_width
    assert by_patient > 2 * by_image


def test_without_a_threshold_no_share_is_told():
    found = drift(threshold=None)
    assert (found.threshold, found.over_there, found.over_here) == (None, None, None)


@pytest.mark.parametrize("there", [AT[:-1], AT[::-1], AT - 0.5, AT * 2, np.full(101, np.nan)])
def test_quantiles_that_are_none_are_refused(there):
    with pytest.raises(DataError):
        score_drift(HERE, PATIENT, there, threshold=0.5, source="", draws=10, seed=0)


@pytest.mark.parametrize("threshold", [0.5, None])
def test_a_record_comes_back_from_json_as_it_was(threshold):
    found = drift(threshold=threshold)
    assert Drift.from_json(json.loads(json.dumps(found.to_json(), allow_nan=False))) == found
