"""A trajectory's files in a folder, with each pair's own report: all of them, or none."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medsiam.change.comparison import Comparison
from medsiam.change.trajectory import PairKey, Trajectory
from medsiam.report.comparison_json import to_text
from medsiam.report.digests import seal
from medsiam.report.placing import DIGESTS, PAIRS, REPORT, TRAJECTORY, placed_whole
from medsiam.report.trajectory_html import render_trajectory, with_trend
from medsiam.report.trajectory_json import trajectory_json
from medsiam.report.writer import FORMATS, HTML, WriteMore, write_comparison

TRAJECTORY_HTML = "trajectory.html"


@dataclass
class TrajectoryWriter:
    """Takes pair after pair, then the whole; nothing is seen outside before all is there."""

    stage: Path
    formats: Collection[str]
    write_more: Callable[[Comparison], WriteMore] | None = None
    pair_files: dict[PairKey, dict[str, str]] = field(default_factory=dict)

    def keep(self, key: PairKey, comparison: Comparison) -> None:
        """Writes one pair's report, so that its images need not be held."""
        name = f"{PAIRS}/{key[0]}-{key[1]}"
        more = self.write_more(comparison) if self.write_more else None
        written = write_comparison(comparison, self.stage / name, formats=self.formats, write_more=more)
        self.pair_files[key] = {kind: f"{name}/{path}" for kind, path in written.items()}

    def carry(self, key: PairKey, folder: Path) -> None:
        """Takes over the report of a pair that was compared before, from its folder, without its images."""
        name = f"{PAIRS}/{key[0]}-{key[1]}"
        taken = {kind: path for kind, path in (("json", REPORT), ("html", HTML)) if (folder / path).is_file()}
        (self.stage / name).mkdir(parents=True)
        for path in taken.values():
            shutil.copyfile(folder / path, self.stage / name / path)
        self.pair_files[key] = {kind: f"{name}/{path}" for kind, path in taken.items()}

    def finish(self, trajectory: Trajectory) -> dict[str, str]:
        """The written files, name -> path relative to the folder."""
        names = {"json": TRAJECTORY} | ({"html": TRAJECTORY_HTML} if "html" in self.formats else {})
        for (prior, current), files in self.pair_files.items():
            names |= {f"{prior}-{current} {kind}": path for kind, path in files.items()}
        names["digests"] = DIGESTS
        told = trajectory_json(trajectory, files=names, pair_files=self.pair_files)
        if "html" in self.formats:
            (self.stage / TRAJECTORY_HTML).write_text(render_trajectory(told), encoding="utf-8", newline="\n")
            for pair, files in self.pair_files.items():
                if "html" in files:
                    self._add_trend(self.stage / files["html"], told, pair)
        (self.stage / TRAJECTORY).write_text(to_text(told), encoding="utf-8", newline="\n")
        return names

    def _add_trend(self, path: Path, told: Mapping[str, Any], pair: PairKey) -> None:
        """Each pair's page was written before the others were known."""
        page = with_trend(path.read_text(encoding="utf-8"), told, pair, back=f"../../{TRAJECTORY_HTML}")
        path.write_text(page, encoding="utf-8", newline="\n")
        if (path.parent / DIGESTS).exists():
            seal(path.parent)


@contextmanager
def trajectory_folder(
    folder: Path,
    *,
    formats: Collection[str] = FORMATS,
    write_more: Callable[[Comparison], WriteMore] | None = None,
) -> Iterator[TrajectoryWriter]:
    """A writer whose files stand in the folder when the block ends, and not at all when it fails.

    An earlier result in the folder is replaced, what is not ours stays.
    write_more  gives what adds files (the DICOM evidence) to one pair's report
    Raises as write_comparison does.
    """
    with placed_whole(folder) as stage:
        yield TrajectoryWriter(stage, frozenset(formats) | {"json"}, write_more)
        seal(stage)
