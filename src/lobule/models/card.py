"""The model card: what a model folder's README.md says, all of it from model.json."""

from __future__ import annotations

from typing import Any

RESEARCH_USE = "Research use only. Not for diagnosis."


def model_card(record: dict[str, Any]) -> str:
    """Return Markdown for the record of `bundle.describe`; no figure here is written by hand."""
    training, prep, backbone = record["training"], record["preprocessing"], record["backbone"]
    classes = " / ".join(record["classes"])
    counts = "\n".join(
        f"| {name} | {n['images']} | {_patients(n['patients'], training)} |"
        for name, n in training["classes"].items()
    )
    return f"""# {record["id"]}

**{RESEARCH_USE}**

A classifier of breast-histology photographs ({classes}), made by Lobule \
{record["versions"]["lobule"]} on {record["created"]}.

## Intended use

Research on photographs of the kind it was trained on: same stain, magnification and way of \
taking the picture. It has been tested on no other laboratory's images unless stated below. It \
always answers, also for a picture that is no tissue at all.

## Training data

| class | images | patients |
| --- | --- | --- |
{counts}

Content hash `{training["data_hash"]}`. {_who(training)}

## Performance

{_performance(record["performance"])}

## Operating point

{_operating_points(record)}

Calibration: {record["calibration"]["method"]} ({record["calibration"]["source"]}).

## How it works

- Whole image, {_size(prep)}, {prep["interpolation"]} interpolation; no crop.
- Features: frozen {backbone["name"]} ({backbone["weights"]}; licence {backbone["license"]}), \
globally pooled, for the 8 rotations and mirror images.
- Head: L2-regularised logistic regression, C = {training["strength"]:g}, chosen inside the \
training patients; every class and every patient of a class weighs the same.
- Answer: mean probability over the 8 views.

Weights SHA-256 `{record["weights_sha256"]}`; preprocessing `{prep["id"]}`.
"""


def _patients(n: int, training: dict[str, Any]) -> str:
    return str(n) if training["patients_known"] else "unknown"


def _who(training: dict[str, Any]) -> str:
    if training["patients_known"]:
        return f"{training['n_patients']} patients."
    return "**Patients unknown**: images of one patient may lie on both sides of every split."


def _size(prep: dict[str, Any]) -> str:
    if prep["aspect"] == "square":
        return f"squashed to {prep['long_side_px']} x {prep['long_side_px']} px"
    return f"longer side scaled to {prep['long_side_px']} px, aspect kept"


def _performance(performance: dict[str, Any]) -> str:
    lines = [
        f"Measured on {performance['source']}.",
        "",
        "| level | figure | value (95% interval) |",
    ]
    lines.append("| --- | --- | --- |")
    lines += [f"| {row['level']} | {row['name']} | {row['text']} |" for row in performance["rows"]]
    return "\n".join(lines)


def _operating_points(record: dict[str, Any]) -> str:
    points = record["operating_points"]
    if not points:
        return "None: with more than two classes the most probable class is taken."
    lines = [
        f"- {level}: {record['positive']} from probability {point['threshold']:.4f} on, chosen for "
        f"{point['target']} >= {point['value']:g} on {point['source']}."
        for level, point in points.items()
    ]
    return "\n".join(lines)
