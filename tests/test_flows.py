"""The flows on a real server with a real worker: deployed as they stand, on schedule, and after kill -9."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from datetime import datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
import yaml

pytest.importorskip("prefect", reason="the extra `flows` is not installed")

from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.schedules import CronSchedule
from prefect.utilities.schema_tools import validate

from flows.closed import ComesBack, FlowStopped, closed
from flows.metrics import Measure, prometheus
from flows.running import pauses_s, retried
from flows.serve import deployments
from flows.settings import FlowSettings, RetrySettings, settings_of
from medsiam.config import settings_as_dict
from medsiam.errors import ArchiveRefused, Unreadable
from tests.archive_maker import write_archive
from tests.prefect_server import PrefectServer, kill_flow, wait_for

ROOT = Path(__file__).parents[1]
SETTINGS = ROOT / "configs" / "flows.yaml"
DEPLOYED = yaml.safe_load((ROOT / "prefect.yaml").read_text(encoding="utf-8"))["deployments"]
FLOWS = {
    "compare_patient",
    "compare_archive",
    "index_archive",
    "similar_cases",
    "night_audit",
    "train_encoder",
}
# Time for the server to plan the run before it is due.
SOON = timedelta(seconds=8)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A bare server on which `prefect deploy --all` was run, and a worker of the first GPU's queue."""
    started = PrefectServer(tmp_path_factory.mktemp("prefect"))
    try:
        started.start()
        started.command("deploy", "--all")
        started.gpu_worker = started.worker("gpu-0")
        yield started
    finally:
        started.stop()


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """Three patients with three visits: six comparisons and three trajectories."""
    return write_archive(tmp_path_factory.mktemp("scans"), 3, 3)


def events(out, kind="case"):
    """What the run's log tells of one kind."""
    lines = (out / ".medsiam" / "flow.jsonl").read_text(encoding="utf-8").splitlines()
    return [told for line in lines if (told := json.loads(line))["event"] == kind]


def records(out):
    return sorted((out / ".medsiam" / "ledger").glob("*.json"))


@pytest.mark.slow
def test_prefect_deploy_all_works_on_a_bare_server(server):
    """The pool, its queues and the automations are made by the way."""
    told = server.ask("deployments/filter", {})
    assert {each["name"] for each in told} == {each["name"] for each in DEPLOYED}
    assert all(each["work_pool_name"] == "gpu" and "medsiam" in each["tags"] for each in told)
    assert len(server.ask("automations/filter", {})) == 3
    slugs = {schedule["slug"] for each in told for schedule in each["schedules"]}
    assert "nightly" in slugs and None not in slugs


@pytest.mark.slow
def test_a_killed_run_is_run_again_and_each_case_is_done_once(server, archive, tmp_path):
    """kill -9 of the flow: marked, resumed by the automation, and only the case in hand was lost."""
    out = tmp_path / "out"
    run = server.begin("compare_archive/night", archive=str(archive), out=str(out))
    wait_for(lambda: len(records(out)) >= 3, 90, "three cases")
    assert kill_flow(server.gpu_worker)
    done = {path.name: path.stat().st_mtime_ns for path in records(out)}
    ended = server.ended(run)
    assert ended["state_type"] == "COMPLETED" and ended["run_count"] == 2
    assert ended["state"]["message"] == "compared 6, refused 0, failed 0, pending 0"
    assert len(records(out)) == 9
    assert all(path.stat().st_mtime_ns == done[path.name] for path in records(out) if path.name in done)
    names = [told["case_id"] for told in events(out) if told["is_fresh"]]
    assert len(names) == len(set(names)) >= 8


@pytest.mark.slow
def test_a_cron_schedule_fires_and_finishes_by_itself(server, tmp_path):
    """Cron with a sixth field, seconds, so that no minute has to be waited for."""
    at = datetime.now(ZoneInfo("Europe/Berlin")) + SOON
    cron = f"{at.minute} {at.hour} {at.day} {at.month} * {at.second}"
    schedule = CronSchedule(cron=cron, timezone="Europe/Berlin").model_dump()
    archive, out = write_archive(tmp_path / "scans", 1, 2), tmp_path / "scheduled"
    wanted = {
        "parameters": {"archive": str(archive), "out": str(out)},
        "schedules": [{"schedule": schedule, "active": True, "slug": "nightly"}],
    }
    server.ask(f"deployments/{server.deployment('compare_archive/night')}", wanted, "PATCH")

    def finished():
        return [run for run in server.runs() if run["auto_scheduled"] and run["state_type"] == "COMPLETED"]

    (run,) = wait_for(finished, 300, "the scheduled run")
    assert run["state"]["message"].startswith("compared 1,") and (out / "worklist.html").is_file()


