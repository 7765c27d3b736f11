"""Archives: a real Orthanc and dcmtk's storescp on loopback, and everything that goes wrong with them."""

import json
import shutil
import socket
import ssl
import subprocess
import threading
import time
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
import pydicom
import pytest
from typer.testing import CliRunner

from medsiam import cli
from medsiam.config import load_settings
from medsiam.errors import ArchiveRefused, InputRefused, NotComparable
from medsiam.evidence.write import write_evidence
from medsiam.pacs.dicomweb import Dicomweb
from medsiam.pacs.dimse import Dimse, receiving
from medsiam.pacs.exchange import fetch_with_prior, find_prior, send_folder
from medsiam.pacs.opening import open_archive
from medsiam.pacs.prior_rule import choose, earlier_studies, offer_of
from medsiam.pacs.settings import ArchiveSettings, PacsSettings, PriorSettings
from medsiam.pacs.values import SeriesFound, Stored, StudyFound
from medsiam.volume import Acquisition
from tests.evidence_maker import made_case, write_visit
from tests.orthanc import PASSWORD, USER, free_port, orthanc

ROOT = Path(__file__).parents[1]
QUICK = ArchiveSettings(timeout_s=5.0, retries=0)


def quiet(step):
    """Tells nobody."""


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """Orthanc with three visits of one patient: two MR that go together and a CT between them."""
    home = tmp_path_factory.mktemp("orthanc")
    move_port = free_port()
    with orthanc(home, move_port) as (http, dicom), pytest.MonkeyPatch.context() as patch:
        patch.setenv("MEDSIAM_PACS_USER", USER)
        patch.setenv("MEDSIAM_PACS_PASSWORD", PASSWORD)
        for visit, kind in ((1, "MR"), (2, "CT"), (3, "MR")):
            send_folder(Dicomweb(web(http), QUICK), write_visit(kind, visit, home / "scans"))
        yield http, dicom, home, move_port


@pytest.fixture
def password(monkeypatch):
    monkeypatch.setenv("MEDSIAM_PACS_USER", USER)
    monkeypatch.setenv("MEDSIAM_PACS_PASSWORD", PASSWORD)


def web(port):
    return f"http://127.0.0.1:{port}/dicom-web"


def addresses(archive):
    """The same archive by each of its ways."""
    http, dicom, _, move_port = archive
    moving = ArchiveSettings(timeout_s=5.0, retries=0, retrieve="move", move_port=move_port)
    name = f"dimse://ORTHANC@127.0.0.1:{dicom}"
    return {"web": Dicomweb(web(http), QUICK), "get": Dimse(name, QUICK), "move": Dimse(name, moving)}


@pytest.mark.parametrize("way", ["web", "get", "move"])
def test_the_prior_of_a_study_is_found_and_fetched(archive, password, tmp_path, way):
    """The CT in between is more recent and no prior of an MR; both are told."""
    fetched = fetch_with_prior(addresses(archive)[way], "1.2.3.3", tmp_path, PriorSettings(), quiet)
    taken = [pydicom.dcmread(next(path.glob("*.dcm"))) for path in (fetched.prior, fetched.current)]
    assert [ds.StudyInstanceUID for ds in taken] == ["1.2.3.1", "1.2.3.3"]
    assert len(list(fetched.prior.glob("*.dcm"))) == 8
    assert "2021-01-02" in fetched.sentence and "2022-01-02 (no series" in fetched.sentence


def test_the_archive_answers_to_its_name(archive):
    """C-ECHO; the CLI of dcmtk would say the same."""
    addresses(archive)["get"].echo()


@pytest.mark.parametrize("way", ["web", "get"])
def test_the_first_study_has_no_prior(archive, password, way):
    """Said with how many studies were seen."""
    with pytest.raises(NotComparable, match="no prior in the archive: 0 earlier"):
        find_prior(addresses(archive)[way], "1.2.3.1", PriorSettings())


@pytest.mark.parametrize("way", ["web", "get"])
def test_a_study_that_is_not_there_is_named(archive, password, way):
    """A typing mistake in the UID."""
    with pytest.raises(ArchiveRefused, match=r"holds no study '1\.2\.3\.99'"):
        find_prior(addresses(archive)[way], "1.2.3.99", PriorSettings())


