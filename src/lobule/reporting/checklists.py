"""What a run says to the items of three reporting guidelines, and what it leaves to its author.

Guidelines: TRIPOD+AI (Collins et al., BMJ 2024;385:e078378), CLAIM 2024 (Tejani et al., Radiology:
Artificial Intelligence 2024;6(4):e240300), STARD-AI (Sounderajah et al., Nature Medicine
2025;31:3283-3289). checklists.toml lists their items, in words of ours, and how their numbers were
checked. Every answer here is made from the files of a run. What these cannot know stays open:
ethics, funding, registration, setting, dates, the reference standard, the intended population.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import pandas as pd

from lobule.data.findings import Finding
from lobule.data.manifest import Manifest
from lobule.evaluation.evaluate import Decisions, Evaluation
from lobule.evaluation.leakage import Leakage
from lobule.evaluation.predictions import Level
from lobule.models.card import card_facts, count, figure_name, people
from lobule.reporting.tables import METRICS, count_rows, shown_levels
from lobule.reporting.verdict import basis, of_another_model, span


@dataclass(frozen=True)
class Known:
    """What answers are made from; a run has it before its model is saved, and its files after.

    manifest: all images of the run, with their parts. findings: of the audit. model: as
    `bundle.describe` returns it, and as model.json holds it. allow: codes of accepted findings.
    """

    manifest: Manifest
    findings: Sequence[Finding]
    evaluation: Evaluation
    leakage: Leakage
    model: Mapping[str, Any]
    allow: Sequence[str]


@dataclass(frozen=True)
class Item:
    """An item of a guideline.

    number: as the guideline prints it, such as "12a". asks: what is to be stated. answer: what the
    run says to it; None where the item is open. anchor: id of the section of the report where the
    answer's figures stand; None of an open item. left: what only the author can add; "" if nothing,
    or if an open item needs no more words than it asks in.
    """

    number: str
    asks: str
    answer: str | None
    anchor: str | None
    left: str


@dataclass(frozen=True)
class Checklist:
    """A guideline and its items in their order."""

    guideline: str
    source: str
    items: tuple[Item, ...]

    @property
    def n_answered(self) -> int:
        """Items that the run says something to, in full or in part."""
        return sum(item.answer is not None for item in self.items)

    @property
    def n_in_part(self) -> int:
        """Answered items to which the author must add something."""
        return sum(item.answer is not None and bool(item.left) for item in self.items)


def checklists(known: Known) -> list[Checklist]:
    """Return the guidelines, each item answered from `known` or left open.

    Raises LookupError, TypeError or ValueError if `known.model` is no record of a model.
    """
    text = files("lobule.reporting").joinpath("checklists.toml").read_text(encoding="utf-8")
    asked, said = tomllib.loads(text), answers(known)
    anchors = asked["anchors"]
    if known.model["training"].get("tuning") is None:
        # a page on a frozen network has no section on training
        anchors |= {name: "card" for name, anchor in anchors.items() if anchor == "training"}

    def item(row: Mapping[str, str]) -> Item:
        name, left = row.get("answer"), row.get("left", "")
        if name not in said:
            return Item(row["item"], row["asks"], None, None, left)
        return Item(row["item"], row["asks"], said[name], anchors[name], left)

    return [
        Checklist(one["name"], one["source"], tuple(map(item, one["items"])))
        for one in asked["guideline"]
    ]


def reporting_record(lists: Iterable[Checklist]) -> list[dict[str, Any]]:
    """Return the checklists as plain types, for model.json; the answer of an open item is None.

    Without the anchors, which lead into a page.
    """
    return [
        {
            "guideline": one.guideline,
            "source": one.source,
            "n_items": len(one.items),
            "n_answered": one.n_answered,
            "n_in_part": one.n_in_part,
            "items": [
                {"item": each.number, "asks": each.asks, "answer": each.answer, "left": each.left}
                for each in one.items
            ],
        }
        for one in lists
    ]


def answers(known: Known) -> dict[str, str]:
    """Return all that a run can say, by the names that checklists.toml uses.

    An answer is absent where this run cannot give it.
    """
    return _of_images(known) | _of_parts(known) | _of_model(known) | _of_figures(known)


def _of_images(known: Known) -> dict[str, str]:
    table, negative = known.manifest.table, known.evaluation.classes[0]
    kinds = [
        count(int(table[column].nunique()), column)
        for column in ("subtype", "magnification")
        if table[column].notna().any()
    ]
    said = {
        "preparation": f"{_input(known)}. Before training every file was decoded and compared with "
        f"every other: {_found(known.findings)}",
        "missing": _missing(known),
        "whole": "the whole photograph is used, no region of it is selected",
        "photographs": _photographs(known),
        "flow": f"{_counts(known, parts=False)}; {_left_out(known.findings)}",
        "characteristics": "; ".join([_counts(known, parts=table["split"].notna().any()), *kinds]),
    }
    others = table[table["label"] == negative]
    if len(known.evaluation.classes) == 2 and others["subtype"].notna().any():
        said["alternatives"] = f"{negative}, {_by('subtype', others)}"
    return said


def _found(findings: Sequence[Finding]) -> str:
    """Return "1 warning (few-patients); 1 note (sizes)"."""
    words = {"blocking": "blocking finding", "warning": "warning", "note": "note"}
    told = []
    for severity, word in words.items():
        codes = [finding.code for finding in findings if finding.severity == severity]
        if codes:
            told.append(f"{count(len(codes), word)} ({', '.join(dict.fromkeys(codes))})")
    return "; ".join(told) or "nothing found"


def _left_out(findings: Sequence[Finding]) -> str:
    """Return how many files were left out; a run goes on only if that was accepted."""
    n = len({file for found in findings if found.code == "unreadable" for file in found.files})
    return f"{count(n, 'unreadable image')} left out" if n else "no image left out as unreadable"


def _missing(known: Known) -> str:
    columns = ("patient", "slide", "magnification", "subtype")
    absent = {column: int(known.manifest.table[column].isna().sum()) for column in columns}
    unknown = [f"{column} of {count(n, 'image')}" for column, n in absent.items() if n]
    said = f"unknown: {', '.join(unknown) or 'no patient, slide, magnification or subtype'}"
    if absent["patient"]:
        said += "; an image of unknown patient counts as a patient of its own"
    return f"{said}; {_left_out(known.findings)}"


def _photographs(known: Known) -> str:
    table = known.manifest.table
    sizes = table[["width", "height"]].drop_duplicates().to_numpy(dtype=int).tolist()
    size = "{} x {} px".format(*sizes[0]) if len(sizes) == 1 else f"{len(sizes)} sizes"
    power = f"; {_by('magnification', table)}" if table["magnification"].notna().any() else ""
    return f"photographs of {size}{power}"


def _by(column: str, table: pd.DataFrame) -> str:
    """Return "by subtype: adenosis (4 images, 1 patient); ..."."""
    values = table[column].map(lambda v: f"{v:g}" if isinstance(v, float) else str(v))
    told = []
    for value, rows in table.groupby(values.where(table[column].notna(), "unknown")):
        patients = rows["patient"]
        known = bool(patients.notna().all())
        told.append(f"{value} ({people(len(rows), int(patients.nunique()), known=known)})")
    return f"by {column}: {'; '.join(told)}"


def _counts(known: Known, *, parts: bool) -> str:
    """Return images and patients of each class, of each part or of all."""
    told = []
    for row in count_rows(known.manifest.table):
        if parts == (row.part is not None):
            of = " ".join(name for name in (row.part, row.label) if name) or "in all"
            who = people(row.images, row.patients or 0, known=row.patients is not None)
            told.append(f"{of} ({who})")
    return "; ".join(told)


def _of_parts(known: Known) -> dict[str, str]:
    evaluation, training = known.evaluation, known.model["training"]
    fitted = people(training["n_images"], training["n_patients"], known=training["patients_known"])
    used = f"{basis(evaluation)}. The saved model is fitted on {fitted}"
    compared = "the same images serve both, in folds; each is scored by a fit without its fold"
    if known.manifest.table["split"].notna().any():
        compared = _counts(known, parts=True)
        used += f". By part: {compared}"
    learned = dict(card_facts(known.model))["By class"]
    return {
        "partition": used,
        "compared": compared,
        "disjoint": _disjoint(known),
        "events": f"fitted on {learned}. Evaluated on images {_by('label', _judged(known))}",
        "internal": f"{basis(evaluation)}: ROC AUC per image "
        f"{span(evaluation.levels['image'].metrics['roc_auc'])}",
    }


def _judged(known: Known) -> pd.DataFrame:
    """Return the rows of the manifest that the evaluation is of: the held-out part, or all."""
    table = known.manifest.table
    held_out = [part for part in ("test", "validation") if (table["split"] == part).any()]
    return table[table["split"] == held_out[0]] if held_out else table


def _disjoint(known: Known) -> str:
    """Return the level at which parts and folds are apart, counted in the manifest."""
    if not known.manifest.patients_known:
        return "the image: patients are unknown, so images of one may lie on both sides"
    table, columns = known.manifest.table, ("split", "fold")
    sides = [table.groupby("patient")[column].nunique() for column in columns if column in table]
    shared = {patient for n in sides for patient in n.index[n > 1]}
    said = "the patient: none has images in two parts or folds"
    if shared:
        said = f"not disjoint: {count(len(shared), 'patient')} with images in two parts or folds"
    if "duplicate-in-two-splits" in known.allow:
        said += "; copies of a photograph in two parts were accepted"
    return said


def _input(known: Known) -> str:
    """Return how a photograph becomes the input of the network."""
    prep = known.model["preprocessing"]
    mean, std = (", ".join(f"{value:g}" for value in prep[name]) for name in ("mean", "std"))
    stain = f"stain normalised ({prep['stain']['method']}); " if prep.get("stain") else ""
    whole = dict(card_facts(known.model))["Input"]
    return f"{whole}; {stain}channels less {mean}, divided by {std}"


def _of_model(known: Known) -> dict[str, str]:
    model, facts = known.model, dict(card_facts(known.model))
    backbone = model["backbone"]
    points = [f"{term}: {text}" for term, text in facts.items() if term.startswith("Operating")]
    output = f"probabilities of {' / '.join(model['classes'])}. {'. '.join(points)}"
    if model["operating_points"]:
        output += ". The decisions evaluated used thresholds chosen on other images"
    return _of_training(known) | {
        "preprocessing": _input(known),
        "predictors": f"the pixels alone; all {backbone['n_features']:,} numbers that "
        f"{backbone['name']} makes of them are used, none is selected",
        "model": f"{facts.get('Network') or facts['Features']}. Head: {facts['Head']}. "
        f"Calibration: {facts['Calibration']}",
        "calculation": f"{facts['Answer']}. {basis(known.evaluation)}, by {known.evaluation.model}",
        "output": output,
        "updating": "none: nothing is changed after the evaluation",
        "specification": f"weights.safetensors (SHA-256 {model['weights_sha256'][:12]}...), "
        f"model.json and README.md of the model folder; licence {backbone['license']}",
        "software": ", ".join(f"{name} {version}" for name, version in model["versions"].items()),
        "ensemble": "none: one model, its answers averaged over 8 views of a photograph",
        "blinding": "the index test is software that is given pixels and nothing clinical",
        "stored": f"{count(known.evaluation.n_images, 'prediction')} in predictions.parquet, each "
        "with model, hash of its weights, preprocessing and source",
    }


def _of_training(known: Known) -> dict[str, str]:
    """Return how the saved model was fitted: a head on frozen features, or a tuned network."""
    training, backbone = known.model["training"], known.model["backbone"]
    facts, tuning = dict(card_facts(known.model)), training.get("tuning")
    start = f"{backbone['name']} ({backbone['weights']})"
    calibration = f"calibration: {facts['Calibration']}"
    weighing = "every class and every patient of a class weighs the same"
    if tuning is None:
        return {
            "start": f"{start}, left as they are",
            "training": f"{facts['Head']}; all settings are in the run record",
            "selection": f"C = {training['strength']:g}, chosen inside the training patients",
            "balance": f"{weighing}; {calibration}",
        }
    unit = "validation patient" if training["patients_known"] else "validation image"
    epochs = f"epoch {tuning['selected_epoch']} of {tuning['epochs']}"
    said = {
        "start": f"{start}, tuned from there",
        "training": f"{epochs} is kept; all settings are in the run record",
        "selection": f"{epochs}, chosen by {figure_name(tuning['select'])} on "
        f"{count(tuning['n_validation_patients'], unit)}",
    }
    kinds = {
        "patient": weighing,
        "class": "every class weighs the same",
        "none": "none is used: every image weighs the same",
    }
    if kind := kinds.get(tuning.get("balance", "")):
        said["balance"] = f"{kind}; {calibration}"
    return said


def _of_figures(known: Known) -> dict[str, str]:
    evaluation, image = known.evaluation, known.evaluation.levels["image"]
    slides = bool(known.manifest.table["slide"].notna().all())
    levels = shown_levels(evaluation, slides_known=slides)
    ranked = "; ".join(
        f"per {level} {span(evaluation.levels[level].metrics['roc_auc'])}" for level in levels
    )
    columns = " and ".join(dict.fromkeys(group.column for group in evaluation.subgroups))
    redrawn = "whole patients" if evaluation.patients_known else "images (patients unknown)"
    last = image.decisions[-1]
    wrong = [sum(row) - row[k] for k, row in enumerate(last.confusion)]
    errors = ", ".join(f"{n} {name}" for n, name in zip(wrong, evaluation.classes, strict=True))
    decided = sum(map(sum, last.confusion))
    said = {
        "measures": _measures(evaluation),
        "uncertainty": "95% intervals of all figures, and of gains over baselines, from "
        f"{image.metrics['brier'].draws:,} redraws of {redrawn}",
        "performance": f"ROC AUC {ranked}; Brier score per image {span(image.metrics['brier'])}; "
        f"subgroups by {columns or 'nothing that is known'}",
        "accuracy": _accuracy(evaluation, levels),
        "crossed": _crossed(last, evaluation.classes),
        "errors": f"{sum(wrong)} of {count(decided, 'image')} decided wrongly ({errors}); the "
        "surest errors are shown",
        "robustness": _robustness(known),
        "limits": _limits(known),
    }
    if columns:
        said["variability"] = f"by {columns}, which the software sets beforehand"
    if decided == evaluation.n_images:
        said["indeterminate"] = f"none: all {count(decided, 'image')} were decided"
    return said


def _measures(evaluation: Evaluation) -> str:
    image = evaluation.levels["image"]
    named = dict.fromkeys([*image.metrics, *image.decisions[-1].metrics])
    measures = "; ".join(METRICS.get(n, figure_name(n)).partition(" (")[0] for n in named)
    curves = "ROC, precision and recall, reliability, errors by coverage"
    curves += ", net benefit" if evaluation.decision_curve else ""
    return f"{measures}. Curves: {curves}. Baselines: {', '.join(evaluation.baselines)}"


def _accuracy(evaluation: Evaluation, levels: Sequence[Level]) -> str:
    names: Sequence[str] = ("sensitivity", "specificity", "precision", "npv")
    if len(evaluation.classes) > 2:
        names = ("accuracy", "balanced_accuracy")
    told = []
    for level in levels:
        decision = evaluation.levels[level].decisions[-1]
        figures = "; ".join(f"{METRICS[n]} {span(decision.metrics[n])}" for n in names)
        told.append(f"per {level}, {decision.rule}: {figures}")
    return ". ".join(told)


def _crossed(decision: Decisions, classes: Sequence[str]) -> str:
    rows = [
        f"{truth}: " + ", ".join(f"{n} {name}" for n, name in zip(row, classes, strict=True))
        for truth, row in zip(classes, decision.confusion, strict=True)
    ]
    return f"decisions per image ({decision.rule}), of those truly {'; of '.join(rows)}"


def _robustness(known: Known) -> str:
    auc, plain = known.leakage.auc, known.evaluation.plain
    of = "of frozen features " if of_another_model(known.leakage, known.evaluation) else ""
    said = f"ROC AUC per image {of}in folds of images {span(auc['image'])}, in folds of patients "
    alone = f"; plain view alone {span(plain.metrics['roc_auc'])}" if plain else ""
    return f"{said}{span(auc['patient'])}{alone}"


def _limits(known: Known) -> str:
    evaluation = known.evaluation
    said = "patients are unknown, so that every figure may be too good"
    if evaluation.patients_known:
        patients = _judged(known).groupby("label")["patient"].nunique()
        label, fewest = patients.idxmin(), int(patients.min())
        said = f"{count(fewest, 'patient')} of the smallest class, {label}"
    accepted = f"; accepted: {', '.join(known.allow)}" if known.allow else ""
    return f"{said}{accepted}; audit: {_found(known.findings)}; one folder of images"
