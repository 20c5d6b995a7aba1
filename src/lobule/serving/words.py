"""What the page says of an answer, in sentences."""

from __future__ import annotations

from lobule.explain.faithfulness import Faithfulness
from lobule.explain.maps import Map
from lobule.explain.neighbours import Similar
from lobule.models.bundle import ModelInfo
from lobule.serving.answers import Answer


def headline(answer: Answer) -> str:
    """Return what is found, in a word or two."""
    if answer.verdict == "unlike":
        return "not like breast histology as this model knows it"
    if answer.verdict == "uncertain":
        return f"uncertain, leaning to {answer.decision}"
    return str(answer.decision)


def explained(answer: Answer) -> list[str]:
    """Return sentences on how the decision came about."""
    if answer.verdict == "unlike":
        return [
            "The photograph is less like the training images than nearly all photographs of new "
            "patients are, so nothing is decided. What the model computes for it means little."
        ]
    said = []
    positive = list(answer.probabilities)[-1]
    value = answer.probabilities[positive]
    if answer.threshold is not None:
        point = answer.threshold
        side = "at or above" if value >= point.value else "below"
        said.append(
            f"The probability of {positive} is {value:.3f}, {side} the threshold of "
            f"{point.value:.3f}. The threshold was chosen for a {point.target} of "
            f"{point.wanted:.2f}, on {point.source}, before this photograph was seen."
        )
    else:
        said.append("The decision is the class of highest probability.")
    if answer.set is not None and answer.coverage is not None:
        members = " or ".join(answer.set) if answer.set else "no class"
        said.append(
            f"Classes that cannot be ruled out: {members}. Such sets are made to hold the true "
            f"class for {answer.coverage:.0%} of photographs of new patients."
        )
    return said


def believable(judged: Faithfulness) -> str:
    """Return what is known of a heat map's worth, one sentence or two."""
    score = (
        f"Showing the places it names first brings the class back with a score of "
        f"{judged.insertion:.2f} (random places {judged.insertion_random:.2f}, the middle "
        f"{judged.insertion_centre:.2f}; higher is better)."
    )
    verdict = (
        "On this photograph the map does better than both."
        if judged.beats_both
        else "On this photograph the map does not do better than both: do not lean on it."
    )
    # nan is not above it
    if abs(judged.randomised) > 0.5:
        verdict += (
            " A network that has learned nothing gives much the same map "
            f"(rank correlation {judged.randomised:.2f})."
        )
    return f"{score} {verdict}"


def of_map(found: Map, of_class: str) -> str:
    """Return what the colours mean."""
    if found.method == "cam":
        return (
            f"Evidence for {of_class} in log-odds: the mean over the photograph, and "
            f"{found.bias:+.2f}, are the score. Negative numbers speak for another class."
        )
    return f"Where the features that {of_class} depends on are strong (Grad-CAM, no unit)."


def of_cases(found: Similar | None) -> str:
    """Return what the similar cases are, or why there are none."""
    if found is None:
        return "This model came without its training cases, so none can be shown."
    if found.none_close:
        return (
            "None close: even the nearest known photograph is farther than known photographs are "
            "from those of other patients."
        )
    return (
        "The nearest photographs that the model learned from, one a patient, never of this "
        "patient. Alike to the network need not mean alike to a pathologist."
    )


def of_model(info: ModelInfo) -> str:
    """Return one honest sentence on how good the model is."""
    rows = [r for r in info.performance.get("rows", []) if r["name"] == "roc_auc"]
    told = ", ".join(f"{row['text']} by {row['level']}" for row in rows)
    if not told:
        return "How good it is was not written into the model."
    return f"ROC AUC {told} (95% intervals), on {info.performance['source']}."
