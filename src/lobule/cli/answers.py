"""What `predict` says: a table for people, the JSON record, and what the audit log keeps."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from lobule.errors import show
from lobule.identity import NOTICE

if TYPE_CHECKING:
    from lobule.data.manifest import Manifest
    from lobule.evaluation.predictions import Predictions

SHOWN = 50
"""Images at most that the table for people has a line for."""

REFUSED = "refused"
"""What stands in place of a decision on an image that the model's gate turns away."""

UNREADABLE = "unreadable"


def predictions_record(
    predictions: Predictions, out: Path | None, maps: Path | None
) -> dict[str, Any]:
    """Return the rows and who says so; where the table and the heat maps were written."""
    from lobule.files import plain_rows

    table = predictions.table
    wanted = ("path", "decision", "ood_score", "accepted")
    shown = [c for c in table.columns if c in wanted or c.startswith(("prob_", "set_"))]
    return {
        "schema": "lobule.predict/1",
        **predictions.identity,
        "threshold": float(table["threshold"].iloc[0]) if "threshold" in table else None,
        "out": None if out is None else str(out),
        "maps": None if maps is None else str(maps),
        "predictions": plain_rows(table[shown]),
        "failed": dict(predictions.failed),
    }


def audit_record(predictions: Predictions, manifest: Manifest) -> dict[str, Any]:
    """Return what the audit log keeps of a call: hashes, answers and identity, and no names."""
    table, known = predictions.table, manifest.table.set_index("path")["sha256"]
    said = predictions.identity
    rows = zip(
        table["path"], predictions.decided, predictions.probabilities().tolist(), strict=True
    )
    images = [
        {
            "sha256": str(known[path]),
            "decision": decision if isinstance(decision, str) else None,
            "probabilities": dict(zip(predictions.classes, row, strict=True)),
        }
        for path, decision, row in rows
    ]
    hashed = [path for path in predictions.failed if path in known.index]
    return {
        "images": images,
        "unreadable": [str(known[path]) for path in hashed],
        "unreadable_without_hash": len(predictions.failed) - len(hashed),
        "identity": {
            "model": said["model"],
            "weights_sha256": said["weights"],
            **{key: said[key] for key in ("preprocessing", "training_data", "tool")},
        },
    }


def predictions_text(predictions: Predictions, out: Path | None, maps: Path | None) -> str:
    """Return a line an image, or counts where they were written to a file."""
    model = str(predictions.table["model"].iloc[0])
    lines = [] if out is not None else [*_lines(predictions), ""]
    lines += [_counted(predictions), f"model: {show(model)}"]
    if out is not None:
        lines.append(f"predictions: {show(out)}")
    if maps is not None:
        lines.append(f"heat maps: {show(maps)}; they do not show where a lesion is")
    return "\n".join([*lines, NOTICE])


def _lines(predictions: Predictions) -> list[str]:
    """Return the table for people, in the order of paths."""
    table, classes = predictions.table, predictions.classes
    head = f"prob. {show(classes[-1])}" if len(classes) == 2 else "probability"
    rows = [
        (path, f"{p:.4f}", decision, members)
        for path, p, decision, members in zip(
            table["path"], predictions.score, _decisions(predictions), _sets(predictions),
            strict=True,
        )
    ]  # fmt: skip
    rows += [(path, "", UNREADABLE, "") for path in predictions.failed]
    rows.sort()
    left = len(rows) - SHOWN
    shown = [
        tuple(show(cell) for cell in (p, decision, members, path))
        for path, p, decision, members in [("image", head, "decision", "set"), *rows[:SHOWN]]
    ]
    widths = [*(max(len(row[k]) for row in shown) for k in range(3)), 0]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        for row in shown
    ]
    if left > 0:
        lines.append(f"and {left:,} more: -o FILE.csv or --json has them all")
    return lines


def _decisions(predictions: Predictions) -> list[str]:
    """Return the decision on each image, or that the gate refused it."""
    return [str(one) for one in predictions.decided.fillna(REFUSED)]


def _sets(predictions: Predictions) -> list[str]:
    """Return of each image which classes are in its set, if that is known, in words."""
    members, accepted = predictions.members, predictions.accepted
    said = [""] * len(predictions)
    if members is not None:
        said = [
            m[0] if len(m) == 1 else f"uncertain: {' or '.join(m) or 'no class fits'}"
            for m in members
        ]
    if accepted is not None:
        unlike = "unlike the training images"
        said = [one if fine else unlike for one, fine in zip(said, accepted, strict=True)]
    return said


def _counted(predictions: Predictions) -> str:
    """Return how many images had which answer."""
    import numpy as np

    decision, sets, accepted = (
        predictions.table["decision"], predictions.sets, predictions.accepted,
    )  # fmt: skip
    fine = np.ones(len(predictions), bool) if accepted is None else accepted
    counts = [(name, int(((decision == name) & fine).sum())) for name in predictions.classes]
    counts += [(REFUSED, int((~fine).sum())), (UNREADABLE, len(predictions.failed))]
    told = ", ".join(f"{n:,} {show(name)}" for name, n in counts if n)
    total = len(predictions) + len(predictions.failed)
    unsure = 0 if sets is None else int(((sets.sum(axis=1) != 1) & fine).sum())
    return f"{total:,} image(s): {told}" + (f"; {unsure:,} of them uncertain" if unsure else "")
