"""What the plugin does by itself, outside of Orthanc: settings, digests, a Prefect deployment."""

import importlib.util
import json
import sys
import types
from pathlib import Path

import pytest

from medsiam.evidence.case import SERIES_NUMBERS
from medsiam.pacs.values import COMPARABLE
from medsiam.serving.job import content_of
from tests.orthanc import free_port
from tests.test_pacs import playing

PLUGIN = Path(__file__).parents[1] / "medsiam" / "plugins" / "orthanc.py"


class OrthancError(Exception):
    """What Orthanc raises."""


@pytest.fixture(scope="module")
def plugin():
    """The plugin with a small stand-in for the module that Orthanc gives its scripts."""
    fake = types.ModuleType("orthanc")
    fake.OrthancException = OrthancError
    fake.GetConfiguration = lambda: "{}"
    for name in ("RegisterRestCallback", "RegisterOnChangeCallback", "ExtendOrthancExplorer"):
        setattr(fake, name, lambda *_: None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "orthanc", fake)
        spec = importlib.util.spec_from_file_location("medsiam_plugin", PLUGIN)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        yield module


@pytest.mark.parametrize(
    ("told", "why"),
    [
        ({"Urll": "http://127.0.0.1:1"}, "no setting 'Urll'"),
        ({"Url": "http://medsiam.example"}, "AllowPlain"),
        ({"Url": "ftp://127.0.0.1"}, "no address"),
        ({"PrefectUrl": "http://prefect.example/api"}, "AllowPlain"),
        ({"Metadata": 7}, "from 1024"),
    ],
)
def test_settings_that_make_no_sense_stop_orthanc_with_a_reason(plugin, told, why):
    """A key that is misspelt would otherwise be found months later."""
    with pytest.raises(ValueError, match=why):
        plugin.Settings(told)
    assert plugin.Settings({"Url": "https://medsiam.example", "Token": "t"}).token() == "t"


def test_what_a_study_holds_is_reckoned_as_the_worker_does(plugin):
    """The digest, the kinds that are scans, and what is our own."""
    scans = [("1.2.9", 3), ("1.2.10", 40)]
    assert plugin.content_of(scans) == content_of(scans) == content_of(scans[::-1])
    assert set(plugin.SCANS) == COMPARABLE and set(plugin.OWN_NUMBERS) == set(SERIES_NUMBERS.values())
    ours = {"SeriesInstanceUID": "2.25.1", "SeriesNumber": "9004 "}
    assert plugin._is_ours(ours) and not plugin._is_ours({**ours, "SeriesNumber": "4"})
    assert not plugin._is_ours({**ours, "SeriesInstanceUID": "1.2.3"}) and not plugin._is_ours({})


def test_a_prefect_deployment_takes_the_place_of_the_queue(plugin):
    """Keys alone travel, once for each content; pressed again it is another run."""
    with playing((201, {}, b'{"id": "run-1"}')) as (server, url):
        server.RequestHandlerClass.do_POST = server.RequestHandlerClass.do_GET
        settings = {"PrefectUrl": f"{url}/api", "PrefectDeployment": "d-1", "PrefectToken": "secret"}
        job = plugin.Serve(plugin.Settings(settings)).hand("compare", "1.2.3", "c" * 64, again=False)
    assert job == {"id": "run-1", "state": "queued", "told": "handed to Prefect"}
    assert server.asked == [("/api/deployments/d-1/create_flow_run", "Bearer secret")]


@pytest.mark.parametrize(
    ("status", "error"),
    [(400, "Refused"), (401, "Away"), (404, "Away"), (409, "Away"), (429, "Away"), (503, "Away")],
)
def test_only_what_no_setting_mends_is_given_up(plugin, status, error):
    """A study waits for a token, a name in the settings, a proxy."""
    with playing((status, {}, json.dumps({"error": "why"}).encode())) as (server, url):
        server.RequestHandlerClass.do_POST = server.RequestHandlerClass.do_GET
        with pytest.raises(getattr(plugin, error), match="why"):
            plugin.Serve(plugin.Settings({"Url": url})).hand("compare", "1.2.3", "", again=False)


def test_a_service_that_is_down_is_away(plugin, tmp_path):
    """As is a token file that is not there yet."""
    settings = {"Url": f"http://127.0.0.1:{free_port()}"}
    with pytest.raises(plugin.Away, match="cannot be reached"):
        plugin.Serve(plugin.Settings(settings)).ask("GET", "/jobs")
    with pytest.raises(plugin.Away, match="token file"):
        plugin.Serve(plugin.Settings({**settings, "TokenFile": str(tmp_path / "none")})).ask("GET", "/jobs")