@pytest.mark.parametrize("way", ["web", "get"])
def test_what_is_stored_comes_back_byte_for_byte(archive, password, tmp_path, way):
    """Sent twice it replaces itself."""
    folder = write_visit(
        "DX", 7, tmp_path / "a", PatientID=f"other-{way}", StudyInstanceUID=f"1.2.9.{len(way)}"
    )
    opened = addresses(archive)[way]
    assert send_folder(opened, folder).done == 1
    assert send_folder(opened, folder).failed == ()
    assert opened.fetch_series(f"1.2.9.{len(way)}", "1.2.3.7.4", tmp_path / "back") == 1
    first, back = (pydicom.dcmread(next(f.glob("*.dcm"))) for f in (folder, tmp_path / "back"))
    assert back.PixelData == first.PixelData and back.PatientName == first.PatientName


@pytest.mark.parametrize("way", ["web", "get"])
def test_evidence_stands_beside_the_scan(archive, password, tmp_path, way):
    """Orthanc takes and indexes every object, in the study of the current scan."""
    case = made_case("MR", tmp_path, PatientID=f"evidence-{way}")
    write_evidence(case, tmp_path / "result")
    opened = addresses(archive)[way]
    assert send_folder(opened, tmp_path / "result") == Stored(15)
    found = {series.uid for series in opened.find_series("1.2.3.2") if series.is_evidence}
    assert {case.series_uid(name) for name in ("report", "findings", "prior", "document")} <= found


@contextmanager
def storescp(folder, *options):
    """dcmtk's store provider, the second peer."""
    program = shutil.which("storescp")
    if program is None:
        pytest.skip("storescp is not installed (Debian: dcmtk)")
    port = free_port()
    folder.mkdir()
    process = subprocess.Popen([program, "-aet", "PEER", "-od", str(folder), *options, str(port)])
    try:
        for _ in range(100):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.05)
        yield port
    finally:
        process.terminate()
        process.wait(timeout=10)


def test_dcmtk_takes_what_is_sent(tmp_path):
    """A peer that shares nothing with Orthanc; the echo as well."""
    scans = write_visit("MR", 1, tmp_path / "scans")
    with storescp(tmp_path / "peer") as port:
        peer = Dimse(f"dimse://PEER@127.0.0.1:{port}", QUICK)
        peer.echo()
        assert send_folder(peer, scans).done == 8
    assert len(list((tmp_path / "peer").iterdir())) == 8


def test_a_peer_that_refuses_is_told_in_one_line(tmp_path):
    """storescp refuses every association here, and at times closes the line before that was read."""
    scans = write_visit("CR", 1, tmp_path / "scans")
    with (
        storescp(tmp_path / "peer", "--refuse") as port,
        pytest.raises(ArchiveRefused, match=r"(refused the association|ended the talk).*both AE titles"),
    ):
        send_folder(Dimse(f"dimse://PEER@127.0.0.1:{port}", QUICK), scans)


def test_a_wrong_name_of_the_archive_is_told(archive):
    """The most frequent mistake of all: the AE title."""
    with pytest.raises(ArchiveRefused, match="check both AE titles"):
        Dimse(f"dimse://WRONG@127.0.0.1:{archive[1]}", QUICK).echo()


def certificate(folder, name):
    """(key, certificate) of this machine, signed by itself."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    names = [str(folder / f"{name}-{part}.pem") for part in ("key", "cert")]
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-keyout", names[0]]
    command += ["-out", names[1], "-subj", f"/CN={name}", "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run(command, check=True, capture_output=True)
    return names


def test_dimse_by_tls_speaks_with_whom_it_trusts_alone(tmp_path):
    """Orthanc asks for our certificate too; a stranger's is refused by either side."""
    (their_key, theirs), (our_key, ours) = (certificate(tmp_path, name) for name in ("archive", "us"))
    more = {
        "DicomTlsEnabled": True, "DicomTlsCertificate": theirs, "DicomTlsPrivateKey": their_key,
        "DicomTlsTrustedCertificates": ours, "DicomAlwaysAllowEcho": True,
    }  # fmt: skip
    known = ArchiveSettings(timeout_s=5.0, ca_file=theirs, cert_file=ours, key_file=our_key)
    with orthanc(tmp_path, more=more) as (_, dicom):
        address = f"dimse-tls://ORTHANC@127.0.0.1:{dicom}"
        Dimse(address, known).echo()
        assert Dimse(address, known).find_studies(patient_id="nobody") == ()
        for stranger in (QUICK, replace(known, ca_file=ours), replace(known, cert_file=None)):
            with pytest.raises(ArchiveRefused):
                Dimse(address, stranger).echo()
    with pytest.raises(ArchiveRefused, match="unencrypted"):
        Dimse(address, replace(known, retrieve="move"))
    with pytest.raises(ArchiveRefused, match="PEM"):
        Dimse(address, replace(known, ca_file=tmp_path / "nothing.pem"))


