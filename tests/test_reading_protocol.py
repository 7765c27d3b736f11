"""Technique from headers: what the comparison of protocols rests on."""

from __future__ import annotations

from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from medsiam.reading.protocol import protocol_of


def test_enhanced_headers_tell_their_inversion_time():
    """Enhanced MR keeps it as Inversion Times (0018,9079) of the MR Modifier Sequence; FLAIR needs it."""
    modifier, shared, dataset = Dataset(), Dataset(), Dataset()
    modifier.InversionTimes = 2500.0
    shared.MRModifierSequence = Sequence([modifier])
    dataset.SharedFunctionalGroupsSequence = Sequence([shared])
    assert protocol_of(dataset, b"key")[0]["inversion_time_ms"] == 2500.0


def test_classic_headers_tell_their_inversion_time():
    """The same figure from the classic attribute, and none where there is none."""
    dataset = Dataset()
    dataset.InversionTime = "2500"
    assert protocol_of(dataset, b"key")[0]["inversion_time_ms"] == 2500.0
    assert "inversion_time_ms" not in protocol_of(Dataset(), b"key")[0]
