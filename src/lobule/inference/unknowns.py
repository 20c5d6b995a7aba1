"""What a site's images cannot tell of a model, in sentences, the weightiest first."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from lobule.errors import show

if TYPE_CHECKING:
    from lobule.inference.external import External


def unknowns(found: External) -> Iterator[str]:
    """Yield a sentence for each thing that the images of another site cannot tell."""
    unlabelled = found.n_images - found.n_labelled
    if not found.n_labelled:
        yield (
            "How well the model tells the classes apart here, whether its probabilities mean what "
            "they say, and what labelled cases would buy: no image has a label."
        )
    elif unlabelled:
        yield (
            f"How the model does on the {unlabelled:,} image(s) without a label: all figures but "
            f"those of the scores are of the {found.n_labelled:,} others, who may be easier or "
            "harder."
        )
    if found.evaluation is not None:
        units = found.evaluation.levels["image"].class_units
        absent = [show(name) for name, n in units.items() if n == 0]
        if absent:
            yield (
                f"How images of class {' and '.join(absent)} are judged, and so how well the "
                "classes are told apart: none has that label."
            )
    if not found.patients_known:
        yield (
            "Who the patients are. Intervals redraw images, as if each were of a patient of its "
            "own, and are too narrow; there are no figures by patient; and images of one patient "
            "may lie both among the cases that an update was made on and among those it was tried "
            "on, which makes updates look better than they are."
        )
    yield from _of_the_photographs(found)
    if found.drift is None:
        yield "Whether scores have moved: this model keeps no scores to compare with."
    else:
        yield (
            "Why scores moved, or did not: another mix of cases moves them as another stain, "
            "scanner or scale does, and two causes may cancel."
        )
    if found.gains:
        yield (
            "What labelled cases of another month or another site would buy: those chosen and "
            "those they were tried on come from this one folder, in the shares of its classes."
        )
    elif found.n_labelled:
        yield (
            "What labelled cases would buy: it takes 10 of them or more, and two of every class."
        )
    if found.n_labelled:
        yield "Whether the labels are right: they are taken as the folders or the table give them."


def _of_the_photographs(found: External) -> Iterator[str]:
    scale, known = f"{found.photographs.long_side_px} px", found.photographs.magnifications
    if known:
        told = ", ".join(f"{m:g}X" for m in known)
        yield (
            f"Whether the model was trained at the magnification of these photographs ({told}): "
            "its record does not say."
        )
    else:
        yield (
            "At what magnification the photographs were taken: each is scaled until its longer "
            f"side has {scale}, so that cells may come out larger or smaller than those that the "
            "model was trained on."
        )
    if found.failed:
        yield f"What the {len(found.failed):,} image(s) show that could not be read."
    if found.seen is None:
        yield (
            "Whether the model was trained on some of these images: their list does not lie "
            "beside it."
        )
    yield "Whether it was trained on other photographs of these patients."
