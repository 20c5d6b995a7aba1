"""Splits that keep every patient on one side, and the gate that refuses those that do not.

A *group* is what must stay together: a patient (case), or an image whose patient is unknown.
Groups are dealt out one class at a time, so that every part gets its share of the patients of
each class; within that, of the images.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Mapping, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from lobule.errors import DataError, LeakageError, UsageError, name_some


def assign_folds(
    labels: Sequence[str], groups: Sequence[Hashable], *, folds: int, seed: int = 0
) -> NDArray[np.int64]:
    """Deal the groups into `folds` parts, stratified by class; returns (n,) of 0..folds-1.

    labels, groups: of each image, length n.
    Law: no group lies in two folds; of every stratum (the groups of one class, or of one mixture
    of classes) two folds hold numbers of groups that differ by one at most.
    Raises UsageError if folds < 2, DataError if a class has fewer than two groups, since then
    its only patient would be either unseen in training or absent from the test.
    """
    if folds < 2:
        raise UsageError(f"folds must be 2 or more, got {folds}")
    return _deal(labels, groups, shares=[1.0 / folds] * folds, seed=seed)


def assign_parts(
    labels: Sequence[str],
    groups: Sequence[Hashable],
    *,
    shares: Mapping[str, float],
    seed: int = 0,
) -> NDArray[np.str_]:
    """Deal the groups into named parts of the given shares, as in {"train": 0.6, "test": 0.4}.

    Shares are of the groups of each class, positive, and sum to 1. Returns (n,) part names.
    Every part gets a group of each stratum that has at least as many groups as there are parts.
    Raises as `assign_folds`.
    """
    if any(share <= 0 for share in shares.values()) or abs(sum(shares.values()) - 1) > 1e-9:
        told = ", ".join(f"{name} {share:g}" for name, share in shares.items())
        raise UsageError(f"shares must be positive and sum to 1, got {told}")
    return np.array(list(shares))[_deal(labels, groups, shares=list(shares.values()), seed=seed)]


def _deal(
    labels: Sequence[str], groups: Sequence[Hashable], *, shares: list[float], seed: int
) -> NDArray[np.int64]:
    if len(labels) != len(groups):
        raise ValueError(f"{len(labels)} labels for {len(groups)} groups")
    images: dict[Hashable, Counter[str]] = defaultdict(Counter)
    for label, group in zip(labels, groups, strict=True):
        images[group][label] += 1
    _check_enough(images)

    strata: dict[tuple[str, ...], list[Hashable]] = defaultdict(list)
    for group in sorted(images, key=str):
        strata[tuple(sorted(images[group]))].append(group)

    rng = np.random.default_rng(seed)
    share = np.asarray(shares)
    all_images = np.zeros(len(shares))
    all_groups = np.zeros(len(shares))
    part_of: dict[Hashable, int] = {}
    # Rare strata are dealt first: the common ones can still even out what they leave.
    for stratum in sorted(strata, key=lambda s: (len(strata[s]), s)):
        members = [strata[stratum][i] for i in rng.permutation(len(strata[stratum]))]
        # Large groups first, so that small ones can level the image counts (longest processing
        # time rule); the permutation decides among equals.
        members.sort(key=lambda g: -images[g].total())
        n_groups, n_images = np.zeros(len(shares)), np.zeros(len(shares))
        quota = _quotas(len(members), share, all_groups)
        for group in members:
            size = images[group].total()
            open_parts = np.flatnonzero(n_groups < quota)
            load = (n_images[open_parts] + size) / share[open_parts]
            overall = (all_images[open_parts] + size) / share[open_parts]
            tie = rng.random(len(open_parts))
            part = int(open_parts[np.lexsort((tie, overall, load))[0]])
            part_of[group] = part
            n_groups[part] += 1
            n_images[part] += size
            all_images[part] += size
            all_groups[part] += 1
    return np.array([part_of[group] for group in groups], dtype=np.int64)


def _quotas(n: int, share: NDArray[np.float64], taken: NDArray[np.float64]) -> NDArray[np.int64]:
    """Share out n groups: the whole part of n * share, the rest by largest remainder.

    A part with no group yet is served before the others where n allows; among equal remainders
    the part that has fewest groups of the other strata (`taken`) comes first.
    """
    exact = n * share
    quota = np.floor(exact + 1e-9).astype(np.int64)
    while quota.sum() < n:
        order = np.lexsort((taken / share, -(exact - quota).round(9), quota > 0))
        quota[order[0]] += 1
    while (quota == 0).any() and quota.max() > 1 and n >= len(share):
        # a tiny share still needs one group of each class, or it cannot be scored
        quota[int(quota.argmax())] -= 1
        quota[int(np.flatnonzero(quota == 0)[0])] += 1
    return quota


def _check_enough(images: Mapping[Hashable, Counter[str]]) -> None:
    groups_of: Counter[str] = Counter()
    for counts in images.values():
        groups_of.update(counts.keys())
    if len(groups_of) < 2:
        told = name_some([str(label) for label in groups_of])
        raise DataError(
            f"cannot split: the images are all of one class ({told or 'none'})",
            fix="a classifier needs two classes; put each in a folder of its own",
        )
    for label, count in sorted(groups_of.items()):
        if count < 2:
            only = next(group for group, counts in images.items() if label in counts)
            raise DataError(
                f"cannot split: class {label!r} has one patient ({name_some([str(only)])})",
                fix="one patient cannot be both learned from and tested on; "
                "add images of another patient of that class",
            )


def check_disjoint(table: pd.DataFrame, *, column: str = "split") -> None:
    """Refuse a table in which a patient lies in two parts.

    table: manifest columns; rows without a part or without a patient are passed over.
    Raises LeakageError naming the patients, their parts and their numbers of images.
    """
    known = table.dropna(subset=[column, "patient"])
    counts = known.groupby(["patient", column], observed=True).size()
    parts_of = counts.groupby(level="patient").size()
    shared = [str(patient) for patient in parts_of.index[parts_of > 1]]
    if not shared:
        return
    examples = "; ".join(
        f"{patient}: " + ", ".join(f"{n} in {part}" for part, n in counts[patient].items())
        for patient in shared[:5]
    )
    n_images = int(known["patient"].isin(shared).sum())
    raise LeakageError(
        f"{len(shared)} patient(s) lie on both sides of the split ({n_images} images): {examples}"
        + (f"; and {len(shared) - 5} more" if len(shared) > 5 else ""),
        fix="split again by patient with `lobule split DIR --resplit -o manifest.csv`, or accept "
        "the leak by name with --allow patient-in-two-splits",
    )


def merge_linked_groups(
    groups: Sequence[str], links: Sequence[tuple[int, int]]
) -> NDArray[np.str_]:
    """Join groups that `links` (pairs of row indices showing the same photograph) connect.

    The same photograph filed under two patients would carry one patient's tissue to both sides
    of a split; after this they move together. A joined group takes the first of its names.
    """
    names = sorted(set(groups))
    index = {name: i for i, name in enumerate(names)}
    first = [index[groups[i]] for i, _ in links]
    second = [index[groups[j]] for _, j in links]
    graph = coo_array((np.ones(len(links)), (first, second)), shape=(len(names), len(names)))
    _, component = connected_components(graph, directed=False)
    # components are numbered in the order of their first member, and names are sorted
    leader = [names[int(np.flatnonzero(component == c)[0])] for c in range(component.max() + 1)]
    return np.array([leader[component[index[group]]] for group in groups])
