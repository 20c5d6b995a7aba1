"""The laws of splitting: no patient on both sides, every part its share, and the gate."""

from __future__ import annotations

from collections import Counter, defaultdict
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lobule.data.manifest import Manifest, complete
from lobule.data.splits import assign_folds, assign_parts, check_disjoint, merge_linked_groups
from lobule.errors import DataError, LeakageError, UsageError

seeds = st.integers(0, 2**32 - 1)
CLASSES = ("benign", "malignant", "normal")


@st.composite
def images(draw, mixed=True):
    """Labels and groups of images in any order: 2 or 3 classes, group sizes 1 to 12.

    Some groups hold several classes (mixed), and some images are of unknown patient, each then a
    group of its own. Every class has at least two groups of its own.
    """
    classes = CLASSES[: draw(st.integers(2, 3))]
    rows = []
    for label in classes:
        sizes = draw(st.lists(st.integers(1, 12), min_size=2, max_size=9))
        for i, size in enumerate(sizes):
            rows += [(label, f"{label}-{i}")] * size
        unknown = draw(st.integers(0, 4))
        rows += [(label, f"image:{label}/{i}.png") for i in range(unknown)]
    if mixed:
        for i in range(draw(st.integers(0, 3))):
            counts = draw(st.lists(st.integers(0, 4), min_size=len(classes), max_size=len(classes)))
            for label, count in zip(classes, counts, strict=True):
                rows += [(label, f"mixed-{i}")] * count
    rows = draw(st.permutations(rows))
    return [label for label, _ in rows], [group for _, group in rows]


def group_parts(groups, parts):
    """Return {group: set of parts}."""
    found = defaultdict(set)
    for group, part in zip(groups, parts, strict=True):
        found[group].add(part)
    return found


def strata(labels, groups):
    """Return {classes of a group: [groups]} and {group: number of images}."""
    classes = defaultdict(set)
    for label, group in zip(labels, groups, strict=True):
        classes[group].add(label)
    members = defaultdict(list)
    for group, its in classes.items():
        members[tuple(sorted(its))].append(group)
    return members, Counter(groups)


# ---- laws


@settings(deadline=None)
@given(images(), st.integers(2, 7), seeds)
def test_no_patient_lies_in_two_folds_and_every_image_in_one(rows, folds, seed):
    labels, groups = rows
    fold = assign_folds(labels, groups, folds=folds, seed=seed)
    assert fold.shape == (len(labels),)
    assert fold.dtype == np.int64
    assert set(fold.tolist()) <= set(range(folds))
    assert all(len(parts) == 1 for parts in group_parts(groups, fold).values())


@settings(deadline=None)
@given(images(), st.integers(2, 7), seeds)
def test_of_every_stratum_two_folds_hold_group_numbers_that_differ_by_one_at_most(
    rows, folds, seed
):
    labels, groups = rows
    fold = assign_folds(labels, groups, folds=folds, seed=seed)
    of = dict(zip(groups, fold.tolist(), strict=True))
    for members in strata(labels, groups)[0].values():
        counts = [sum(of[group] == f for group in members) for f in range(folds)]
        assert max(counts) - min(counts) <= 1


@settings(deadline=None)
@given(images(), st.integers(2, 7), seeds)
def test_of_every_stratum_two_folds_hold_image_numbers_that_differ_by_two_large_groups_at_most(
    rows, folds, seed
):
    """The bound: twice the largest group of the stratum.

    Take two folds of a stratum, B closed first (its number of groups reached) with an item of
    size s, then A filled up with k groups, none above s. Groups come in falling size, each to
    the lighter open fold, so before closing the loads differed by no more than the largest group
    L. B cannot end above A by more than L. A has n groups, of sizes a_1 >= ... >= a_n >= s; while
    A took one of a_i, B took no more than a_i / a_(i+1) of the smaller ones to catch up, so that
    B leads by at most 1 + sum(a_i / a_(i+1) - 1) <= prod(a_i / a_(i+1)) = a_1 / s groups, and
    filling A up adds at most a_1 <= L to the L by which it may have been ahead.
    """
    labels, groups = rows
    fold = assign_folds(labels, groups, folds=folds, seed=seed)
    of = dict(zip(groups, fold.tolist(), strict=True))
    by_stratum, size = strata(labels, groups)
    for members in by_stratum.values():
        loads = [sum(size[g] for g in members if of[g] == f) for f in range(folds)]
        assert max(loads) - min(loads) <= 2 * max(size[g] for g in members)


@settings(deadline=None)
@given(st.integers(1, 12), st.integers(2, 7), st.integers(2, 9), seeds)
def test_groups_of_one_size_give_folds_of_nearly_one_size(size, folds, n, seed):
    labels = ["benign"] * size * n + ["malignant"] * size * n
    groups = [f"{label}{i // size}" for i, label in enumerate(labels)]
    fold = assign_folds(labels, groups, folds=folds, seed=seed)
    for label in ("benign", "malignant"):
        counts = [
            sum(f == k and own == label for f, own in zip(fold, labels, strict=True))
            for k in range(folds)
        ]
        assert max(counts) - min(counts) in (0, size)


