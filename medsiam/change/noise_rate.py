"""How often noise alone makes a candidate of a given strength, learnt from pseudo-rescans.

The candidates of all rescans are pooled; beyond a strength that some of them reach, their
number falls as an exponential, whose length is the mean excess (peaks over a threshold,
Pickands 1975, Annals of Statistics 3). It is wider than a normal distribution's tail.

Rescans may lack what this pair has: slices that cut the anatomy otherwise, flow. The pair's
own weak candidates show it, since real change seldom hides among them (an empirical null,
Efron 2004, Journal of the American Statistical Association 99): where they are more than
the rescans', their number counts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

# Candidates beyond the strength from which the tail is fitted, at most.
MOST_IN_TAIL = 24
# Some candidates more than were seen, with this mean excess (deviations), keep a tail of few
# from passing for a short one. Two real pairs' tails were .45 and .6 long.
PRIOR_EXCESS, PRIOR_COUNT = 0.5, 4
# The pair's own candidates within this much (deviations) of the weakest are taken for noise.
BULK = 1.0
# No smaller chance is told. Further out the tail's form alone would speak: dozens of candidates
# cannot tell one in a million from one in a billion.
LEAST_TOLD = 1e-6


@dataclass(frozen=True)
class NoiseRate:
    """Expected candidates of noise in a scan, by strength.

    rescans     pseudo-rescans that it was learnt from
    strengths   of all their candidates, falling
    floor       the least strength a candidate has
    weak        the pair's own candidates that are taken for noise
    """

    rescans: int
    strengths: tuple[float, ...]
    floor: float
    weak: int = 0

    @classmethod
    def of(cls, rescans: Sequence[Sequence[float]], floor: float, own: Sequence[float] = ()) -> NoiseRate:
        """The rate from the strengths of each rescan's candidates, and of the pair's own."""
        pooled = tuple(sorted((s for scan in rescans for s in scan), reverse=True))
        return cls(len(rescans), pooled, floor, sum(s < floor + BULK for s in own))

    @property
    def scale(self) -> float:
        """The length of the tail, in deviations."""
        onset, tail = self._tail()
        return (sum(s - onset for s in tail) + PRIOR_COUNT * PRIOR_EXCESS) / (len(tail) + PRIOR_COUNT)

    @property
    def relative_error(self) -> float:
        """Of the expected number of false candidates: as that of a count of those seen in the tail."""
        return 1.0 / math.sqrt(len(self._tail()[1]) + 1)

    def per_scan(self, strength: float) -> float:
        """How many candidates at least this strong noise makes in a scan, on average.

        One more than was seen is counted, so that it is never nought.
        """
        return max(self._of_rescans(strength), self._of_the_pair(strength))

    def _of_the_pair(self, strength: float) -> float:
        """What the pair's weak candidates let expect further out, falling no faster than the rescans' do."""
        scale = max(self.scale, PRIOR_EXCESS)
        return self.weak * math.exp(-(strength - self.floor) / scale) / -math.expm1(-BULK / scale)

    def _of_rescans(self, strength: float) -> float:
        onset, tail = self._tail()
        if strength <= onset:
            seen = sum(s >= strength for s in self.strengths)
            return (seen + 1) / (self.rescans + 1)
        return (len(tail) + 1) / (self.rescans + 1) * math.exp(-(strength - onset) / self.scale)

    def any_in_scan(self, strength: float) -> float:
        """The chance that noise makes one or more candidates at least this strong in a scan.

        Not below LEAST_TOLD.
        """
        return max(LEAST_TOLD, -math.expm1(-self.per_scan(strength)))

    def at_a_place(self, strength: float) -> float:
        """The chance that a candidate which noise made is at least this strong: its p-value.

        Not below LEAST_TOLD.
        """
        return min(1.0, max(LEAST_TOLD, self.per_scan(strength) / self.per_scan(self.floor)))

    def strength_for(self, rate: float) -> float:
        """The strength from which noise makes this many candidates in a scan, or fewer."""
        low, high = self.floor, self.floor
        while self.per_scan(high) > rate:
            high += 1.0
        for _ in range(40):
            middle = 0.5 * (low + high)
            low, high = (middle, high) if self.per_scan(middle) > rate else (low, middle)
        return high

    def _tail(self) -> tuple[float, tuple[float, ...]]:
        """Where the tail begins and the strengths in it: the stronger half, and not too many."""
        count = min(MOST_IN_TAIL, math.ceil(len(self.strengths) / 2))
        if count == 0:
            return self.floor, ()
        onset = self.strengths[count] if count < len(self.strengths) else self.floor
        return onset, self.strengths[:count]
