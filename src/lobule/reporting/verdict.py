"""What the figures say, in sentences, and what keeps a reader from trusting them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import isnan

from lobule.data.findings import FEW_PATIENTS, OVERRIDABLE, Finding
from lobule.evaluation.evaluate import COLOUR, FROZEN, Evaluation
from lobule.evaluation.intervals import Interval
from lobule.evaluation.leakage import Leakage
from lobule.evaluation.predictions import Level
from lobule.models.card import count, people

COVERED_PATIENTS = 40
"""Patients a class from which on the 95% intervals were seen to cover as they say; the simulation
is in tests/evaluation/test_intervals.py."""

GAINS = {
    COLOUR: (
        "It beats colour statistics alone by {}.",
        "It is worse than colour statistics alone: {}.",
        "That it beats colour statistics alone is not shown at this number of {unit}: {}.",
        "Against colour statistics alone its gain is {}.",
    ),
    FROZEN: (
        "Tuning the network gains {} over the same network frozen.",
        "Tuning made it worse than the same network frozen: {}.",
        "That tuning the network helps is not shown at this number of {unit}: {}.",
        "Against the same network frozen its gain is {}.",
    ),
}
"""What is said of a gain over a baseline: better, worse, neither shown, no interval."""

SEEN_BEFORE = ("patient-in-two-splits", "duplicate-in-two-splits")
"""Accepted findings after which it cannot be said that the test patients were new."""


@dataclass(frozen=True)
class Headline:
    """A figure for the top of the report; `value` is None where `missing` says why."""

    title: str
    of: str
    value: Interval | None
    missing: str | None = None


def basis(evaluation: Evaluation) -> str:
    """Return what every figure of the evaluation is of, to begin a sentence with."""
    who = people(evaluation.n_images, evaluation.n_patients, known=evaluation.patients_known)
    return f"{evaluation.source[:1].upper()}{evaluation.source[1:]}; {who}"


def number(value: float, digits: int = 2, *, signed: bool = False) -> str:
    """Return a number with a true minus sign, and no minus before a zero."""
    text = f"{value:{'+' if signed else ''}.{digits}f}"
    if abs(float(text)) == 1 > abs(value):
        # 0.996 is not 1.00: rounding must not claim perfection
        text = f"{value:{'+' if signed else ''}.{digits + 1}f}"
    if float(text) == 0:
        text = text.replace("-", "+" if signed else "")
    return text.replace("-", "\u2212")


def span(value: Interval, *, signed: bool = False) -> str:
    """Return "0.76 (0.61 to 0.89)", or why there is no such figure."""
    if isnan(value.estimate):
        return f"undefined ({value.reason})"
    shown = number(value.estimate, signed=signed)
    if isnan(value.low):
        return f"{shown} (no interval: {value.reason})"
    return f"{shown} ({number(value.low)} to {number(value.high)})"


def verdict(
    evaluation: Evaluation, leakage: Leakage, *, held_out: bool, allow: Sequence[str]
) -> list[str]:
    """Return the conclusion in a few sentences, each built from figures of the run.

    held_out: whether the evaluation is of other images than the leakage was measured on.
    """
    sentences = [_ranking(evaluation, allow)]
    if evaluation.patients_known:
        patient = evaluation.levels["patient"].metrics["roc_auc"]
        sentences.append(f"Averaged over each patient's photographs it is {span(patient)}.")
    sentences.append(_leakage(leakage, evaluation, held_out=held_out))
    sentences += [
        _gain(evaluation.gain[name]["image"], told, evaluation)
        for name, told in GAINS.items()
        if "image" in evaluation.gain.get(name, {})
    ]
    return sentences


def of_another_model(leakage: Leakage, evaluation: Evaluation) -> bool:
    """Whether the leakage was measured with what is a baseline of the evaluated model."""
    return leakage.model in evaluation.baselines


def _ranking(evaluation: Evaluation, allow: Sequence[str]) -> str:
    auc = evaluation.levels["image"].metrics["roc_auc"]
    images, patients = count(evaluation.n_images, "image"), count(evaluation.n_patients, "patient")
    if not evaluation.patients_known:
        start = (
            f"On {images}, patients unknown, so that it may have seen them ({evaluation.source})"
        )
    elif set(SEEN_BEFORE) & set(allow):
        start = f"On {patients}, some of whom it may have seen ({images}, {evaluation.source})"
    else:
        start = f"On {patients} it had never seen ({images}, {evaluation.source})"
    if isnan(auc.estimate):
        return f"{start}, how well the model ranks photographs is undefined: {auc.reason}."
    share = f"{100 * round(auc.estimate, 2):.0f}% of the time"
    if len(evaluation.classes) == 2:
        negative, positive = evaluation.classes
        told = f"ranks a {positive} photograph above a {negative} one {share} (ROC AUC"
    else:
        told = (
            f"ranks a photograph of one class above those of the rest {share}, averaged over "
            "classes (ROC AUC"
        )
    sure = f"no interval: {auc.reason}"
    if not isnan(auc.low):
        sure = f"95% interval {number(auc.low)} to {number(auc.high)}"
    return f"{start}, the model {told} {number(auc.estimate)}, {sure})."


def _leakage(leakage: Leakage, evaluation: Evaluation, *, held_out: bool) -> str:
    random, apart = leakage.auc["image"], leakage.auc["patient"]
    if not leakage.patients_known:
        return "What a random split would have added cannot be told, since patients are unknown."
    training = count(leakage.n_images, "training image")
    of = f"the {training}" if held_out else "the same images"
    claim = f"A random split of {of} would have claimed {span(random)}"
    other = of_another_model(leakage, evaluation)
    if other:
        claim = f"With the same backbone, frozen, a{claim[1:]}"
    if held_out or other:
        claim += f", where patient folds give {span(apart)}"
    added = span(leakage.inflation, signed=True)
    if isnan(leakage.inflation.low):
        return f"{claim}; the difference is {added}."
    if leakage.inflation.low > 0:
        return f"{claim}, which is {span(leakage.inflation)} too much."
    return f"{claim}; that this differs is not shown at this number of patients: {added}."


def _gain(gain: Interval, told: tuple[str, str, str, str], evaluation: Evaluation) -> str:
    better, worse, neither, no_interval = told
    unit = "patients" if evaluation.patients_known else "images"
    said = neither
    if isnan(gain.low):
        said = no_interval
    elif gain.low > 0:
        said = better
    elif gain.high < 0:
        said = worse
    return said.format(span(gain, signed=True), unit=unit)


def headlines(evaluation: Evaluation) -> list[Headline]:
    """Return four figures: ROC AUC of images and patients, and two of the locked decision."""
    image = evaluation.levels["image"]
    decision = image.decisions[-1]
    rule = {
        "operating point": "at the locked operating point, per image",
        "0.5": "at probability 0.5, per image",
    }.get(decision.rule, "most probable class, per image")
    cards = [
        Headline("Image ROC AUC", _units(evaluation, "image"), image.metrics["roc_auc"]),
        Headline(
            "Patient ROC AUC",
            _units(evaluation, "patient") if evaluation.patients_known else "",
            evaluation.levels["patient"].metrics["roc_auc"] if evaluation.patients_known else None,
            missing=None if evaluation.patients_known else "patients unknown",
        ),
    ]
    names = ("sensitivity", "specificity")
    if len(evaluation.classes) > 2:
        names = ("accuracy", "balanced_accuracy")
    for name in names:
        of = rule
        if len(evaluation.classes) == 2:
            label = evaluation.classes[1 if name == "sensitivity" else 0]
            of = f"{rule}: {count(image.class_units[label], f'{label} image')}"
        title = name.replace("_", " ").capitalize()
        cards.append(Headline(title, of, decision.metrics[name]))
    return cards


def _units(evaluation: Evaluation, level: Level) -> str:
    units = evaluation.levels[level].class_units
    return ", ".join(f"{n:,} {label}" for label, n in units.items()) + f" {level}s"


def limits(
    evaluation: Evaluation,
    patients: dict[str, int],
    allow: Iterable[str],
    findings: Sequence[Finding],
) -> list[str]:
    """Return what blocks trust, each in a sentence.

    patients: evaluated patients by class. allow: blocking findings accepted for this run.
    """
    told = []
    if not evaluation.patients_known:
        told.append(
            "Patients unknown: images of one patient may have been both learned from and tested "
            "on, so every figure may be too good; intervals redraw images and are too narrow."
        )
    elif patients:
        label, fewest = min(patients.items(), key=lambda item: item[1])
        if fewest < COVERED_PATIENTS:
            how = "far too few" if fewest < FEW_PATIENTS else "few"
            told.append(
                f"{how.capitalize()} patients: the smallest class, {label}, has {fewest}. The 95% "
                f"intervals were checked by simulation down to {COVERED_PATIENTS} patients a "
                "class; with fewer they tend to be too narrow."
            )
    told += [
        f"Accepted for this run (--allow {code}): {OVERRIDABLE.get(code, 'an unknown override')}."
        for code in allow
    ]
    for severity, word in (("blocking", "blocking finding"), ("warning", "warning")):
        found = [finding for finding in findings if finding.severity == severity]
        if found:
            codes = ", ".join(dict.fromkeys(finding.code for finding in found))
            told.append(f"The audit of the images has {count(len(found), word)}: {codes}.")
    told.append(
        "All images come from the folder that was given: how the model does on another "
        "laboratory's stain, microscope or camera is not measured here."
    )
    return told