@settings(deadline=None)
@given(images(), st.integers(2, 5), seeds, st.randoms(use_true_random=False))
def test_the_order_of_the_images_does_not_matter(rows, folds, seed, random):
    labels, groups = rows
    first = assign_folds(labels, groups, folds=folds, seed=seed)
    order = list(range(len(labels)))
    random.shuffle(order)
    again = assign_folds(
        [labels[i] for i in order], [groups[i] for i in order], folds=folds, seed=seed
    )
    assert again.tolist() == first[order].tolist()


def test_the_seed_decides():
    labels = ["benign"] * 20 + ["malignant"] * 20
    groups = [f"p{i // 2}" for i in range(40)]
    results = {tuple(assign_folds(labels, groups, folds=5, seed=seed)) for seed in range(10)}
    assert len(results) == 10
    assert tuple(assign_folds(labels, groups, folds=5)) in results
    assert np.array_equal(
        assign_folds(labels, groups, folds=5, seed=3), assign_folds(labels, groups, folds=5, seed=3)
    )


def test_images_are_levelled_within_the_numbers_of_groups():
    labels = ["benign"] * 30 + ["malignant"] * 4
    sizes = [10, 9, 4, 3, 2, 2]
    groups = [f"b{i}" for i, size in enumerate(sizes) for _ in range(size)]
    groups += ["m0", "m1", "m2", "m3"]
    fold = assign_folds(labels, groups, folds=2)
    assert sorted(Counter(fold[:30].tolist()).values()) == [15, 15]


@settings(deadline=None)
@given(
    images(), seeds, st.sampled_from([(0.6, 0.2, 0.2), (0.7, 0.3), (0.9, 0.05, 0.05), (0.5, 0.5)])
)
def test_parts_keep_patients_together_and_get_their_share_of_each_stratum(rows, seed, values):
    labels, groups = rows
    names = ("train", "validation", "test")[: len(values)]
    shares = dict(zip(names, values, strict=True))
    part = assign_parts(labels, groups, shares=shares, seed=seed)
    assert all(len(parts) == 1 for parts in group_parts(groups, part).values())
    of = dict(zip(groups, part.tolist(), strict=True))
    assert set(of.values()) <= set(names)
    for members in strata(labels, groups)[0].values():
        n = len(members)
        counts = {name: sum(of[group] == name for group in members) for name in names}
        if n >= len(names):
            assert min(counts.values()) >= 1
        if min(values) * n >= 1:
            assert all(abs(counts[name] - shares[name] * n) < 1 for name in names)


def test_parts_of_many_patients_have_the_shares_asked_for():
    labels = ["benign"] * 100 + ["malignant"] * 200
    groups = [f"p{i}" for i in range(300)]
    part = assign_parts(labels, groups, shares={"train": 0.6, "validation": 0.25, "test": 0.15})
    assert Counter(zip(labels, part.tolist(), strict=True)) == {
        ("benign", "train"): 60,
        ("benign", "validation"): 25,
        ("benign", "test"): 15,
        ("malignant", "train"): 120,
        ("malignant", "validation"): 50,
        ("malignant", "test"): 30,
    }


@settings(deadline=None)
@given(images(), st.integers(2, 4), seeds)
def test_a_split_that_was_made_passes_the_gate(rows, folds, seed):
    labels, groups = rows
    fold = assign_folds(labels, groups, folds=folds, seed=seed)
    check_disjoint(pd.DataFrame({"patient": groups, "split": fold.astype(str)}))


def test_images_of_unknown_patient_are_dealt_one_by_one():
    rows = {"path": [f"{i}.png" for i in range(8)], "label": ["benign", "malignant"] * 4}
    table = complete(pd.DataFrame({**rows, "patient": ["p"] * 2 + [None] * 6}))
    groups = Manifest(Path(), table).groups.tolist()
    fold = assign_folds(table["label"].tolist(), groups, folds=2, seed=1)
    assert fold[0] == fold[1]
    for label in ("benign", "malignant"):
        alone = fold[((table["label"] == label) & table["patient"].isna()).to_numpy(dtype=bool)]
        assert sorted(Counter(alone.tolist()).values()) == [1, 2]


# ---- what is refused


@pytest.mark.parametrize("folds", [1, 0, -3])
def test_fewer_than_two_folds_are_refused(folds):
    with pytest.raises(UsageError) as caught:
        assign_folds(["a", "b"], ["1", "2"], folds=folds)
    assert str(caught.value) == f"folds must be 2 or more, got {folds}"


def test_images_of_one_class_are_refused():
    with pytest.raises(DataError) as caught:
        assign_folds(["benign"] * 3, ["1", "2", "3"], folds=2)
    assert str(caught.value) == (
        "cannot split: the images are all of one class (benign)\n"
        "  a classifier needs two classes; put each in a folder of its own"
    )


