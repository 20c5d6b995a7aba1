"""The run folder's own record: who may write there, and whether the run is complete."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lobule.data.findings import Audit
from lobule.errors import OutputError, show
from lobule.evaluation.evaluate import Evaluation
from lobule.evaluation.leakage import Leakage
from lobule.files import write_json, writing
from lobule.identity import now
from lobule.models.bundle import Model

SCHEMA = "lobule.run/1"

RECORD = "run.json"


@dataclass(frozen=True)
class Run:
    """A finished run: its folder and what was found."""

    folder: Path
    audit: Audit
    evaluation: Evaluation
    leakage: Leakage
    model: Model


def refuse_taken(out: Path) -> dict[str, Any] | None:
    """Raise OutputError if `out` holds anything but an unfinished run, whose record is returned."""
    if not out.exists():
        return None
    if not out.is_dir():
        raise OutputError(f"{show(out)} is a file, not a folder", fix="choose another -o")
    if not any(out.iterdir()):
        return None
    try:
        record = json.loads((out / RECORD).read_text(encoding="utf-8"))
        state = record["state"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise OutputError(
            f"the output folder {show(out)} is not empty and holds no run of Lobule",
            fix="choose another -o; nothing there was touched",
        ) from error
    if state != "incomplete":
        raise OutputError(
            f"the output folder {show(out)} already holds a finished run",
            fix="choose another -o; nothing there was touched (`lobule report RUN` makes the page)",
        )
    return dict(record)


def claim(out: Path, request: dict[str, Any]) -> None:
    """Take `out` for this request, or go on with an interrupted run of the very same request."""
    record = refuse_taken(out)
    if record is not None and record.get("request") != json.loads(json.dumps(request)):
        raise OutputError(
            f"{show(out)} holds an unfinished run of other data or settings",
            fix="choose another -o, or delete that folder; nothing there was touched",
        )
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
    write_json(
        out / RECORD,
        {"schema": SCHEMA, "state": "incomplete", "request": request, "started": now()},
    )


def complete(out: Path, versions: dict[str, str]) -> None:
    """Mark the run as complete."""
    record = json.loads((out / RECORD).read_text(encoding="utf-8"))
    write_json(
        out / RECORD, {**record, "state": "complete", "finished": now(), "versions": versions}
    )
