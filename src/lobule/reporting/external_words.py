"""What a trial on another site's images says, in sentences built from its figures."""

from __future__ import annotations

from collections.abc import Iterator
from math import isnan

from lobule.evaluation.evaluate import Decisions, Evaluation
from lobule.evaluation.local import LocalGain
from lobule.inference.external import External
from lobule.models.card import count, people
from lobule.reporting.tables import decision_of
from lobule.reporting.verdict import number, span

SURE = 0.95
"""Share of the choices in which an update must help before it is said to."""


def cases(found: External) -> str:
    """Return what local cases are: "patients", or "images" where patients are unknown."""
    return "patients" if found.labelled.patients_known else "images"


def verdict(found: External) -> Iterator[str]:
    """Yield the conclusion: ranking, decisions, probabilities, scores, and what cases buy."""
    evaluation = found.evaluation
    if found.seen:
        yield (
            f"{found.seen:,} of these images the model was trained on, so all figures are too good."
        )
    if evaluation is None:
        yield (
            f"{count(found.n_images, 'image')} without a label: how well the model does here "
            "cannot be known. Only its scores can be looked at."
        )
    else:
        yield from _ranking(found, evaluation)
        yield from _decision(found, evaluation)
        yield from _probabilities(evaluation)
    yield from _scores(found)
    yield from _updates(found)


def _ranking(found: External, evaluation: Evaluation) -> Iterator[str]:
    auc = evaluation.levels["image"].metrics["roc_auc"]
    who = people(evaluation.n_images, evaluation.n_patients, known=evaluation.patients_known)
    recorded = "" if found.recorded is None else f" The model's own record says {found.recorded}."
    if isnan(auc.estimate):
        yield f"On {who}, how well the model ranks photographs is undefined: {auc.reason}."
        return
    yield f"On {who}, the image ROC AUC is {span(auc)}.{recorded}"
    if evaluation.patients_known:
        patient = evaluation.levels["patient"].metrics["roc_auc"]
        yield f"Averaged over each patient's photographs it is {span(patient)}."
    if auc.low <= 0.5:
        yield "That it ranks them better than chance is not shown."


def _decision(found: External, evaluation: Evaluation) -> Iterator[str]:
    decision = decision_of(evaluation.levels["image"], "operating point")
    if decision is None or found.target is None:
        return
    negative, positive = found.classes
    at = decision.metrics
    name, value = found.target
    yield (
        f"At the threshold it was saved with, {span(at['sensitivity'])} of the {positive} images "
        f"are called {positive} (sensitivity), and {span(at['specificity'])} of the {negative} "
        f"ones {negative} (specificity). {_held(decision, name, value)}"
    )


def _held(decision: Decisions, name: str, value: float) -> str:
    reached = decision.metrics[name]
    chosen = f"The threshold was chosen for a {name} of {value:g} or more"
    if isnan(reached.low):
        return f"{chosen}."
    if reached.high < value:
        return f"{chosen}: that is missed here."
    if reached.low == reached.high == 1:
        # redrawing those who are all right can put nothing in doubt
        return f"{chosen}: none was wrong here, which does not say that none would be."
    if reached.low >= value:
        return f"{chosen}: that holds here."
    return f"{chosen}: whether that holds here cannot be told from this many."


def _probabilities(evaluation: Evaluation) -> Iterator[str]:
    metrics = evaluation.levels["image"].metrics
    if "calibration_slope" not in metrics:
        return
    positive = evaluation.classes[-1]
    slope, offset = metrics["calibration_slope"], metrics["calibration_in_the_large"]
    if slope.high < 1:
        yield f"Probabilities are too near 0 and 1: calibration slope {span(slope)}, not 1."
    elif slope.low > 1:
        yield f"Probabilities are too near each other: calibration slope {span(slope)}, not 1."
    if offset.leaves_out_0:
        more = "more" if offset.low > 0 else "less"
        yield (
            f"{positive.capitalize()} is {more} frequent than they say: calibration in the large "
            f"{span(offset, signed=True)} in logits, not 0."
        )
    if slope.low <= 1 <= slope.high and offset.low <= 0 <= offset.high:
        yield "That probabilities do not mean what they say is not shown."


def _scores(found: External) -> Iterator[str]:
    drift = found.drift
    if drift is not None:
        means = f"mean {number(drift.mean_there)} out of fold, {number(drift.mean_here.estimate)}"
        shift = f"a shift of {span(drift.shift, signed=True)}"
        begin = "Scores lie elsewhere than where the model was trained"
        if not drift.shift.leaves_out_0:
            begin = f"That s{begin[1:]} is not shown by their mean"
        yield (
            f"{begin}: {means} here, {shift}; largest difference of the "
            f"cumulative shares {number(drift.distance)} (0 would be the same, 1 all apart)."
        )
        if drift.over_here is not None and drift.over_there is not None:
            yield (
                f"From the threshold on lie {drift.over_there:.0%} of the images there, and "
                f"{drift.over_here.estimate:.0%} here."
            )
    if found.refused is not None:
        yield f"The model's own gate turns away {span(found.refused)} of the images."


def _updates(found: External) -> Iterator[str]:
    case = cases(found)
    # of the most cases, which come last
    of: dict[tuple[str, str], LocalGain] = {(g.update, g.figure): g for g in found.gains}
    if ("threshold", "balanced_accuracy") in of and found.target is not None:
        gain = of["threshold", "balanced_accuracy"]
        parts = ", ".join(
            f"{g.told} from {number(g.before)} to {number(g.after)}"
            for g in (of["threshold", "sensitivity"], of["threshold", "specificity"])
        )
        yield (
            f"A threshold chosen anew on {gain.k} labelled {case} moves {parts} on the others. "
            f"{_worth(found, gain)}"
        )
    for update, says in (("temperature", "One temperature"), ("line", "Slope and intercept")):
        if (update, "brier") in of:
            yield f"{says} fitted on labelled {case}: {_worth(found, of[update, 'brier'])}"
    if ("shares", "brier") in of:
        gain = of["shares", "brier"]
        yield (
            f"Not asking the model, but taking the shares of the classes on {gain.k} labelled "
            f"{case} as probabilities, gives a Brier score of {number(gain.after)}."
        )


def _worth(found: External, last: LocalGain) -> str:
    """Say what the most cases bring, and from how many on an update helps nearly always."""
    rows = [g for g in found.gains if (g.update, g.figure) == (last.update, last.figure)]
    told = (
        f"{last.told[:1].upper()}{last.told[1:]} from {number(last.before)} to "
        f"{number(last.after)} with {last.k} {cases(found)}, a difference of "
        f"{span(last.difference, signed=True)}, better in {last.better:.0%} of the choices"
    )
    sure = [g.k for i, g in enumerate(rows) if all(later.better >= SURE for later in rows[i:])]
    if not sure:
        return f"{told}; at no number tried was it better in {SURE:.0%} of them."
    first = sure[0]
    if first == rows[0].k:
        return f"{told}; in {SURE:.0%} or more at any number tried."
    return f"{told}; in {SURE:.0%} or more from {first} on."
