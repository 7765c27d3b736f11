"""What the embedding knows: who it is, like whom, and how little of the scanner.

    held-out patients, their scans made again, their neighbours -> figures, each with its
    95 % interval over patients, beside an untrained network and what needs no network

Only patients that no training has seen are asked about; the others may be answers.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from medsiam.bench import baselines, retrieval
from medsiam.bench.ms_pairs import data_folder
from medsiam.bench.rescan import Technique, rescan
from medsiam.bench.retrieval import Numbers, People, Statistic
from medsiam.bench.scores import Score, Scores
from medsiam.encoding.encoder import Encoder
from medsiam.encoding.weights import load_encoder
from medsiam.reading import read_volume
from medsiam.training.public_manifests import Row, brain_rows, radiograph_rows
from medsiam.volume import Grid, Volume

# A row without one of the other names is the encoder's own.
OURS, UNTRAINED, RAW, CHANCE = "", "untrained network", "raw at 8 mm", "chance"

Viewer = Callable[[Volume], Numbers]
Views = Mapping[str, Numbers]

# MUSE numbers of the ventricles (Doshi et al. 2016, NeuroImage 127).
VENTRICLES = (4, 11, 49, 50, 51, 52)

# Each differs from the first in one thing only.
SCANNED_AS_USUAL = Technique()
TECHNIQUES = {
    "usual": SCANNED_AS_USUAL,
    "curve": replace(SCANNED_AS_USUAL, contrast="curve"),
    "inverted": replace(SCANNED_AS_USUAL, contrast="inverted"),
    "isotropic": replace(SCANNED_AS_USUAL, slice_mm=2.0),
    "noisy": replace(SCANNED_AS_USUAL, noise=0.1),
}
FOUND_AGAIN = {"curve": "a bent contrast", "inverted": "grey and white inverted"}
PROBED = {"thickness": "isotropic", "contrast": "inverted", "noise": "noisy"}

# Of the developers' first trial: leave one out among 109, and all 149 radiographs.
AGE_REFERENCES = {RAW: "12.6 in the first trial, among 109", CHANCE: "15.4 in the first trial, among 109"}
VENTRICLE_REFERENCES = {RAW: ".44 in the first trial, among 109"}
PIXELS, SHIFTED, AXES, HOG = "pixels", "pixels, best shift and scale", "40 principal axes", "HOG"
AUC_REFERENCES = {PIXELS: ".64 in the first trial, of 149", AXES: ".70, the same", HOG: ".61, the same"}
FIRST_REFERENCES = {
    PIXELS: ".44 in the first trial, of 149",
    AXES: ".38, the same",
    HOG: ".37, the same",
    CHANCE: ".11, the same",
}

TIMED_VOXELS, TIMED_MM, TIMED_RUNS = 128, 1.5, 3


@dataclass(frozen=True, eq=False)
class Person:
    """One adult of brains-t1.

    age              years, nan where not told
    ventricle_share  of all that is labelled, 0..1
    raw_inside       what lies inside the labels at 8 mm, flat
    """

    name: str
    path: Path
    label_path: Path
    is_held_out: bool
    age: float
    ventricle_share: float
    raw_inside: Numbers

    def scan(self) -> Volume:
        """The T1, read now: all of them at once fill the memory."""
        return read_volume(self.path)

    def brain(self) -> NDArray[np.bool_]:
        """What is labelled, (K, J, I) on the scan's grid."""
        return read_volume(self.label_path).array > 0


@dataclass(frozen=True, eq=False)
class Brains:
    """All people, and each viewer's rows of their scans.

    own    (people, D)
    again  technique to (held-out people, D), in the order of the people
    """

    people: tuple[Person, ...]
    own: Views
    again: Mapping[str, Views]
    seed: int

    @property
    def held_out(self) -> NDArray[np.bool_]:
        """Who was kept from training, (people,)."""
        return np.array([person.is_held_out for person in self.people])

    @property
    def names(self) -> NDArray[np.str_]:
        """Whose row each is, (people,)."""
        return np.array([person.name for person in self.people])


def measure(
    data: Path | None, seed: int, *, weights_3d: Path | None = None, weights_2d: Path | None = None
) -> Scores:
    """Retrieval, neighbours, verification, probes and cost, of the shipped encoders or those given.

    Raises WeightsRefused where none are given and none ship.
    """
    volumes = load_encoder(weights_3d, spatial_dims=3)
    radiographs = load_encoder(weights_2d, spatial_dims=2)
    folder = data_folder(data)
    rows = [*volume_scores(folder, seed, volumes), *radiograph_scores(folder, seed, radiographs)]
    told = f"brains-t1, cxr-longitudinal, mr-same-day; {volumes.encoder_id}, {radiographs.encoder_id}"
    return Scores("encoder", told, seed, tuple(rows))