def test_dcmtk_can_send_to_the_small_provider(tmp_path):
    """What C-MOVE needs, tried with another sender; an object sent twice is one file."""
    program = shutil.which("storescu")
    if program is None:
        pytest.skip("storescu is not installed (Debian: dcmtk)")
    path = next(write_visit("CR", 1, tmp_path / "scans").iterdir())
    with receiving(tmp_path / "kept", aet="MEDSIAM", port=0, host="127.0.0.1") as port:
        for _ in range(2):
            subprocess.run([program, "-aec", "MEDSIAM", "127.0.0.1", str(port), str(path)], check=True)
        wrong = subprocess.run(
            [program, "-aec", "OTHER", "127.0.0.1", str(port), str(path)], capture_output=True
        )
    kept = list((tmp_path / "kept").iterdir())
    assert len(kept) == 1 and wrong.returncode != 0
    assert pydicom.dcmread(kept[0]).PixelData == pydicom.dcmread(path).PixelData


@pytest.mark.parametrize("scheme", ["http://127.0.0.1:{}/dicom-web", "dimse://ORTHANC@127.0.0.1:{}"])
def test_an_archive_that_is_down_is_told_at_once(scheme):
    """No retry: nobody listens."""
    started = time.perf_counter()
    with pytest.raises(ArchiveRefused, match="cannot be reached"):
        open_archive(scheme.format(free_port())).find_studies(study_uid="1.2.3")
    assert time.perf_counter() - started < 5.0


def test_a_wrong_password_is_told_without_telling_it(archive, monkeypatch):
    """401 is final."""
    monkeypatch.setenv("MEDSIAM_PACS_USER", USER)
    monkeypatch.setenv("MEDSIAM_PACS_PASSWORD", "guessed-wrong")
    with pytest.raises(ArchiveRefused, match="does not accept the token") as told:
        Dicomweb(web(archive[0]), QUICK).find_studies(study_uid="1.2.3.1")
    assert "guessed" not in str(told.value)


class Playing(BaseHTTPRequestHandler):
    """Answers by the script of its server, and remembers what it was asked."""

    def do_GET(self):
        self.server.asked.append((self.path, self.headers.get("Authorization")))
        status, headers, body = self.server.script[min(len(self.server.asked), len(self.server.script)) - 1]
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        """Says nothing."""


@contextmanager
def playing(*script):
    """A small server with answers written down beforehand."""
    server = HTTPServer(("127.0.0.1", 0), Playing)
    server.script, server.asked = script, []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server, f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


BUSY, EMPTY = (503, {}, b""), (200, {"Content-Type": "application/dicom+json"}, b"[]")


def test_the_token_of_the_environment_is_sent(monkeypatch):
    """As a bearer token, in the header alone."""
    monkeypatch.setenv("MEDSIAM_PACS_TOKEN", "secret-token")
    with playing(EMPTY) as (server, url):
        assert Dicomweb(url, QUICK).find_studies(study_uid="1.2") == ()
    assert server.asked[0][1] == "Bearer secret-token" and "secret" not in server.asked[0][0]


def test_a_token_file_is_read_at_use(tmp_path, monkeypatch):
    """A file can be kept from other users, and be renewed."""
    monkeypatch.setenv("MEDSIAM_PACS_TOKEN", "of the environment")
    (tmp_path / "token").write_text("of-the-file\n")
    with playing(EMPTY) as (server, url):
        Dicomweb(url, ArchiveSettings(token_file=tmp_path / "token")).find_studies(study_uid="1.2")
    assert server.asked[0][1] == "Bearer of-the-file"