def test_no_images_are_refused():
    with pytest.raises(DataError, match=r"all of one class \(none\)"):
        assign_folds([], [], folds=2)


def test_a_class_of_one_patient_is_refused_by_name():
    labels, groups = ["benign", "benign", "malignant", "malignant"], ["1", "2", "7\n", "7\n"]
    for split in (
        lambda: assign_folds(labels, groups, folds=2),
        lambda: assign_parts(labels, groups, shares={"train": 0.5, "test": 0.5}),
    ):
        with pytest.raises(DataError) as caught:
            split()
        assert str(caught.value) == (
            "cannot split: class 'malignant' has one patient (7\\n)\n"
            "  one patient cannot be both learned from and tested on; "
            "add images of another patient of that class"
        )


@pytest.mark.parametrize(
    ("shares", "told"),
    [
        ({"train": 0.5, "test": 0.4}, "train 0.5, test 0.4"),
        ({"train": 1.2, "test": -0.2}, "train 1.2, test -0.2"),
        ({"train": 1, "test": 0}, "train 1, test 0"),
    ],
)
def test_shares_that_do_not_share_out_the_whole_are_refused(shares, told):
    with pytest.raises(UsageError) as caught:
        assign_parts(["a", "b"], ["1", "2"], shares=shares)
    assert str(caught.value) == f"shares must be positive and sum to 1, got {told}"


def test_labels_and_groups_of_unequal_number_are_refused():
    with pytest.raises(ValueError, match="3 labels for 2 groups"):
        assign_folds(["a", "b", "a"], ["1", "2"], folds=2)


# ---- the gate


def test_a_patient_on_both_sides_is_refused_by_name_and_number():
    table = pd.DataFrame({
        "patient": ["7", "7", "7", "8", "8", "9"],
        "split": ["train", "train", "test", "train", "test", "test"],
    })  # fmt: skip
    with pytest.raises(LeakageError) as caught:
        check_disjoint(table)
    assert str(caught.value) == (
        "2 patient(s) lie on both sides of the split (5 images): "
        "7: 1 in test, 2 in train; 8: 1 in test, 1 in train\n"
        "  split again by patient with `lobule split DIR --resplit -o manifest.csv`, or accept the "
        "leak by name with --allow patient-in-two-splits"
    )


def test_many_patients_on_both_sides_are_counted():
    table = pd.DataFrame({
        "patient": [f"p{i}" for i in range(8)] * 2,
        "fold": [0] * 8 + [1] * 8,
    })  # fmt: skip
    with pytest.raises(LeakageError) as caught:
        check_disjoint(table, column="fold")
    assert caught.value.what.startswith("8 patient(s) lie on both sides of the split (16 images)")
    assert caught.value.what.endswith("p4: 1 in 0, 1 in 1; and 3 more")


def test_images_without_a_part_or_a_patient_pass_the_gate():
    check_disjoint(
        complete(pd.DataFrame({
            "path": list("abcd"),
            "patient": ["1", "1", None, None],
            "split": ["train", None, "train", "test"],
        }))
    )  # fmt: skip


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 2)), max_size=20))
def test_the_gate_opens_exactly_when_no_patient_is_shared(rows):
    table = pd.DataFrame(
        {"patient": [str(p) for p, _ in rows], "split": [str(s) for _, s in rows]}, dtype="string"
    )
    shared = {p for p, s in rows for q, t in rows if p == q and s != t}
    if not shared:
        check_disjoint(table)
        return
    with pytest.raises(LeakageError) as caught:
        check_disjoint(table)
    assert caught.value.what.startswith(f"{len(shared)} patient(s) ")


# ---- groups that copies join


def joined_by_force(groups, links):
    """Merge names pair by pair until nothing changes."""
    name = {group: group for group in groups}
    changed = True
    while changed:
        changed = False
        for i, j in links:
            a, b = name[groups[i]], name[groups[j]]
            if a != b:
                lower, upper = sorted((a, b))
                name = {
                    group: lower if leader == upper else leader for group, leader in name.items()
                }
                changed = True
    return [name[group] for group in groups]


@settings(deadline=None)
@given(
    st.lists(st.sampled_from("abcdefghij"), min_size=1, max_size=15).flatmap(
        lambda groups: st.tuples(
            st.just(groups),
            st.lists(st.tuples(*[st.integers(0, len(groups) - 1)] * 2), max_size=10),
        )
    )
)
def test_linked_groups_are_joined_through_any_chain(case):
    groups, links = case
    merged = merge_linked_groups(groups, links).tolist()
    assert merged == joined_by_force(groups, links)
    for (i, a), (j, b) in combinations(enumerate(groups), 2):
        if a == b:
            assert merged[i] == merged[j]


def test_without_links_groups_stay_as_they_are():
    assert merge_linked_groups(["b", "a", "b"], []).tolist() == ["b", "a", "b"]


def test_a_joined_group_takes_the_first_of_its_names():
    merged = merge_linked_groups(["z", "m", "b", "q"], [(0, 1), (1, 3)])
    assert merged.tolist() == ["m", "m", "b", "m"]