def volume_scores(folder: Path, seed: int, encoder: Encoder) -> Iterator[Score]:
    """All figures of an encoder of volumes."""
    networks = {OURS: encoder, UNTRAINED: baselines.untrained(encoder.settings, seed)}
    viewers = {name: viewer_of(network) for name, network in networks.items()}
    brains = look(folder, seed, viewers | {RAW: baselines.raw_brain})
    yield from found_again_rows(brains)
    yield from neighbour_rows(brains)
    yield from probe_rows(brains)
    yield from _same_day_rows(folder, brains, viewers)
    yield _seconds_row(encoder, seed)
    yield _half_precision_row(brains, encoder)


def viewer_of(encoder: Encoder) -> Viewer:
    """A volume to its embedding."""
    return lambda volume: encoder(volume).embedding


def seen(volumes: Iterable[Volume], viewers: Mapping[str, Viewer]) -> Views:
    """Each viewer's rows (volumes, D); every volume is read once."""
    rows = [[view(volume) for view in viewers.values()] for volume in volumes]
    return {name: np.stack([row[n] for row in rows]) for n, name in enumerate(viewers)}


def look(folder: Path, seed: int, viewers: Mapping[str, Viewer]) -> Brains:
    """Everybody's scan, and each held-out person scanned again in every technique."""
    people = tuple(person_of(folder, row) for row in brain_rows(folder))
    held_out = [person for person in people if person.is_held_out]
    again = {
        name: seen(scanned_again(held_out, technique, seed + 1000 * n), viewers)
        for n, (name, technique) in enumerate(TECHNIQUES.items())
    }
    return Brains(people, seen((person.scan() for person in people), viewers), again, seed)


def scanned_again(people: Iterable[Person], technique: Technique, seed: int) -> Iterator[Volume]:
    """A rescan of each person, one after the other from one generator."""
    random = torch.Generator().manual_seed(seed)
    for person in people:
        yield rescan(person.scan(), technique, random, brain=person.brain()).volume


def person_of(folder: Path, row: Row) -> Person:
    labels = read_volume(folder / row["label_map"]).array
    inside = labels > 0
    return Person(
        name=row["patient"],
        path=folder / row["path"],
        label_path=folder / row["label_map"],
        is_held_out=row["split"] == "test",
        age=float(row["age"] or "nan"),
        ventricle_share=float(np.isin(labels, VENTRICLES).sum() / max(int(inside.sum()), 1)),
        raw_inside=baselines.raw_inside(read_volume(folder / row["path"]), inside),
    )


def _rows(
    subject: str,
    measured: Mapping[str, Statistic],
    people: People,
    seed: int,
    *,
    target: str = "",
    references: Mapping[str, str] | None = None,
) -> Iterator[Score]:
    """One row for each viewer; the target stands beside our own."""
    for viewer, statistic in measured.items():
        found = retrieval.estimate(statistic, people, seed)
        yield _row(subject, viewer, found, target=target, reference=(references or {}).get(viewer, ""))


def _row(subject: str, viewer: str, found: retrieval.Estimate, *, target: str, reference: str = "") -> Score:
    name = f"{subject}: {viewer}" if viewer else subject
    return Score(name, found.value, reference, "" if viewer else target, found.interval)


def found_again_rows(brains: Brains) -> Iterator[Score]:
    """Whether a rescan's nearest is the same person's own scan, in each contrast and gallery."""
    held_out, names = brains.held_out, brains.names
    for technique, words in FOUND_AGAIN.items():
        for gallery in (held_out, np.ones_like(held_out)):
            measured = {}
            for viewer, rows in brains.again[technique].items():
                near = baselines.correlations if viewer == RAW else retrieval.cosines
                similarity = near(rows, brains.own[viewer][gallery])
                hits = retrieval.hits(similarity, names[held_out], names[gallery])
                measured[viewer] = retrieval.mean_of(hits)
            subject = f"re-acquired brain, {words}, P@1 among {int(gallery.sum())}"
            yield from _rows(subject, measured, names[held_out], brains.seed, target=">= .98")


