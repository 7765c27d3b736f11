"""An archive compared as a whole: planned, computed case by case, told as a worklist.

plan_archive(archive, settings)  what there is to compare, from headers alone
run_case(case, out, settings)    one case into its folder and the ledger, or what stands there already
finish(plan, out, settings)      worklist and manifest, from the ledger
run_batch(archive, out)          all of these in one process: what `medsiam batch` does

What passes between them is plain and can be pickled: paths, keys, digests and short texts.
"""

from medsiam.batch.case import run_case
from medsiam.batch.plan import plan_archive
from medsiam.batch.run import run_batch
from medsiam.batch.values import BatchSettings, Case, Plan, Row, Scan
from medsiam.batch.worklist import finish

__all__ = [
    "BatchSettings",
    "Case",
    "Plan",
    "Row",
    "Scan",
    "finish",
    "plan_archive",
    "run_batch",
    "run_case",
]
