"""The index of earlier cases: who looked like this before, or changed like this, and what followed."""

from medsiam.cases.index import CaseIndex

__all__ = ["CaseIndex"]
