"""What a model says of itself: the model card, all of it from model.json."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lobule.errors import show
from lobule.identity import NOTICE
from lobule.models.license import terms

RESEARCH_USE = NOTICE
"""What stands on every card and report."""

Fact = tuple[str, str]
"""A term and what is said of it."""


def model_card(record: dict[str, Any]) -> str:
    """Return Markdown for the record of `bundle.describe`; no figure here is written by hand."""
    training = record["training"]
    facts = "\n".join(f"- **{term}:** {show(text)}" for term, text in card_facts(record))
    return f"""# {record["id"]}

**{RESEARCH_USE}**

A classifier of breast-histology photographs, made by Lobule {record["versions"]["lobule"]} on \
{record["created"]} from images of content hash `{training["data_hash"]}`.{_unknown(training)}

{facts}

## Performance

{_performance(record["performance"])}

How the model does on another laboratory's stain, microscope or camera is not measured, unless
stated here.
{_reporting(record.get("reporting", []))}"""


def card_facts(record: Mapping[str, Any]) -> list[Fact]:
    """Return what model.json says, as terms and sentences, for the card and for the report.

    record: as `bundle.describe` returns it, of a model with frozen features or of a tuned one.
    Raises LookupError, TypeError or ValueError if it is none.
    """
    training, prep = record["training"], record["preprocessing"]
    known = bool(training["patients_known"])
    classes = "; ".join(
        f"{name}: {people(n['images'], n['patients'], known=known)}"
        for name, n in training["classes"].items()
    )
    return [
        ("Model", str(record["id"])),
        (
            "Intended use",
            "Research on photographs of the kind it was trained on: same stain, magnification and "
            "way of taking the picture.",
        ),
        *_licence(record),
        ("Classes", " / ".join(str(name) for name in record["classes"])),
        ("Trained on", people(training["n_images"], training["n_patients"], known=known)),
        ("By class", classes),
        ("Figures of", str(record["performance"]["source"])),
        *_operating_points(record),
        ("Calibration", _calibration(record["calibration"])),
        *_sets(record),
        ("Refusal", _gate(record.get("gate"), known=known)),
        (
            "Input",
            f"whole image, {_size(prep)}, {prep['interpolation']} interpolation, no crop; "
            f"preprocessing {prep['id']}",
        ),
        *_network(record),
        ("Answer", "mean probability over the 8 views"),
        ("Weights SHA-256", str(record["weights_sha256"])),
    ]


def people(n_images: int, n_patients: int, *, known: bool) -> str:
    """Return "422 images, 23 patients", or that the patients are unknown."""
    return f"{count(n_images, 'image')}, " + (
        count(n_patients, "patient") if known else "patients unknown"
    )


def count(n: int, unit: str) -> str:
    """Return "1 image" or "1,234 images"."""
    return f"{n:,} {unit}" if n == 1 else f"{n:,} {unit}s"


def figure_name(name: str) -> str:
    """Return the name of a figure as people write it: "ROC AUC", "balanced accuracy"."""
    return name.replace("roc_auc", "ROC AUC").replace("_", " ")


def _network(record: Mapping[str, Any]) -> Iterator[Fact]:
    """Yield what computes the features, and what decides on them."""
    training, backbone = record["training"], record["backbone"]
    name, weights = backbone["name"], backbone["weights"]
    licence, n = f"licence {backbone['license']}", f"{backbone['n_features']:,} numbers"
    views = "for the 8 rotations and mirror images"
    # folders of version 0.1.0 do not name it: nothing was tuned
    tuning = training.get("tuning")
    if tuning is None:
        yield "Features", f"frozen {name} ({weights}; {licence}), {n}, {views}"
        yield (
            "Head",
            f"logistic regression, C = {training['strength']:g}, chosen inside the training "
            "patients; every class and every patient of a class weighs the same",
        )
        return
    unit = "validation patient" if training["patients_known"] else "validation image"
    on = count(tuning["n_validation_patients"], unit)
    if not training["patients_known"]:
        on += " (patients unknown)"
    yield (
        "Network",
        f"{name}, tuned from {weights} ({licence}); epoch {tuning['selected_epoch']} of "
        f"{tuning['epochs']} chosen by {figure_name(tuning['select'])} on {on}; {n}, {views}",
    )
    yield "Head", "batch norm and linear layer, trained with the network"


def _licence(record: Mapping[str, Any]) -> Iterator[Fact]:
    """Yield what the licence of the network asks of its users, if that is known."""
    if told := terms(str(record["backbone"]["license"])):
        yield "Licence", told


def _size(prep: Mapping[str, Any]) -> str:
    quality = prep.get("jpeg_quality")
    first = "" if quality is None else f"brought to JPEG quality {quality}, "
    if prep["aspect"] == "square":
        return f"{first}squashed to {prep['long_side_px']} x {prep['long_side_px']} px"
    return f"{first}longer side scaled to {prep['long_side_px']} px, aspect kept"


def _operating_points(record: Mapping[str, Any]) -> list[Fact]:
    points = record["operating_points"]
    if not points:
        return [("Operating point", "none: the most probable class is taken")]
    return [
        (
            f"Operating point, per {level}",
            f"{record['positive']} from probability {point['threshold']:.4f} on, chosen for "
            f"{point['target']} of {point['value']:g} or more on {point['source']}; "
            f"reached there: {point['achieved']:.3f}",
        )
        for level, point in points.items()
    ]


def _reporting(lists: Sequence[Mapping[str, Any]]) -> str:
    """Return what is said to the items of reporting guidelines, and which are open."""
    if not lists:
        return ""
    lines = [
        "",
        "## Reporting guidelines",
        "",
        "Answers are of this run; (+) asks its author for more.",
    ]
    for one in lists:
        answered = [item for item in one["items"] if item["answer"] is not None]
        still = ", ".join(item["item"] for item in one["items"] if item["answer"] is None)
        lines += ["", f"### {one['guideline']}", "", f"Source: {one['source']}.", ""]
        lines += [
            f"- **{item['item']}** {item['asks']}: {show(item['answer'])}"
            + " (+)" * bool(item["left"])
            for item in answered
        ]
        lines += ["", f"Open, for the author: {still}."]
    return "\n".join([*lines, ""])


def _calibration(calibration: Mapping[str, Any]) -> str:
    method, source = calibration["method"], calibration["source"]
    if method == "none":
        return "none: probabilities are as the head gives them"
    if method == "temperature":
        return f"temperature {calibration['temperature']:.3f}, fitted on {source}"
    return f"{method}, {len(calibration['steps'])} steps, fitted on {source}"


def _sets(record: Mapping[str, Any]) -> Iterator[Fact]:
    """Yield what the sets of classes promise; models of before have none."""
    if not (sets := record.get("sets")):
        return
    if sets["quantile"] is None:
        told = (
            f"every class is in every set: {count(sets['patients'], 'patient')} are too few to "
            f"promise the true class in {sets['coverage']:.0%} of images"
        )
    else:
        told = (
            f"classes of probability {1 - sets['quantile']:.4f} or more; they hold the true one in "
            f"{sets['coverage']:.0%} of images or more, on average over new patients like those of "
            f"the {sets['source']}"
        )
    yield "Sets of classes", told


def _gate(gate: Mapping[str, Any] | None, *, known: bool) -> str:
    if not gate:
        why = (
            "" if known else "; with patients unknown, no gate can tell how unlike a new one may be"
        )
        return f"none: it answers whatever it is shown, also a picture that is no tissue{why}"
    return (
        f"a gate refuses pictures unlike those trained on; set to let {gate['kept']:.0%} of images "
        f"of unseen patients through, it let {gate['accepted']:.1%} through ({gate['source']}). It "
        "knows photographs, text, noise, glass and heavy blur from tissue. Measured on breast "
        "tissue at 100X, it also let through 17% of images of skin, a quarter of those of another "
        "stain, all of a neighbouring magnification and most with a mild blur or other colours. "
        "It says nothing of whether an answer is right"
    )


def _unknown(training: Mapping[str, Any]) -> str:
    if training["patients_known"]:
        return ""
    return " **Patients unknown**: images of one patient may lie on both sides of every split."


def _performance(performance: dict[str, Any]) -> str:
    lines = [
        f"Measured on {performance['source']}.",
        "",
        "| level | figure | value (95% interval) |",
    ]
    lines.append("| --- | --- | --- |")
    lines += [f"| {row['level']} | {row['name']} | {row['text']} |" for row in performance["rows"]]
    return "\n".join(lines)
