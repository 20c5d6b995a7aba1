"""What local cases buy is what a plain loop over the same choices finds, none on both sides."""

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit, logit
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import brier_score_loss, log_loss, recall_score

from lobule.evaluation.calibration import expected_calibration_error
from lobule.evaluation.local import (
    DECIDED,
    MEANT,
    case_numbers,
    choose_cases,
    gain_from_json,
    local_gains,
)
from lobule.evaluation.predictions import Predictions, at_level
from lobule.evaluation.recalibration import fit_recalibration
from lobule.evaluation.thresholds import choose_threshold

TARGET = ("sensitivity", 0.9)


def made(n_cases=24, images=4, *, patients=True, apart=0.8, shift=1.0, sharp=2.0, seed=0):
    """A model whose logits are `sharp` times too large and `shift` too high, with a threshold."""
    rng = np.random.default_rng(seed)
    positive = np.arange(n_cases) % 3 > 0
    logits = np.repeat(np.where(positive, apart, -apart) + rng.normal(0, 1, n_cases), images)
    logits += rng.normal(0, 0.7, len(logits))
    p = expit(sharp * logits + shift)
    case = np.repeat([f"P{i:02d}" for i in range(n_cases)], images)
    table = pd.DataFrame({
        "path": [f"{i:04d}.png" for i in range(len(p))],
        "label": np.where(np.repeat(positive, images), "malignant", "benign"),
        "patient": pd.array(case if patients else [pd.NA] * len(p), dtype="string"),
        "slide": pd.array([pd.NA] * len(p), dtype="string"),
        "prob_benign": 1 - p,
        "prob_malignant": p,
        "threshold": 0.5,
    })  # fmt: skip
    return Predictions(table, ("benign", "malignant"))


def by_hand(predictions, k, choices, seed):
    """Return (choices, 3) of each update, before and after, in one plain loop."""
    y, p = predictions.y, predictions.probabilities()[:, 1]
    groups = predictions.groups.tolist()
    names = sorted(set(groups))
    case_class = np.array([max(y[[g == name for g in groups]]) for name in names])
    rows = {"locked": [], "threshold": [], "said": [], "temperature": [], "line": []}
    for i in range(choices):
        chosen = choose_cases(case_class, k, np.random.default_rng([seed, k, i]))
        labelled = np.isin(groups, np.array(names)[chosen])
        assert not set(np.array(groups)[labelled]) & set(np.array(groups)[~labelled])
        there, here = (y[labelled], p[labelled]), (y[~labelled], p[~labelled])
        new = choose_threshold(*there, sensitivity=TARGET[1])
        for name, threshold in (("locked", 0.5), ("threshold", new)):
            decision = here[1] >= threshold
            sensitivity = recall_score(here[0], decision)
            specificity = recall_score(here[0], decision, pos_label=0)
            rows[name].append([sensitivity, specificity, (sensitivity + specificity) / 2])
        prob = np.stack([1 - there[1], there[1]], axis=1)
        warm = fit_recalibration("temperature", there[0], prob).temperature
        straight = LogisticRegression(C=1e9, tol=1e-10).fit(logit(there[1])[:, None], there[0])
        maps = {
            "said": here[1],
            "temperature": expit(logit(here[1]) / warm),
            "line": straight.predict_proba(logit(here[1])[:, None])[:, 1],
        }
        for name, q in maps.items():
            both = np.stack([1 - q, q], axis=1)
            rows[name].append([
                log_loss(here[0], q),
                brier_score_loss(here[0], q),
                expected_calibration_error(here[0], both).item(),
            ])  # fmt: skip
    return {name: np.array(values) for name, values in rows.items()}


def test_gains_are_those_of_a_plain_loop():
    # so near to each other that no choice of cases is parted by a cut
    predictions = made(apart=0.1)
    found = local_gains(predictions, target=TARGET, choices=12, seed=3)
    assert [g.k for g in found[::12]] == [5, 10]
    expected = by_hand(predictions, 10, 12, seed=3)
    for update, before, figures, better in (
        ("threshold", "locked", DECIDED, 1),
        ("temperature", "said", MEANT, -1),
        ("line", "said", MEANT, -1),
    ):
        gains = [g for g in found if (g.k, g.update) == (10, update)]
        assert [g.figure for g in gains] == list(figures)
        differences = expected[update] - expected[before]
        for j, gain in enumerate(gains):
            low, high = np.quantile(differences[:, j], [0.025, 0.975])
            close = {"abs": 2e-5}
            assert gain.before == pytest.approx(expected[before][:, j].mean(), **close)
            assert gain.after == pytest.approx(expected[update][:, j].mean(), **close)
            assert gain.difference.estimate == pytest.approx(differences[:, j].mean(), **close)
            assert gain.difference.low == pytest.approx(low, **close)
            assert gain.difference.high == pytest.approx(high, **close)
            assert gain.difference.draws == 12
            assert gain.better == (better * differences[:, j] > 0).mean()