def neighbour_rows(brains: Brains) -> Iterator[Score]:
    """Age and ventricle share of the nearest five, among the held-out and among all."""
    similarity = _similarities_of_people(brains)
    everyone = np.ones_like(brains.held_out)
    for gallery, words in ((brains.held_out, "the other held-out"), (everyone, "all others")):
        yield from _age_rows(brains, similarity, gallery, words)
        yield from _ventricle_rows(brains, similarity, gallery, words)


def _age_rows(brains: Brains, similarity: Views, gallery: NDArray[np.bool_], words: str) -> Iterator[Score]:
    ages = np.array([person.age for person in brains.people])
    queries, offered = _asked(brains, ages, gallery)
    errors = {
        viewer: np.abs(_from_nearest(each[queries], offered, ages) - ages[queries])
        for viewer, each in similarity.items()
    }
    errors[CHANCE] = baselines.chance_errors(ages, offered, ages[queries], brains.seed)
    yield from _rows(
        f"5 nearest neighbours' age error (years), {words}",
        {viewer: retrieval.mean_of(each) for viewer, each in errors.items()},
        brains.names[queries],
        brains.seed,
        target="< 8",
        references=AGE_REFERENCES,
    )


def _ventricle_rows(
    brains: Brains, similarity: Views, gallery: NDArray[np.bool_], words: str
) -> Iterator[Score]:
    shares = np.array([person.ventricle_share for person in brains.people])
    queries, offered = _asked(brains, shares, gallery)
    told = {viewer: _from_nearest(each[queries], offered, shares) for viewer, each in similarity.items()}
    yield from _rows(
        f"ventricle share of 5 neighbours, rho, {words}",
        {viewer: retrieval.rank_correlation_of(each, shares[queries]) for viewer, each in told.items()},
        brains.names[queries],
        brains.seed,
        target=">= .7",
        references=VENTRICLE_REFERENCES,
    )


def _similarities_of_people(brains: Brains) -> Views:
    """(people, people): cosines of embeddings, and how near raw brains lie along 30 axes."""
    raw = np.stack([person.raw_inside for person in brains.people])
    along = baselines.principal(raw, baselines.BRAIN_AXES, ~brains.held_out)
    found = {
        viewer: retrieval.cosines(brains.own[viewer], brains.own[viewer]) for viewer in (OURS, UNTRAINED)
    }
    return found | {RAW: retrieval.closeness(along, along)}


def _asked(
    brains: Brains, values: Numbers, gallery: NDArray[np.bool_]
) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
    """Held-out people whose value is told, and whom of all each may be answered with."""
    told = np.isfinite(values)
    queries = np.flatnonzero(brains.held_out & told)
    return queries, (gallery & told)[None] & (np.arange(len(values))[None] != queries[:, None])


def _from_nearest(similarity: Numbers, offered: NDArray[np.bool_], values: Numbers) -> Numbers:
    return retrieval.neighbour_means(retrieval.without(similarity, ~offered), values)


def probe_rows(brains: Brains) -> Iterator[Score]:
    """How well a linear reader tells two techniques apart."""
    people = list(brains.names[brains.held_out])
    classes = np.repeat([0, 1], len(people))
    for subject, technique in PROBED.items():
        for viewer, usual in brains.again["usual"].items():
            rows = np.concatenate([usual, brains.again[technique][viewer]])
            found = retrieval.probe(rows, classes, people * 2, brains.seed)
            name = f"probe for {subject}, balanced accuracy"
            yield _row(name, viewer, found, target="near .5", reference="" if viewer else "chance .5")


def _same_day_rows(folder: Path, brains: Brains, viewers: Mapping[str, Viewer]) -> Iterator[Score]:
    """One person twice on a day, against the nearest of any two people at hand."""
    if not (folder / "mr-same-day").is_dir():
        return
    twice = [folder / "mr-same-day" / name for name in ("HFS", "HFP")]
    others = sorted((folder / "ms-longitudinal").rglob("study*_[FT][L1]*.nii.gz"))
    more = seen((read_volume(path) for path in (*twice, *others)), viewers)
    names = np.array(["same-day"] * 2 + [path.parent.name for path in others] + list(brains.names))
    strange = np.triu(names[:, None] != names[None])
    for viewer, rows in more.items():
        every = np.concatenate([rows, brains.own[viewer]])
        distance = 1.0 - retrieval.cosines(every, every)
        same, between = float(distance[0, 1]), distance[strange]
        name = f": {viewer}" if viewer else ""
        yield Score(f"same day, supine to prone: distance{name}", same)
        yield Score(f"smallest distance between two people, of {between.size}{name}", float(between.min()))
        below = int((between < same).sum())
        yield Score(
            f"pairs of two people nearer than the same-day pair{name}", below, "", "" if viewer else "0"
        )