def test_only_a_certificate_that_is_trusted_is_spoken_to(tmp_path, monkeypatch):
    """A stranger's certificate is refused before the token is sent; with its authority named it passes."""
    monkeypatch.setenv("MEDSIAM_PACS_TOKEN", "secret-token")
    names = certificate(tmp_path, "localhost")
    with playing(EMPTY) as (server, url):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(names[1], names[0])
        server.socket = context.wrap_socket(server.socket, server_side=True)
        secure = url.replace("http://", "https://")
        with pytest.raises(ArchiveRefused, match=r"cannot be trusted .*archive\.ca_file"):
            Dicomweb(secure, QUICK).find_studies(study_uid="1.2")
        assert server.asked == []
        trusting = ArchiveSettings(timeout_s=5.0, retries=0, ca_file=Path(names[1]))
        assert Dicomweb(secure, trusting).find_studies(study_uid="1.2") == ()


def test_a_busy_archive_is_asked_again_and_no_more_than_told():
    """503 passes; one try too few is the refusal."""
    with playing(BUSY, EMPTY) as (server, url):
        assert Dicomweb(url, ArchiveSettings(retries=1)).find_studies(study_uid="1.2") == ()
        assert len(server.asked) == 2
    with playing(BUSY) as (server, url):
        with pytest.raises(ArchiveRefused, match="answered 503"):
            Dicomweb(url, QUICK).find_studies(study_uid="1.2")
        assert len(server.asked) == 1


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        ((302, {"Location": "http://127.0.0.1:1/"}, b""), "points to another address"),
        ((403, {}, b""), "no right"),
        ((404, {}, b""), "no DICOMweb service"),
        ((500, {}, b""), "look into its log"),
        ((200, {}, b"<html>"), "no JSON"),
        ((200, {}, b'{"a": 1}'), "no list"),
        ((200, {}, b'[{"0020000D": 5}]'), "no DICOM"),
    ],
)
def test_an_answer_that_makes_no_sense_is_one_clear_line(answer, told):
    """Neither a redirect with the secret nor a page of a proxy is followed or believed."""
    with playing(answer) as (server, url):
        with pytest.raises(ArchiveRefused, match=told) as error:
            Dicomweb(url, QUICK).find_studies(study_uid="1.2")
        assert len(server.asked) == 1
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (b"", "with nothing"),
        (b"--b\r\nContent-Type: application/dicom\r\n\r\nDICM", "breaks off"),
        (b"--b--\r\n", "sent no file"),
    ],
)
def test_a_series_that_breaks_off_is_not_taken_for_whole(tmp_path, body, told):
    """Half a file must not be compared."""
    kind = {"Content-Type": 'multipart/related; type="application/dicom"; boundary=b'}
    with playing((200, kind, body)) as (_, url), pytest.raises(ArchiveRefused, match=told):
        Dicomweb(url, QUICK).fetch_series("1.2", "1.3", tmp_path)


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("https://user:word@pacs.example/dicom-web", "others can see"),
        ("http://pacs.example/dicom-web", "unencrypted"),
        ("https:///dicom-web", "names no host"),
        ("dimse://PACS", "no DIMSE address"),
        ("ftp://pacs.example", "no address of an archive"),
    ],
)
def test_an_address_that_exposes_a_secret_or_makes_no_sense_is_refused(url, told):
    """Before anything is sent; a good one passes."""
    with pytest.raises(ArchiveRefused, match=told):
        open_archive(url)
    assert open_archive("https://pacs.example/dicom-web") is not None


def study(uid, day, patient="p"):
    return StudyFound(uid, patient, "", datetime.fromisoformat(day))


def series(uid, description, modality="MR", body_part="HEAD"):
    return SeriesFound(
        Acquisition(modality=modality, body_part=body_part, description=description, series_uid=uid), 40
    )


def test_the_prior_is_the_most_recent_that_is_like_enough():
    """A localiser of last month loses against the same sequence of last year."""
    now, settings = [series("9", "FLAIR axial")], PriorSettings(least_likeness=0.6)
    offers = [
        offer_of(study("2", "2024-05-01"), [series("2.1", "localizer")], now, settings),
        offer_of(study("1", "2023-05-01"), [series("1.1", "FLAIR axial")], now, settings),
        offer_of(study("0", "2022-05-01"), [series("0.1", "FLAIR axial")], now, settings),
    ]
    choice = choose(offers, settings)
    assert choice.offer.study.uid == "1"
    assert "2024-05-01" in choice.sentence and "2022-05-01" in choice.sentence


