"""The refusal gate on the real photographs: patients it never saw, and what is no tissue at all.

By cross-validation over patients. Of what is merely near, such as other organs, scales and stains,
nothing is promised; `python -m benchmarks.gate` measures it.
"""

from __future__ import annotations

import pytest
from benchmarks.gate import CHANGED, STRANGE, measure

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def measured(real_data):
    """Three splits of five gates each, asked about what is no tissue and what is out of focus."""
    blurred = {kind: CHANGED[kind] for kind in ("blur 4 px", "blur 8 px")}
    return measure(real_data, seeds=range(3), changed=blurred, near=False)


def test_at_most_one_image_in_twenty_of_patients_not_seen_is_refused(measured):
    assert max(measured.refused) <= 0.05, measured.refused
    # nor is the gate open by being useless
    assert min(measured.refused) > 0


@pytest.mark.parametrize("kind", STRANGE)
def test_what_is_no_tissue_is_told_from_patients_not_seen_and_refused(measured, kind):
    auc, share = measured.kinds[kind].T
    assert auc.min() >= 0.99, auc
    assert share.min() >= 0.95, share


@pytest.mark.parametrize(("kind", "least"), [("blur 4 px", 0.75), ("blur 8 px", 0.98)])
def test_photographs_far_out_of_focus_are_told_from_sharp_ones_of_the_same_patients(
    measured, kind, least
):
    auc, share = measured.kinds[kind].T
    assert auc.mean() >= 0.95, auc
    assert share.mean() >= least, share