def test_where_patients_are_unknown_a_case_is_an_image():
    predictions = made(patients=False)
    found = local_gains(predictions, target=TARGET, choices=3)
    assert sorted({g.k for g in found}) == [5, 10, 20, 40]
    expected = by_hand(predictions, 40, 3, seed=0)
    gain = next(g for g in found if (g.k, g.update, g.figure) == (40, "threshold", "sensitivity"))
    assert gain.after == pytest.approx(expected["threshold"][:, 0].mean())


def test_the_order_of_the_rows_changes_nothing():
    predictions = made()
    turned = Predictions(predictions.table[::-1].reset_index(drop=True), predictions.classes)
    first, second = (local_gains(p, target=TARGET, choices=5) for p in (predictions, turned))
    for a, b in zip(first, second, strict=True):
        assert (a.k, a.update, a.figure, a.better) == (b.k, b.update, b.figure, b.better)
        assert a.after == pytest.approx(b.after, abs=1e-7)


def test_another_seed_chooses_other_cases():
    first, second = (local_gains(made(), target=TARGET, choices=5, seed=s) for s in (0, 1))
    assert first != second


def test_many_cases_mend_what_is_shifted_and_too_sharp():
    found = local_gains(made(400, 1, patients=False, shift=2), target=TARGET, choices=20)
    gains = {(g.k, g.update, g.figure): g for g in found}
    line, warm = (gains[160, update, "log_loss"] for update in ("line", "temperature"))
    # a temperature cannot move what is shifted; a line can
    assert line.after < warm.after < line.before
    assert line.better == 1
    assert line.difference.high < 0
    reached = gains[160, "threshold", "sensitivity"]
    assert reached.before > 0.92
    assert reached.after == pytest.approx(0.9, abs=0.03)
    assert gains[160, "threshold", "specificity"].better > 0.9
    # and more cases leave less to chance
    widths = [gains[k, "line", "log_loss"].difference.half_width for k in (5, 20, 80)]
    assert widths == sorted(widths, reverse=True)


def test_cases_that_a_cut_parts_give_an_intercept_and_no_infinite_slope():
    found = local_gains(made(40, 1, patients=False, sharp=30, shift=0), target=TARGET, choices=30)
    assert all(np.isfinite([g.before, g.after, *vars(g.difference).values()][:4]).all()
               for g in found)  # fmt: skip


def test_without_a_target_or_with_three_classes_there_is_no_new_threshold():
    assert {g.update for g in local_gains(made(), target=None, choices=2)} == {
        "temperature", "line", "shares",
    }  # fmt: skip
    rng = np.random.default_rng(0)
    classes = ("a", "b", "c")
    prob = rng.dirichlet([1, 1, 1], 60)
    table = pd.DataFrame({
        "path": [f"{i:02d}" for i in range(60)],
        "label": np.array(classes)[np.arange(60) % 3],
        "patient": pd.array([f"P{i % 3}-{i // 6}" for i in range(60)], dtype="string"),
        **{f"prob_{name}": prob[:, i] for i, name in enumerate(classes)},
    })  # fmt: skip
    found = local_gains(Predictions(table, classes), target=TARGET, choices=2)
    assert {g.update for g in found} == {"temperature", "shares"}


def test_a_table_of_patients_gives_the_gains_at_their_level():
    patients = at_level(made(), "patient")
    found = local_gains(patients, target=TARGET, choices=2)
    assert {g.k for g in found} == {5, 10}


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ([5, 5], (5,)),
        ([4, 5], ()),
        ([1, 50], ()),
        ([0, 50], ()),
        ([211, 211], (5, 10, 20, 40, 80, 160)),
        ([7, 16], (5, 10)),
        ([2] * 6, ()),
        ([4] * 6, (10,)),
    ],
)
def test_numbers_double_up_to_half_of_the_cases(counts, expected):
    assert case_numbers(counts) == expected


@pytest.mark.parametrize(("counts", "k"), [([2, 60], 20), ([7, 16], 10), ([30, 3, 3], 5)])
def test_every_class_is_on_both_sides_and_near_its_share(counts, k):
    case_class = np.repeat(np.arange(len(counts)), counts)
    for seed in range(20):
        chosen = choose_cases(case_class, k, np.random.default_rng(seed))
        assert chosen.sum() == k
        inside = np.bincount(case_class[chosen], minlength=len(counts))
        assert (inside >= 1).all()
        assert (inside < counts).all()
        share = k * np.array(counts) / sum(counts)
        assert (np.abs(inside - share) < len(counts)).all()


def test_too_few_cases_buy_nothing_that_could_be_measured():
    assert local_gains(made(9), target=TARGET) == ()


def test_progress_is_told_by_the_number_of_cases():
    seen = []

    def watch(items, *, total, task):
        seen.append((total, task))
        return iter(items)

    local_gains(made(), target=TARGET, choices=1, progress=watch)
    assert seen == [(2, "local cases")]


def test_a_gain_comes_back_from_plain_types():
    gain = local_gains(made(), target=TARGET, choices=2)[0]
    plain = {**vars(gain), "difference": gain.difference.to_json()}
    assert gain_from_json(plain) == gain