def _seconds_row(encoder: Encoder, seed: int) -> Score:
    array = np.random.default_rng(seed).random((TIMED_VOXELS,) * 3, np.float32)
    volume = Volume(array, Grid(array.shape, np.diag([TIMED_MM] * 3 + [1.0])))
    encoder(volume)
    taken = []
    for _ in range(TIMED_RUNS):
        begun = time.perf_counter()
        encoder(volume)
        taken.append(time.perf_counter() - begun)
    return Score("seconds to embed 128 x 128 x 128", statistics.median(taken), "", "< 2")


def _half_precision_row(brains: Brains, encoder: Encoder) -> Score:
    """Largest cosine distance of the held-out between bfloat16 and float32."""
    held_out = (person.scan() for person in brains.people if person.is_held_out)
    with torch.autocast("cpu", torch.bfloat16):
        rough = seen(held_out, {OURS: viewer_of(encoder)})[OURS]
    distance = 1.0 - np.diag(retrieval.cosines(rough, brains.own[OURS][brains.held_out]))
    return Score("cosine distance of bfloat16 to float32, largest", float(distance.max()), "", "<= 0.01")


def radiograph_scores(folder: Path, seed: int, encoder: Encoder) -> Iterator[Score]:
    """Same-patient verification and retrieval of an encoder of radiographs."""
    rows = radiograph_rows(folder)
    people = np.array([row["patient"] for row in rows])
    split = np.array([row["split"] for row in rows])
    similarity = _similarities_of_radiographs(folder, rows, seed, encoder)
    test = split == "test"
    measured = {
        viewer: retrieval.verification_auc_of(each[np.ix_(test, test)], people[test])
        for viewer, each in similarity.items()
    }
    subject = f"same patient in {int(test.sum())} radiographs, AUC"
    yield from _rows(subject, measured, people[test], seed, target=">= .90", references=AUC_REFERENCES)
    for gallery in (test, np.ones_like(test)):
        yield from first_rows(similarity, people, test, gallery, seed)


def _similarities_of_radiographs(folder: Path, rows: Sequence[Row], seed: int, encoder: Encoder) -> Views:
    """(images, images) by each viewer; what is fitted is fitted to training patients."""
    viewers: dict[str, Viewer] = {
        OURS: viewer_of(encoder),
        UNTRAINED: viewer_of(baselines.untrained(encoder.settings, seed)),
        PIXELS: baselines.equalised_radiograph,
    }
    found = seen((read_volume(folder / row["path"]) for row in rows), viewers)
    images = found[PIXELS].astype(np.float32)
    fitted = np.array([row["split"] == "train" for row in rows])
    along = baselines.principal(images.reshape(len(images), -1), baselines.RADIOGRAPH_AXES, fitted)
    edges = np.stack([baselines.edges(image) for image in images])
    return {
        **{viewer: retrieval.cosines(found[viewer], found[viewer]) for viewer in (OURS, UNTRAINED)},
        PIXELS: baselines.correlations(images, images),
        SHIFTED: baselines.shifted_correlations(images),
        AXES: retrieval.cosines(along, along),
        HOG: retrieval.cosines(edges, edges),
    }


def first_rows(
    similarity: Views,
    people: NDArray[np.str_],
    test: NDArray[np.bool_],
    gallery: NDArray[np.bool_],
    seed: int,
) -> Iterator[Score]:
    """P@1 of the test images whose patient has another."""
    same = (people[:, None] == people[None]) & ~np.eye(len(people), dtype=bool)
    asked = test & same.any(axis=1)
    own = np.eye(len(people), dtype=bool)[np.ix_(asked, gallery)]
    measured = {}
    for viewer, each in similarity.items():
        offered = retrieval.without(each[np.ix_(asked, gallery)], own)
        measured[viewer] = retrieval.mean_of(retrieval.hits(offered, people[asked], people[gallery]))
    count = int(gallery.sum())
    measured[CHANCE] = retrieval.mean_of(same[np.ix_(asked, gallery)].sum(axis=1) / (count - 1))
    subject = f"same patient nearest, P@1 among {count} radiographs"
    yield from _rows(subject, measured, people[asked], seed, target=">= .75", references=FIRST_REFERENCES)
