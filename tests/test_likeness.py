"""Who is alike is a ridge regression: right where volumes tell the labels, small where they do not."""

import pytest
import torch

from medsiam.training.likeness import scores_of, whitening_of


def people(count=60, seed=0):
    """Rows of volumes, a label that the first two tell, and one that none tells."""
    random = torch.Generator().manual_seed(seed)
    rows = torch.randn(count, 6, generator=random, dtype=torch.float64) * torch.tensor(
        [0.5, 0.3, 0.05, 0.04, 0.1, 0.1]
    )
    told = 40.0 + 20.0 * (rows[:, 0] / 0.5 + rows[:, 1] / 0.3) - 4.0
    noise = torch.randn(count, generator=random, dtype=torch.float64)
    return rows - 2.0, torch.stack([told, noise], dim=1)


def test_scores_are_standard_where_volumes_tell_the_label():
    """Of mean 0, and nearly of deviation 1; what they do not tell shrinks."""
    rows, labels = people()
    weights, shifts, explained = scores_of(rows, labels)
    scores = rows @ weights.T + shifts
    assert scores.mean(0).abs().max() < 1e-9
    assert float(torch.corrcoef(torch.stack([scores[:, 0], labels[:, 0]]))[0, 1]) > 0.99
    assert float(scores[:, 0].std()) > 0.85 and float(explained[0]) > 0.95
    assert float(scores[:, 1].std()) < 0.5 and float(explained[1]) < 0.3


def test_a_label_unknown_for_some_is_learnt_from_the_others():
    """Who has none counts neither in the mean nor in the slope."""
    rows, labels = people()
    holes = labels.clone()
    holes[::3, 0] = torch.nan
    known = holes[:, 0].isfinite()
    weights, shifts, _ = scores_of(rows, holes)
    alone = scores_of(rows[known], labels[known])
    assert torch.allclose(weights[0], alone[0][0]) and torch.allclose(shifts[0], alone[1][0])
    assert bool(weights.isfinite().all())


@pytest.mark.parametrize("column", range(6))
def test_a_volume_in_other_units_changes_no_score(column):
    """A logarithm of another base, say."""
    rows, labels = people()
    other = rows.clone()
    other[:, column] *= 2.3
    before, after = (
        each @ scores_of(each, labels)[0].T + scores_of(each, labels)[1] for each in (rows, other)
    )
    assert torch.allclose(before, after, atol=1e-9)


def test_distances_are_those_of_the_people_that_were_seen():
    """On average nearly one for each volume; what none of them has lies far."""
    rows, _ = people()
    whitening = whitening_of(rows)
    squares = ((rows - rows.mean(0)) @ whitening.T).square().sum(1)
    assert 4.5 < float(squares.mean()) < 6.0
    odd = rows[:1].clone()
    odd[0, 3] = rows[:, 3].mean() + 10.0 * rows[:, 3].std()
    assert float(((odd - rows.mean(0)) @ whitening.T).square().sum()) > 50.0
