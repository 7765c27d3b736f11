"""Order, schedules, retries and GPUs around medsiam by Prefect; no science, no arrays.

compare_patient, compare_archive, night_audit   comparing.py
index_archive, similar_cases                    finding.py
train_encoder, drift_watch                      learning.py, drift.py

Parameters, task names, artifacts and logs hold paths, keys and digests only: Prefect keeps them in
the clear. What is done is told by the ledger of medsiam.batch, never by Prefect.
"""

import os

# Nothing here calls home. Prefect reads these when it is imported, so they stand before it.
QUIET = {
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_CLOUD_ENABLE_ORCHESTRATION_TELEMETRY": "false",
}
# The shortest that Prefect allows: after three that are missing a run counts as dead.
HEARTBEAT_S = 30

for name, value in (QUIET | {"PREFECT_FLOWS_HEARTBEAT_FREQUENCY": str(HEARTBEAT_S)}).items():
    os.environ.setdefault(name, value)
