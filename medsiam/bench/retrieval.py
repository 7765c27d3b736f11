"""How good an embedding is at finding: who, like whom, how made; each with its interval.

A similarity is a matrix (queries, gallery), higher is nearer, -inf where a row of the
gallery is not on offer. Intervals come from drawing people again, never scans: two
scans of one person are not two independent facts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import rankdata

Numbers = NDArray[np.floating[Any]]
Rows = NDArray[np.intp]
# Whose row each is.
People = Sequence[str] | NDArray[np.str_]
Statistic = Callable[[Rows], float]

# Draws of people; the ends of an interval then stand to about a hundredth of its width.
DRAWS = 1000
COVERED_PERCENT = 95.0

NEIGHBOURS = 5
FOLDS = 5


class Estimate(NamedTuple):
    """A figure and the ends of its 95 % interval."""

    value: float
    interval: tuple[float, float]


def estimate(statistic: Statistic, people: People, seed: int) -> Estimate:
    """A statistic of all rows, with its percentile interval over people drawn with replacement.

    statistic  of row numbers; a person drawn twice brings all its rows twice
    people     whose row each is

    Source: Davison and Hinkley 1997, Bootstrap Methods and their Application, 3.8 (clusters).
    """
    names, whose = np.unique(np.asarray(people), return_inverse=True)
    rows_of = [np.flatnonzero(whose == n) for n in range(len(names))]
    random = np.random.default_rng(seed)
    drawn = random.integers(len(names), size=(DRAWS, len(names)))
    values = [statistic(np.concatenate([rows_of[n] for n in draw])) for draw in drawn]
    tail = (100.0 - COVERED_PERCENT) / 2.0
    # A draw in which the statistic does not exist (one class only) tells nothing.
    low, high = np.nanpercentile(values, (tail, 100.0 - tail))
    return Estimate(statistic(np.arange(len(whose))), (float(low), float(high)))


def mean_of(values: ArrayLike) -> Statistic:
    """The statistic that is the mean of these values, one for each row."""
    held = np.asarray(values, dtype=np.float64)
    return lambda rows: float(held[rows].mean())


def rank_correlation_of(one: ArrayLike, other: ArrayLike) -> Statistic:
    """The statistic that is Spearman's rho of two values for each row; nan where one is constant."""
    first, second = np.asarray(one, dtype=np.float64), np.asarray(other, dtype=np.float64)

    def rho(rows: Rows) -> float:
        a, b = (rankdata(values[rows]) - (len(rows) + 1) / 2.0 for values in (first, second))
        scale = float(np.sqrt((a @ a) * (b @ b)))
        return float(a @ b) / scale if scale > 0.0 else float("nan")

    return rho


def cosines(queries: Numbers, gallery: Numbers) -> Numbers:
    """Similarity (queries, gallery): the cosine of each two rows."""
    one, other = (
        rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
        for rows in (np.asarray(queries, np.float64), np.asarray(gallery, np.float64))
    )
    return one @ other.T


def closeness(queries: Numbers, gallery: Numbers) -> Numbers:
    """Similarity (queries, gallery): the negative Euclidean distance of each two rows."""
    gaps = np.asarray(queries, np.float64)[:, None] - np.asarray(gallery, np.float64)[None]
    return -np.linalg.norm(gaps, axis=2)


def without(similarity: Numbers, left_out: ArrayLike) -> Numbers:
    """The similarity with -inf where left_out (queries, gallery) is true."""
    return np.where(np.asarray(left_out, dtype=bool), -np.inf, similarity)


def hits(similarity: Numbers, query_people: People, gallery_people: People) -> Numbers:
    """1.0 for each query whose nearest is the same person, else 0.0: their mean is P@1.

    A tie with another person is a miss: an encoder that says the same of all finds nobody.
    """
    same = np.asarray(query_people)[:, None] == np.asarray(gallery_people)[None]
    own = np.where(same, similarity, -np.inf).max(axis=1)
    strange = np.where(same, -np.inf, similarity).max(axis=1)
    return (own > strange).astype(np.float64)


def neighbour_means(similarity: Numbers, values: ArrayLike, neighbours: int = NEIGHBOURS) -> Numbers:
    """For each query, the mean value of its nearest in the gallery."""
    nearest = np.argsort(-similarity, axis=1, kind="stable")[:, :neighbours]
    means: Numbers = np.asarray(values, dtype=np.float64)[nearest].mean(axis=1)
    return means


def verification_auc_of(similarity: Numbers, people: People) -> Statistic:
    """The statistic that is the AUC of telling pairs of one person from pairs of two.

    similarity  (n, n), symmetric; each pair counts once

    A person drawn m times counts m-fold; two copies of one person are no pair of two.
    """
    names = np.asarray(people)
    first, second = np.triu_indices(len(names), 1)
    level = np.unique(similarity[first, second], return_inverse=True)[1]
    same = names[first] == names[second]

    def auc(rows: Rows) -> float:
        times = np.bincount(rows, minlength=len(names)).astype(np.float64)
        weight = np.where(same, times[first], times[first] * times[second])
        true, false = (np.bincount(level, weight * kept, level.max() + 1) for kept in (same, ~same))
        if not true.sum() or not false.sum():
            return float("nan")
        # Wins over all pairs of two that are less alike, half a win over those as alike.
        wins = true @ (np.cumsum(false) - 0.5 * false)
        return float(wins / (true.sum() * false.sum()))

    return auc


def probe(embeddings: Numbers, classes: ArrayLike, people: People, seed: int) -> Estimate:
    """Balanced accuracy of a linear reader of the embedding, on people it was not fitted to.

    classes  0 or 1 for each row; chance is .5

    Logistic regression on standardised features, FOLDS folds of people.
    """
    truth = np.asarray(classes)
    right = _read_out(np.asarray(embeddings, np.float64), truth, np.asarray(people), seed) == truth

    def balanced(rows: Rows) -> float:
        kinds = (right[rows][truth[rows] == kind] for kind in np.unique(truth))
        return float(np.mean([kind.mean() if kind.size else np.nan for kind in kinds]))

    return estimate(balanced, people, seed)


def _read_out(features: Numbers, classes: NDArray[Any], people: NDArray[Any], seed: int) -> NDArray[Any]:
    """The class told for each row by a reader that saw no scan of its person."""
    # sklearn takes a second to import, which the other figures need not wait for.
    from sklearn.linear_model import LogisticRegression

    names, whose = np.unique(people, return_inverse=True)
    fold_of = np.random.default_rng(seed).permutation(len(names)) % FOLDS
    told = np.empty_like(classes)
    for fold in range(FOLDS):
        held = fold_of[whose] == fold
        if held.any():
            seen, unseen = _reduced(features[~held], features[held])
            reader = LogisticRegression(max_iter=2000).fit(seen, classes[~held])
            told[held] = reader.predict(unseen)
    return told


def _reduced(seen: Numbers, unseen: Numbers) -> tuple[Numbers, Numbers]:
    """Both standardised by `seen`, in the space that its rows span.

    A ridge-penalised reader lies in that space, so nothing is lost and much is gained
    where features outnumber rows (Hastie and Tibshirani 2004, Biostatistics 5:329).
    """
    middle, spread = seen.mean(axis=0), seen.std(axis=0)
    spread = np.where(spread > 1e-12, spread, 1.0)
    seen, unseen = (seen - middle) / spread, (unseen - middle) / spread
    if seen.shape[1] <= seen.shape[0]:
        return seen, unseen
    axes = np.linalg.svd(seen, full_matrices=False)[2].T
    return seen @ axes, unseen @ axes