ALL_OTHERS = """
import json, sys
from pathlib import Path
from flows.deployed import *
archive, root = sys.argv[1:]
config = f"{root}/flows.yaml"
Path(config).write_text(f"batch: {{formats: [json]}}\\nlocks: {{lock_cpu: true, folder: {root}}}\\n"
                        f"told: {{metrics: {root}}}\\naudit: {{months: 120}}\\n")
told = lambda state: print(state.type.value, state.message, sep="|")
told(night_audit(archive, f"{root}/audit", config=config, return_state=True))
(row,) = json.loads(Path(f"{root}/audit/worklist.json").read_text())["rows"]
told(compare_patient(archive, f"{root}/audit", row["patient_key"], config, return_state=True))
told(index_archive(archive, f"{root}/cases", f"{root}/audit", config=config, return_state=True))
told(similar_cases(f"{root}/query", f"{root}/cases", f"{root}/found", 3, config, return_state=True))
told(drift_watch(f"{root}/audit", archive, config, return_state=True))
told(train_encoder(f"{root}/none.yaml", f"{root}/run", config, return_state=True))
"""


@pytest.mark.slow
def test_every_other_flow_does_its_work_on_a_device_of_its_own(server, tmp_path):
    """With the processor as the device: the audit, one patient, index, search, drift; training refuses."""
    archive = write_archive(tmp_path / "scans", 1, 2)
    # A path is the caller's own word, and stands in the server's data base as it was given.
    shutil.copytree(archive / "P000" / "visit0", tmp_path / "query")
    told = subprocess.run(
        [sys.executable, "-c", ALL_OTHERS, str(archive), str(tmp_path)],
        env={**os.environ, **server.env},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    lines = [line.split("|") for line in told.stdout.splitlines()]
    assert [state for state, _ in lines] == ["COMPLETED"] * 5 + ["FAILED"], told.stderr[-2000:]
    words = [message for _, message in lines]
    assert words[1].startswith("compared 1,") and words[2].startswith("2 cases in the index")
    assert "refused (config" in words[5] and (tmp_path / "found" / "search.html").is_file()
    assert (tmp_path / "audit" / "audit.json").is_file() and (tmp_path / "audit" / "drift.json").is_file()
    (figures,) = tmp_path.glob("medsiam_*.prom")
    assert 'state="compared"} 1' in figures.read_text()


@pytest.mark.slow
def test_progress_worklist_and_link_are_artifacts(server):
    """After the runs above; of the worklist no words, keys and figures only."""
    told = {each["key"]: each for each in server.ask("artifacts/latest/filter", {})}
    (table,) = (each for key, each in told.items() if key == "worklist-archive")
    rows = json.loads(table["data"])
    assert {"case_id", "verdict", "report"} <= set(rows[0]) and not {"reason", "summary"} & set(rows[0])
    bars = [each["data"] for key, each in told.items() if key.startswith("progress-")]
    assert set(bars) == {100.0} and "worklist.html" in told["page-worklist"]["data"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["docker", "kubernetes"])
def test_a_job_template_is_taken_by_the_server_and_holds_what_prefect_s_own_does(server, kind):
    """Every key of the shipped template is there, and the defaults keep to their own schema."""
    ours = json.loads((ROOT / "flows" / "pools" / f"{kind}.json").read_text(encoding="utf-8"))
    shipped = server.ask("collections/views/aggregate-worker-metadata", method="GET")
    theirs = shipped[f"prefect-{kind}"][kind]["default_base_job_configuration"]
    assert set(theirs["job_configuration"]) == set(ours["job_configuration"])
    assert set(theirs["variables"]["properties"]) <= set(ours["variables"]["properties"])
    properties = ours["variables"]["properties"]
    defaults = {name: told["default"] for name, told in properties.items() if "default" in told}
    set_ones = {key: value for key, value in defaults.items() if value is not None}
    assert not validate(set_ones, ours["variables"])
    assert validate({"env": "no mapping"}, ours["variables"])
    WorkPoolCreate(name=kind, type=kind, base_job_template=ours)
    made = server.ask("work_pools/", {"name": f"trial-{kind}", "type": kind, "base_job_template": ours})
    assert made["base_job_template"]["job_configuration"] == ours["job_configuration"]


def test_all_flows_of_the_contract_are_deployed_on_the_pool_gpu():
    names = {told["entrypoint"].partition(":")[2] for told in DEPLOYED}
    assert names >= FLOWS
    for told in DEPLOYED:
        assert told["work_pool"]["name"] == "gpu" and told["work_pool"]["work_queue_name"].startswith("gpu-")
        assert all(each["slug"] and each["timezone"] and each["cron"] for each in told.get("schedules", ()))


def test_a_single_box_serves_what_prefect_yaml_deploys():
    """The same names, places and schedules; Prefect takes no job variables without a pool."""
    served = {each.name: each for each in deployments()}
    assert set(served) == {told["name"] for told in DEPLOYED}
    for told in DEPLOYED:
        one = served[told["name"]]
        assert one.parameters == told["parameters"] and not one.job_variables and not one.work_pool_name
        assert [each.slug for each in one.schedules] == [each["slug"] for each in told.get("schedules", ())]


def test_a_name_that_is_not_deployed_is_refused_and_not_waited_for():
    """A box that serves nothing looks like one that has nothing to do."""
    assert [each.name for each in deployments(["drift", "night"])] == ["night", "drift"]
    with pytest.raises(FlowStopped, match="has no deployment 'nihgt'; choose from night"):
        next(deployments(["night", "nihgt"]))


def test_only_what_may_come_back_is_worth_another_try():
    """An archive that is away; not a refusal, not a bug; and no words of the input in either."""
    for error, kind in ((ArchiveRefused("Ursula"), ComesBack), (Unreadable("Ursula"), FlowStopped)):
        with pytest.raises(FlowStopped) as raised, closed():
            raise error
        assert type(raised.value) is kind and "Ursula" not in str(raised.value)
    with pytest.raises(FlowStopped, match=r"ValueError in test_flows\.py, line") as raised, closed():
        raise ValueError("Ursula")
    assert "Ursula" not in str(raised.value) and raised.value.__cause__ is None


def test_pauses_grow_and_are_not_in_step():
    """And last longer than an archive's restart of ten minutes."""
    assert pauses_s(RetrySettings(tries=4, first_pause_s=10.0)) == [10.0, 20.0, 40.0, 80.0]
    assert sum(pauses_s(RetrySettings())) > 600
    assert retried(lambda: 0, "nothing", RetrySettings()).retry_jitter_factor == RetrySettings().jitter


def test_the_settings_file_tells_the_defaults():
    """What stands in configs/flows.yaml is what happens without it, and every key of its own is there."""
    assert settings_of(SETTINGS) == FlowSettings()
    written = yaml.safe_load(SETTINGS.read_text(encoding="utf-8"))
    known = settings_as_dict(FlowSettings())
    for section in known:
        assert set(written[section]) == set(known[section]) - {"compare", "pacs"}


def test_prometheus_text_has_one_line_a_figure_and_escapes_labels():
    text = prometheus([Measure("cases", 3, {"run": 'a"b'}), Measure("cases", 1, {"run": "c"})])
    assert text.splitlines()[1:] == [
        "# TYPE medsiam_cases gauge", r'medsiam_cases{run="a\"b"} 3', 'medsiam_cases{run="c"} 1',
    ]  # fmt: skip


@pytest.mark.slow
def test_the_age_of_a_queue_is_told_as_prometheus_text(server):
    """A run that nobody fetches: the second GPU's queue has no worker here."""
    server.begin("compare_archive/night-second-gpu", archive="/nowhere", out="/nowhere")
    time.sleep(2)
    told = subprocess.run(
        [sys.executable, "-m", "flows.metrics"],
        env={**os.environ, **server.env},
        cwd=ROOT,
        capture_output=True,
        text=True,
    ).stdout
    assert 'medsiam_queue_runs{queue="gpu-1",state="waiting"} 1' in told
    (age,) = (
        line
        for line in told.splitlines()
        if line.startswith('medsiam_queue_oldest_waiting_seconds{queue="gpu-1"')
    )
    assert float(age.split()[-1]) >= 1.0


@pytest.mark.slow
def test_no_name_and_no_number_is_in_prefect_s_data_base(server, tmp_path):
    """After all the runs above, and one of a file whose name tells whom it is of, which is refused."""
    bad = tmp_path / "Unmistakable.dcm"
    bad.write_bytes(b"no scan")
    config = tmp_path / "flows.yaml"
    config.write_text("told: {rows: 5}")
    told = {"archive": str(tmp_path), "index": str(tmp_path / "cases"), "results": "", "config": str(config)}
    assert "refused (refused" in server.ended(server.begin("index_archive/index", **told))["state"]["message"]
    content = b"".join(path.read_bytes() for path in server.home.glob("prefect.db*"))
    assert b"compare_case" in content and b"worklist" in content
    assert b"Unmistakable" not in content and not re.search(rb"P00[0-2]\b", content)


CRASH_AND_SWEEP = """
import sys
from flows.watch import *
with get_client(sync_client=True) as client:
    client.set_flow_run_state(sys.argv[1], Crashed(), force=True)
print(*(sweep(datetime.now(UTC) + timedelta(seconds=late), server_up_s=0.0) for late in (0, 60)))
"""


@pytest.mark.slow
def test_a_crash_that_no_automation_saw_is_found_by_asking(server):
    """Events die with a server that is killed; states stay. The automations have their time first."""
    run = server.begin("compare_archive/night-second-gpu", archive="/nowhere", out="/nowhere")
    told = subprocess.run(
        [sys.executable, "-c", CRASH_AND_SWEEP, run],
        env={**os.environ, **server.env},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert told.stdout.split() == ["0", "1"], told.stderr[-2000:]
    assert server.run(run)["state"]["name"] == "AwaitingRetry"
