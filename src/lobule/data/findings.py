"""What an audit says, and what of it may be accepted by name.

Findings of severity "blocking" stop training; those in OVERRIDABLE can be accepted by their code.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from lobule.errors import DataError, UsageError

SCHEMA = "lobule.audit/1"

Severity = Literal["blocking", "warning", "note"]

OVERRIDABLE = {
    "unreadable": "leave unreadable images out",
    "patients-unknown": "treat every image of unknown patient as a patient of its own",
    "patient-in-two-splits": "keep a split that has a patient on both sides",
    "duplicate-in-two-splits": "keep a split that has the same photograph on both sides",
    "duplicate-in-two-classes": "keep the same photograph under two classes",
}
"""Blocking codes that `--allow CODE` accepts, and what that means."""

FEW_PATIENTS = 5
"""Below this many patients in a class, figures for it say little (see docs/concepts.md)."""


MANY_IMAGES = 30
"""From here on it is worth a note that no two images are of one patient."""


@dataclass(frozen=True)
class Finding:
    """One thing worth knowing, with the files it is about."""

    code: str
    severity: Severity
    message: str
    files: tuple[str, ...] = ()


@dataclass(frozen=True)
class Audit:
    """All findings, worst first, and the pairs of rows that show the same photograph."""

    findings: tuple[Finding, ...]
    n_images: int
    n_patients: int
    patients_known: bool
    duplicates: tuple[tuple[int, int], ...] = field(default=(), repr=False)

    def blocking(self, allow: Sequence[str] = ()) -> list[Finding]:
        """Return the blocking findings whose code is not in `allow`."""
        return [f for f in self.findings if f.severity == "blocking" and f.code not in allow]

    def to_json(self) -> dict[str, Any]:
        """Return plain types, without the row pairs (the findings name the files)."""
        fields = asdict(self)
        del fields["duplicates"]
        return {"schema": SCHEMA, **fields}


def check_allowed(codes: Sequence[str]) -> None:
    """Refuse a code that no override exists for; raises UsageError naming those that do."""
    for code in codes:
        if code not in OVERRIDABLE:
            raise UsageError(
                f"--allow {code!r} is not a finding that can be accepted",
                fix="these can: " + ", ".join(OVERRIDABLE),
            )


def require_clean(audit: Audit, allow: Sequence[str] = ()) -> None:
    """Raise DataError if a blocking finding is left that is not in `allow`."""
    check_allowed(allow)
    blocking = audit.blocking(allow)
    if not blocking:
        return
    ways_out = [
        f"--allow {finding.code} ({OVERRIDABLE[finding.code]})"
        for finding in blocking
        if finding.code in OVERRIDABLE
    ]
    raise DataError(
        "the audit found what must be settled before training:\n"
        + "\n".join(f"  {f.code}: {f.message}" for f in blocking),
        fix="correct the data"
        + (", or accept by name: " + "; ".join(ways_out) if ways_out else ""),
    )
