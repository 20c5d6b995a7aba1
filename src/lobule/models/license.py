"""Licences of weights: what a user has to be told of them."""

from __future__ import annotations

import re

NOT_STATED = "not stated"
"""Where the makers of published weights name no licence."""

GATED = " (gated)"
"""Behind a licence whose terms each user has to accept in person before the weights are given."""

_NOT_COMMERCIAL = re.compile(
    r"\bnc\b|non-?commercial|\bresearch\b|\bacademic\b|\bamlr\b"  # amlr: Apple's, for research only
)


def terms(license: str) -> str | None:
    """Return one sentence on what binds the user of weights under `license`, or None.

    license: as `Backbone.license` has it. Known are licences that allow no commercial use, gated
    ones, and none stated. None means that nothing was recognised, not that nothing is asked.
    """
    plain = license.lower().replace("_", "-")
    told = []
    if plain.startswith(NOT_STATED):
        told.append("come without a stated licence")
    if _NOT_COMMERCIAL.search(plain):
        told.append("may not be used commercially")
    if plain.endswith(GATED):
        told.append("are given only to those who accept their makers' terms")
    if not told:
        return None
    return (
        f"The backbone's weights (licence: {license}) {' and '.join(told)}; "
        "this may hold for a model made with them too."
    )
