"""What can be taken away from the page: CSV, JSON, and a page that needs no server."""

from __future__ import annotations

import base64
import csv
import io
import json
from collections.abc import Sequence

from lobule.explain import overlay
from lobule.files import harmless
from lobule.serving.answers import Answer
from lobule.serving.service import Answered, Explained


def as_csv(answers: Sequence[Answer]) -> bytes:
    """Return answers as CSV, one row an image; no cell is one that a spreadsheet would execute."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\r\n")
    rows = [_flat(answer) for answer in answers]
    writer.writerow([harmless(name) for name in rows[0]])
    writer.writerows([[harmless(value) for value in row.values()] for row in rows])
    # without the mark, spreadsheets take UTF-8 for something else
    return b"\xef\xbb\xbf" + out.getvalue().encode()


def _flat(answer: Answer) -> dict[str, str | float | int | None]:
    point = answer.threshold
    return {
        "name": answer.name,
        "patient": answer.patient,
        "verdict": answer.verdict,
        "decision": answer.decision,
        **{f"prob_{name}": value for name, value in answer.probabilities.items()},
        "set": None if answer.set is None else "; ".join(answer.set),
        "threshold": None if point is None else point.value,
        "threshold_source": None if point is None else point.source,
        "ood_score": answer.ood_score,
        "width_px": answer.width_px,
        "height_px": answer.height_px,
        "sha256": answer.sha256,
        **answer.identity.model_dump(),
    }


def as_json(answers: Sequence[Answer]) -> bytes:
    """Return answers as one JSON object."""
    results = [answer.model_dump(by_alias=True) for answer in answers]
    record = {"schema": "lobule.answers/1", "results": [{"answer": r} for r in results]}
    return json.dumps(record, indent=2, ensure_ascii=False).encode()


def picture(one: Answered, found: Explained) -> bytes:
    """Return photograph, map and legend as PNG; it says in text who made it and what it is for."""
    identity = one.answer.identity.model_dump()
    return overlay.signed(one.image, found.map, of_class=found.of_class, identity=identity)


def data_uri(kind: str, data: bytes) -> str:
    """Return a file as an address that holds it."""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
