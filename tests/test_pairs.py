"""A batch says who is who, and shows nobody by how he was scanned."""

import math

import pytest
import torch

from medsiam.encoding.encoder import TISSUES as TOLD
from medsiam.training.pairs import BatchSettings, HeadStudio, RadiographStudio, draw_batch
from medsiam.training.radiograph_synthesis import RadiographSettings
from medsiam.training.sources import Source
from medsiam.training.synthesis import SynthesisSettings

SIZE = 16


def head(patient, *, with_map=True):
    """A ball of white matter around a ventricle that is larger for later patients."""
    steps = torch.arange(SIZE) - (SIZE - 1) / 2
    away = (steps[:, None, None] ** 2 + steps[:, None] ** 2 + steps**2).sqrt()
    labels = torch.where(away < 2.0 + 0.5 * patient, 51, torch.where(away < 7.0, 81, 0)).to(torch.int16)
    image = torch.where(labels == 51, 0.2, torch.where(labels == 81, 0.8, 0.0)).half()
    told = {"age": 20.0 + 10.0 * patient}
    return Source(patient, image, labels if with_map else None, 12.0, told, "MR", "muse")


def studio(patients=5, tells_tissues=False, **options):
    return HeadStudio(
        [head(n, **options) for n in range(patients)],
        SynthesisSettings(),
        size=SIZE,
        spacing_mm=12.0,
        labels=("age",),
        measured=("ventricle",),
        tissues=tells_tissues,
    )


def drawn(made, *, seed=0, **told):
    settings = BatchSettings(**{"people": 4, "views": 3, "protocols": 2, "follow_ups": 1} | told)
    return draw_batch(made, settings, torch.Generator().manual_seed(seed))


def test_views_of_one_person_stand_together_and_say_so():
    """Twelve views of four people, in order."""
    batch = drawn(studio())
    assert batch.views.shape == (12, 1, SIZE, SIZE, SIZE)
    assert batch.people.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    assert batch.prior.shape == batch.appearing.shape == (1, 1, SIZE, SIZE, SIZE)


def test_the_same_seed_draws_the_same_batch():
    """A resumed run sees what an undisturbed one would."""
    one, again, other = (drawn(studio(), seed=seed) for seed in (3, 3, 4))
    assert torch.equal(one.views, again.views) and torch.equal(one.current, again.current)
    assert not torch.equal(one.views, other.views)


def test_nobody_is_twice_in_a_batch_but_as_another_person():
    """Two patients for four people: the second time they are bent, and their age is nobody's."""
    batch = drawn(studio(patients=2), warped=0.0)
    ages = batch.labels[::3, 0]
    assert ages[:2].sort().values.tolist() == [20.0, 30.0]
    assert bool(ages[2:].isnan().all()) and bool(batch.labels[:, 1].isfinite().all())


def test_who_is_bent_has_no_age_and_measured_ventricles():
    """Volumes are measured on the bent head."""
    straight, bent = (drawn(studio(), warped=share).labels for share in (0.0, 1.0))
    assert bool(straight.isfinite().all())
    assert bool(bent[:, 0].isnan().all()) and bool(bent[:, 1].isfinite().all())
    assert sorted(set(straight[:, 1].tolist())) != sorted(set(bent[:, 1].tolist()))


def test_scans_without_label_maps_can_be_learned_from():
    """Their contrast is a curve of the image; what needs labels is unknown."""
    batch = drawn(studio(with_map=False))
    assert bool(batch.views.isfinite().all()) and bool(batch.labels[:, 1].isnan().all())


@pytest.mark.parametrize("follow_ups", [0, 2])
def test_follow_ups_are_as_many_as_asked_for(follow_ups):
    """None is an answer."""
    assert len(drawn(studio(), follow_ups=follow_ups).prior) == follow_ups


def test_twins_of_a_radiograph_come_from_different_images_where_there_are():
    """True twins teach what no generator knows: with two images, both are seen."""
    images = [torch.full((1, SIZE, SIZE), value).half() for value in (0.2, 0.8)]
    sources = [Source(0, image, None, 1.0, {}, "CR") for image in images]
    made = RadiographStudio(sources, RadiographSettings())
    person = made.person(0, False, torch.Generator().manual_seed(0))
    seen = {float(person.chests[0].image().mean()) for _ in range(2)}
    assert len(seen) == 2


def test_patients_with_more_radiographs_are_drawn_more_often():
    """By the root of their number, so that nobody fills the batch."""
    image = torch.rand(1, SIZE, SIZE, generator=torch.Generator().manual_seed(1)).half()
    sources = [Source(patient, image, None, 1.0, {}, "CR") for patient in (0, *[1] * 9)]
    drawn_patients = RadiographStudio(sources, RadiographSettings()).patients(
        4000, torch.Generator().manual_seed(2)
    )
    assert sum(drawn_patients) / 4000 == pytest.approx(3.0 / 4.0, abs=0.03)


def test_labels_are_repeated_for_every_view():
    """A label belongs to the person."""
    labels = drawn(studio(), warped=0.0).labels
    assert all(math.isclose(float(a), float(b)) for a, b in zip(labels[0], labels[2], strict=True))


def test_another_person_may_be_two_patients_laid_over_each_other():
    """Bent both, and seen with new images in every view."""
    image = torch.rand(1, SIZE, SIZE, generator=torch.Generator().manual_seed(1)).half()
    sources = [Source(patient, image, None, 1.0, {}, "CR") for patient in (0, 1, 2)]
    for share, count in ((0.0, 1), (1.0, 2)):
        made = RadiographStudio(sources, RadiographSettings(blended=share))
        person = made.person(0, True, torch.Generator().manual_seed(0))
        assert len(person.chests) == count
        view = person.view(None, torch.Generator().manual_seed(0)).image
        assert view.shape == (SIZE, SIZE) and bool(view.isfinite().all())


def test_each_view_tells_the_tissues_in_its_voxels():
    """Ventricle in the middle, white matter around; of a scan without a map all is unknown."""
    seen = drawn(studio(tells_tissues=True)).tissues
    assert seen.shape == (12, len(TOLD) + 1, SIZE, SIZE, SIZE)
    assert torch.allclose(seen.float().sum(1), torch.ones(()), atol=2e-3)
    held = {TOLD[n] for n in range(len(TOLD)) if float(seen[:, n].max()) > 0.0}
    assert held == {"outside", "ventricle", "white"} and float(seen[:, -1].max()) == 0.0
    # Voxels of 12 mm hold more than one tissue: the shares say how much of each.
    assert bool(((seen > 0.2) & (seen < 0.8)).any())
    assert bool((drawn(studio(with_map=False, tells_tissues=True)).tissues[:, -1] == 1.0).all())
    assert drawn(studio()).tissues.numel() == 0


def test_a_scan_as_it_is_has_its_own_contrast():
    """It is what the fit of who is alike looks at; a label map alone shows nothing."""
    person = studio().person(0, False, torch.Generator())
    assert person.as_it_is().shape == (SIZE, SIZE, SIZE)
    assert torch.equal(person.as_it_is(), studio().person(0, False, torch.Generator()).as_it_is())
