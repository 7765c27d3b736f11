"""All flows in one file, as prefect.yaml names them; what `prefect deploy --all` and workers load.

Loaded by `prefect deploy` it makes the pool first: Prefect refuses a deployment whose pool is not
there, has no step that runs before it asks, and the command is to work on a bare server.
"""

import sys
from pathlib import Path

# Prefect loads this file by its path; its neighbours are found from the root of the checkout.
ROOT = str(Path(__file__).parents[1])
if ROOT not in sys.path:
    sys.path.insert(0, ROOT)

import flows  # noqa: F401  (the quiet settings, before Prefect)
from flows.comparing import compare_archive, compare_patient, night_audit
from flows.drift import drift_watch
from flows.finding import index_archive, similar_cases
from flows.learning import train_encoder

__all__ = [
    "compare_archive",
    "compare_patient",
    "drift_watch",
    "index_archive",
    "night_audit",
    "similar_cases",
    "train_encoder",
]

if "deploy" in sys.argv[1:]:
    from concurrent.futures import ThreadPoolExecutor

    from flows.server import prepare

    # Prefect's loop runs in this thread.
    with ThreadPoolExecutor(1) as thread:
        thread.submit(prepare).result()
