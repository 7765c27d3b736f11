"""An index made anew: its files tidied, or its scans embedded by another encoder.

The new one grows beside the old and takes its place in one rename of index.json; until
then every answer comes from the old one.
"""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Collection, Sequence
from dataclasses import replace

from medsiam.cases.case import Kind
from medsiam.cases.changes import link_changes
from medsiam.cases.folder import only_writer, write_card
from medsiam.cases.index import DATA, CaseIndex
from medsiam.cases.intake import Hints, Intake, Progress, add_series
from medsiam.cases.region import region_size
from medsiam.encoding.encoder import Encoder
from medsiam.errors import IndexRefused
from medsiam.reading import SeriesEntry


def sizes_of(encoder: Encoder) -> dict[Kind, int]:
    """Numbers in a vector of each kind, for an encoder."""
    size = encoder.settings.embedding_size
    return {"scan": size, "finding": region_size(encoder.settings), "change": size}


def rebuild(index: CaseIndex) -> int:
    """How many changes there are, after all patients' were linked anew and the files tidied."""
    changes = link_changes(index, {case.patient_key for case in index.store.find("scan", None)})
    with only_writer(index.folder):
        index.sweep()
    index.settle(keep_versions=False)
    return changes


def embed_anew(
    index: CaseIndex,
    encoder: Encoder,
    entries: Sequence[SeriesEntry],
    hints: Hints,
    *,
    key: bytes,
    leave_out_missing: bool = False,
    progress: Progress = lambda done, total: None,
) -> tuple[CaseIndex, Intake]:
    """The index with every scan embedded by this encoder, words and labels as they were.

    entries  must hold every scan of the index, each known by its content

    Raises IndexRefused where scans are missing, unless they may be left out, or the index
    was changed meanwhile; then it is as it was.
    """
    carried = {case.sha256: case for case in index.store.find("scan", None)}
    fresh = replace(
        index, encoder_id=encoder.encoder_id, sizes=sizes_of(encoder), data=f"{DATA}-{secrets.token_hex(6)}"
    )
    (fresh.folder / fresh.data).mkdir(mode=0o700)
    try:
        intake = add_series(
            fresh, encoder, entries, replace(hints, carried=carried), key=key, progress=progress
        )
        with only_writer(index.folder):
            before, after = _contents(index), _contents(fresh)
            _check_whole(before, after, leave_out_missing=leave_out_missing)
            write_card(index.folder, fresh.card())
    except BaseException:
        fresh.close()
        shutil.rmtree(fresh.folder / fresh.data, ignore_errors=True)
        raise
    index.close()
    with only_writer(index.folder):
        fresh.sweep()
    return fresh, intake


def _contents(index: CaseIndex) -> set[str]:
    return {case.sha256 for case in index.store.find("scan", None)}


def _check_whole(before: Collection[str], after: Collection[str], *, leave_out_missing: bool) -> None:
    missing, strange = len(set(before) - set(after)), len(set(after) - set(before))
    if strange:
        raise IndexRefused(f"{strange} cases were erased while the index was rebuilt; run it again")
    if missing and not leave_out_missing:
        raise IndexRefused(
            f"the scans of {missing} of {len(before)} cases were not given, and only scans can be "
            "embedded anew; "
            "name their folders too, or pass --leave-out-missing"
        )
