"""What a licence asks of the user of weights is told, where it is one of the known kinds."""

from __future__ import annotations

import pytest

from lobule.models.license import terms

MAY_HOLD = "; this may hold for a model made with them too."


@pytest.mark.parametrize(
    "license",
    [
        "apache-2.0",
        "mit",
        "cc-by-4.0",
        "apple-ascl",
        "nvidia-open-model-license",
        "as stated by whoever made the file",
        "none needed: no weights were taken over",
    ],
)
def test_of_other_licences_nothing_is_said(license):
    assert terms(license) is None


@pytest.mark.parametrize(
    "license",
    [
        "cc-by-nc-4.0",
        "CC-BY-NC-ND-4.0",
        "cc_by_nc_sa_4.0",
        "own-nc-licence",
        "fair-noncommercial-research-license",
        "non-commercial",
        "research only",
        "academic use",
        "apple-amlr",
        "apache-2.0 / cc-by-nc-4.0",
    ],
)
def test_licences_without_commercial_use_are_recognised(license):
    assert terms(license) == (
        f"The backbone's weights (licence: {license}) may not be used commercially{MAY_HOLD}"
    )


def test_gated_weights_and_those_without_licence_are_told_and_reasons_add_up():
    assert terms("mit (gated)") == (
        "The backbone's weights (licence: mit (gated)) are given only to those who accept their "
        f"makers' terms{MAY_HOLD}"
    )
    assert terms("not stated") == (
        "The backbone's weights (licence: not stated) come without a stated licence" + MAY_HOLD
    )
    assert terms("cc-by-nc-nd-4.0 (gated)") == (
        "The backbone's weights (licence: cc-by-nc-nd-4.0 (gated)) may not be used commercially "
        f"and are given only to those who accept their makers' terms{MAY_HOLD}"
    )