@pytest.mark.parametrize(
    ("other", "is_taken"),
    [
        (study("1", "2023-05-01"), True),
        (study("1", "2023-05-01", patient="q"), False),
        (study("1", "2025-05-01"), False),
        (study("1", "2003-05-01"), False),
        (study("9", "2023-05-01"), False),
    ],
)
def test_a_prior_is_of_the_same_patient_earlier_and_not_too_old(other, is_taken):
    """An archive may answer more than was asked for."""
    found = earlier_studies(study("9", "2024-05-01"), [other], PriorSettings())
    assert bool(found) is is_taken


def test_another_body_part_and_our_own_resampled_prior_are_no_prior():
    """The chest is no prior of a head, and evidence is no scan."""
    now, settings = [series("9", "FLAIR axial")], PriorSettings()
    chest = series("1", "FLAIR axial", body_part="CHEST")
    ours = SeriesFound(series("2.25.1", "FLAIR axial").acquisition, 40, is_evidence=True)
    assert offer_of(study("1", "2023-05-01"), [chest, ours], now, settings).prior is None


def test_a_folder_without_dicom_has_nothing_to_send(tmp_path):
    """The remedy names the format."""
    with pytest.raises(InputRefused, match="--formats dicom"):
        send_folder(Dicomweb("https://pacs.example", QUICK), tmp_path)


def test_the_settings_file_tells_the_defaults():
    """Every key stands in configs/pacs.yaml with what happens without it."""
    assert load_settings(ROOT / "configs" / "pacs.yaml", PacsSettings) == PacsSettings()


def test_send_tells_what_was_stored_and_ends_with_3_when_the_archive_says_no(archive, password, tmp_path):
    """The command, by its exit codes; one line, no secret."""
    folder = write_visit("CR", 8, tmp_path, PatientID="sent")
    done = CliRunner().invoke(cli.app, ["send", str(folder), "--to", web(archive[0]), "--json"])
    assert (done.exit_code, json.loads(done.stdout)) == (0, {"stored": 1, "failed": []})
    down = CliRunner().invoke(cli.app, ["send", str(folder), "--to", web(free_port())])
    assert down.exit_code == 3 and down.stderr.count("\n") == 1 and PASSWORD not in down.output


@pytest.mark.parametrize(
    "words",
    [
        ["compare", "--out", "x"],
        ["compare", "a", "b", "--out", "x", "--from", "https://h/d", "--study", "1"],
        ["compare", "--out", "x", "--from", "https://h/d"],
        ["compare", "a", "b", "--out", "x", "--study", "1"],
        ["send", "x"],
    ],
)
def test_half_a_question_is_wrong_usage(words):
    """Exit code 2, before anything is asked."""
    assert CliRunner().invoke(cli.app, words).exit_code == 2


def test_compare_takes_both_scans_from_the_archive(archive, password, tmp_path):
    """From a study's UID to a report whose first note tells the choice, and evidence to send."""
    cells = np.random.default_rng(1).integers(0, 4000, (64, 64))
    for visit in (1, 2):
        changes = {"PatientID": "chest", "StudyInstanceUID": f"1.2.7.{visit}", "cells": cells}
        send_folder(
            Dicomweb(web(archive[0]), QUICK),
            write_visit("DX", visit, tmp_path, SeriesInstanceUID=f"1.2.7.{visit}.1", **changes),
        )
    out = tmp_path / "out"
    words = ["compare", "--from", web(archive[0]), "--study", "1.2.7.2", "--out", str(out)]
    assert CliRunner().invoke(cli.app, [*words, "--formats", "dicom"]).exit_code == 0
    report = json.loads((out / "report.json").read_text())
    assert report["prior"]["study_uid"] == "1.2.7.1" and "2021-01-02" in report["notes"][0]
    assert (out / report["files"]["dicom_report"]).exists()


def test_a_study_without_prior_leaves_a_refusal(archive, password, tmp_path):
    """compare --from: exit 3 and report.json that says why."""
    words = ["compare", "--from", web(archive[0]), "--study", "1.2.3.1", "--out", str(tmp_path / "out")]
    assert CliRunner().invoke(cli.app, words).exit_code == 3
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["status"] == "refused" and "no prior" in report["refusal"]["message"]
