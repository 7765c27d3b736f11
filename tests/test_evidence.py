"""What goes back to the archive passes the standard's judges and says what report.json says."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import highdicom
import numpy as np
import pydicom
import pytest
import SimpleITK
from PIL import Image

from medsiam.errors import IdentityRefused, InputRefused
from medsiam.evidence import codes
from medsiam.evidence.capture import overview_sheet
from medsiam.evidence.case import Case
from medsiam.evidence.pdf import pdf_of
from medsiam.evidence.seg import WHAT_IS_MARKED, segmentation
from medsiam.evidence.sr import WHAT_IS_MEASURED, structured_report
from medsiam.evidence.write import evidence_of, write_evidence
from medsiam.reading import read_volume
from medsiam.reading.originals import check_is_dicom
from medsiam.report.drawing import data_url
from medsiam.report.pictures import scene_of
from medsiam.report.writer import write_comparison
from medsiam.volume import Grid
from tests.dicom_maker import KEY
from tests.evidence_maker import KINDS, NAME, NOW, made_case

VOLUMES = KINDS[:3]


def judge(name):
    """A tool of another maker, next to this Python or on the path; the test is skipped without it."""
    beside = Path(sys.executable).with_name(name)
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed (Debian: dicom3tools, dcmtk; PyPI: dcmqi)")
    return found


def said_by(*command):
    done = subprocess.run(command, capture_output=True)
    return done.returncode, (done.stdout + done.stderr).decode("utf-8", "replace").splitlines()


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Evidence of each kind of source, written once: kind -> (case, folder, names)."""
    made = {}
    for kind in KINDS:
        home = tmp_path_factory.mktemp(kind)
        case = made_case(kind, home)
        made[kind] = case, home, write_evidence(case, home / "result")
    return made


def with_acquisition(volume, **changes):
    return replace(volume, acquisition=replace(volume.acquisition, **changes))


def files_of(written, kind):
    return sorted((written[kind][1] / "result").rglob("*.dcm"))


@pytest.mark.parametrize("kind", KINDS)
def test_no_object_breaks_a_rule_of_the_standard(written, kind):
    """dciodvfy judges each object, dcentvfy the whole set together with both scans."""
    errors = []
    for path in files_of(written, kind):
        _, lines = said_by(judge("dciodvfy"), str(path))
        errors += [f"{path.name}: {line}" for line in lines if line.startswith("Error")]
    home = written[kind][1]
    code, lines = said_by(judge("dcentvfy"), *map(str, home.rglob("*.dcm")))
    assert errors == []
    assert (code, [line for line in lines if line.startswith("Error")]) == (0, [])


@pytest.mark.parametrize("kind", KINDS)
def test_other_readers_understand_the_report(written, kind, tmp_path):
    """dcmtk prints it, dcmqi takes each finding with its volume and its tracking UID."""
    case, home, names = written[kind]
    report = str(home / "result" / names["dicom_report"])
    code, lines = said_by(judge("dsrdump"), report)
    assert code == 0 and any("Qualitative Difference" in line for line in lines)
    told = tmp_path / "report.json"
    code, _ = said_by(judge("tid1500reader"), "--inputDICOM", report, "--outputMetadata", str(told))
    assert code == 0
    groups = json.loads(told.read_text())["Measurements"]
    assert [g["TrackingUniqueIdentifier"] for g in groups[:2]] == [
        f.tracking_uid for f in case.comparison.findings
    ]


@pytest.mark.parametrize("kind", VOLUMES)
def test_the_centre_of_a_segment_is_that_of_the_report(written, kind, tmp_path):
    """Read by dcmqi and SimpleITK, which share nothing with the writer: within half a voxel."""
    case, home, names = written[kind]
    said_by(
        judge("segimage2itkimage"), "--inputDICOM", str(home / "result" / names["dicom_findings"]),
        "--outputDirectory", str(tmp_path), "-t", "nrrd",
    )  # fmt: skip
    for finding in case.comparison.findings:
        image = SimpleITK.ReadImage(str(tmp_path / f"{finding.label}.nrrd"))
        k, j, i = np.argwhere(SimpleITK.GetArrayFromImage(image)).mean(axis=0)
        centre = image.TransformContinuousIndexToPhysicalPoint((float(i), float(j), float(k)))
        assert np.abs(np.subtract(centre, finding.centre_lps_mm)).max() < 0.5 * min(image.GetSpacing())


@pytest.mark.parametrize("kind", KINDS)
def test_each_finding_has_its_segment_and_its_group(written, kind):
    """Number, kind and tracking UID agree between SEG, SR and the comparison."""
    case, home, names = written[kind]
    seg = pydicom.dcmread(home / "result" / names["dicom_findings"])
    report = highdicom.sr.srread(home / "result" / names["dicom_report"])
    groups = report.content.get_volumetric_roi_measurement_groups()
    uids = [finding.tracking_uid for finding in case.comparison.findings]
    assert [segment.TrackingUID for segment in seg.SegmentSequence] == uids
    assert [group.tracking_uid for group in groups] == uids
    kinds = [
        group.get_qualitative_evaluations(codes.QUALITATIVE_DIFFERENCE)[0].value.value for group in groups
    ]
    assert kinds == ["129721008", "413322009"]


def test_the_report_is_unverified_and_names_both_studies_and_all_objects(written):
    """No person has looked, and a reader must find the prior and what else was made."""
    _, home, names = written["MR"]
    report = highdicom.sr.srread(home / "result" / names["dicom_report"])
    assert report.VerificationFlag == "UNVERIFIED"
    assert {study for study, *_ in report.get_evidence()} == {"1.2.3.1", "1.2.3.2"}
    assert report.StudyInstanceUID == "1.2.3.2"
    named = {instance for _, _, instance, _ in report.get_evidence()}
    made = {str(pydicom.dcmread(path).SOPInstanceUID) for path in files_of(written, "MR")}
    assert made - named == {str(report.SOPInstanceUID)}


def test_volumes_of_both_scans_and_their_difference_are_told(written):
    """The public code for the size now; the others have codes of their own."""
    case, home, names = written["MR"]
    report = highdicom.sr.srread(home / "result" / names["dicom_report"])
    group = report.content.get_volumetric_roi_measurement_groups()[0]
    told = {m.name.value: (m.value, m.unit.value) for m in group.get_measurements()}
    finding = case.comparison.findings[0]
    assert told["118565006"] == (pytest.approx(finding.volume_current_ml), "ml")
    assert told["size-prior"][0] == pytest.approx(finding.volume_prior_ml)
    assert told["size-difference"][0] == pytest.approx(finding.delta_ml)


def test_segments_and_report_say_why_their_volumes_differ(written, tmp_path):
    """A reader who counts a segment's voxels gets the place of change, not the structure's volume."""
    _, home, names = written["MR"]
    seg = pydicom.dcmread(home / "result" / names["dicom_findings"])
    assert {segment.SegmentDescription for segment in seg.SegmentSequence} == {WHAT_IS_MARKED}
    assert WHAT_IS_MEASURED in said_of_the_whole(home / "result" / names["dicom_report"])
    structured_report(made_case("MR", tmp_path, stable=True), None).save_as(tmp_path / "stable.dcm")
    assert WHAT_IS_MEASURED not in said_of_the_whole(tmp_path / "stable.dcm")


def said_of_the_whole(path):
    group = highdicom.sr.srread(path).content.get_image_measurement_groups()[0]
    return [child.TextValue for child in group[0].ContentSequence if "TextValue" in child]


@pytest.mark.parametrize("kind", VOLUMES)
def test_the_prior_lies_on_the_current_scan(written, kind):
    """Read back by our reader: the current's grid and frame of reference, the prior's voxels."""
    case, home, names = written[kind]
    back = read_volume(home / "result" / names["dicom_prior"], key=KEY)
    assert back.grid.is_close(case.comparison.current.grid, 1e-3)
    assert back.acquisition.frame_of_reference_uid == "1.2.3.2.5"
    assert back.array == pytest.approx(case.comparison.prior_on_current, abs=0.51)


def test_the_registration_takes_prior_points_to_the_current(written):
    """Its matrix undoes prior_from_current, and each scan is named by its files."""
    case, home, names = written["MR"]
    ds = pydicom.dcmread(home / "result" / names["dicom_registration"])
    current, prior = ds.RegistrationSequence
    matrix = prior.MatrixRegistrationSequence[0].MatrixSequence[0].FrameOfReferenceTransformationMatrix
    product = np.reshape(np.array(matrix, float), (4, 4)) @ case.comparison.registration.prior_from_current
    assert product == pytest.approx(np.eye(4), abs=1e-6)
    assert prior.FrameOfReferenceUID == "1.2.3.1.5" and len(prior.ReferencedImageSequence) == 8
    assert current.FrameOfReferenceUID == ds.FrameOfReferenceUID == "1.2.3.2.5"


def test_key_images_show_the_overview_and_every_finding(written):
    """Colour, in one series, none of them black."""
    images = [pydicom.dcmread(p) for p in files_of(written, "MR") if p.parent.name == "key_images"]
    assert len(images) == 3 and len({ds.SeriesInstanceUID for ds in images}) == 1
    assert all(ds.pixel_array.shape[2] == 3 and ds.pixel_array.max() > 200 for ds in images)


def test_signs_that_the_typeface_lacks_are_written_in_letters(tmp_path):
    """Otherwise an empty box stands in the picture where a minus should be."""
    case = made_case("DX", tmp_path)
    odd = replace(case, comparison=replace(case.comparison, summary="r\u00b2 \u2212 \u4e2d"))
    plain = replace(case, comparison=replace(case.comparison, summary="r^2 - ?"))
    sheets = [overview_sheet(made, scene_of(made.comparison)).tobytes() for made in (odd, plain)]
    assert sheets[0] == sheets[1]


def test_the_document_is_the_report_as_pdf(written):
    """Byte for byte between its length and its padding."""
    _, home, names = written["MR"]
    ds = pydicom.dcmread(home / "result" / names["dicom_document"])
    pdf = ds.EncapsulatedDocument[: ds.EncapsulatedDocumentLength]
    assert pdf.startswith(b"%PDF-") and pdf.rstrip().endswith(b"%%EOF")


def test_making_a_pdf_leaves_the_reading_of_pictures_strict():
    """The layout engine turns a guard of Pillow off, on which the reader of radiographs relies."""
    code = "from PIL import ImageFile; from medsiam.evidence.pdf import pdf_of; pdf_of('<p>a</p>'); "
    code += "raise SystemExit(int(ImageFile.LOAD_TRUNCATED_IMAGES))"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[1]).returncode == 0


def test_a_page_is_given_no_file_and_no_network(tmp_path):
    """A header's text could carry a link; none is followed."""
    picture = tmp_path / "x.png"
    Image.new("RGB", (40, 40), "red").save(picture)
    bare, linked = (pdf_of(f"<p>a</p>{img}") for img in ("", f'<img src="{picture.as_uri()}">'))
    inlined = pdf_of(f'<p>a</p><img src="{data_url(picture.read_bytes(), "image/png")}">')
    assert b"/Image" not in linked and len(linked) < len(bare) + 200
    assert b"/Image" in inlined


@pytest.mark.parametrize("kind", KINDS)
def test_all_objects_carry_the_patient_and_the_current_study(written, kind):
    """They stand beside the scan that they speak of."""
    for path in files_of(written, kind):
        ds = pydicom.dcmread(path, stop_before_pixels=True)
        assert (str(ds.PatientName), ds.PatientID, ds.StudyInstanceUID) == (NAME, "4711", "1.2.3.2")


def test_a_repeat_replaces_itself(written, tmp_path):
    """The same scans and version give the same UIDs, and no random number anywhere."""
    case, home, _ = written["enhanced"]
    write_evidence(case, tmp_path)
    for path in tmp_path.rglob("*.dcm"):
        assert path.read_bytes() == (home / "result" / path.relative_to(tmp_path)).read_bytes(), path.name


def test_another_prior_gives_other_uids(tmp_path):
    """Two comparisons of one scan must not overwrite each other."""
    case = made_case("MR", tmp_path)
    other = replace(
        case.comparison.prior, acquisition=replace(case.comparison.prior.acquisition, series_uid="9")
    )
    again = Case(replace(case.comparison, prior=other), case.prior, case.current, NOW)
    assert segmentation(case).SOPInstanceUID != segmentation(again).SOPInstanceUID


def test_a_stable_comparison_has_a_report_and_no_segmentation(tmp_path):
    """A segmentation must hold a segment; that nothing changed is said in the report."""
    case = made_case("MR", tmp_path, stable=True)
    assert segmentation(case) is None
    path = tmp_path / "report.dcm"
    structured_report(case, None).save_as(path)
    report = highdicom.sr.srread(path)
    assert report.content.get_volumetric_roi_measurement_groups() == []
    whole = report.content.get_image_measurement_groups()[0]
    told = [evaluation.value.value for evaluation in whole.get_qualitative_evaluations()]
    assert told[-2:] == ["stable", "129723006"]


def test_a_failed_registration_leaves_neither_matrix_nor_resampled_prior(tmp_path):
    """What is not believed must not move an image in a viewer."""
    case = made_case("CT", tmp_path)
    failed = replace(case.comparison.registration, quality="failed")
    made = replace(case.comparison, registration=failed, verdict="indeterminate")
    names = write_evidence(replace(case, comparison=made), tmp_path / "result")
    assert {"dicom_registration", "dicom_prior"}.isdisjoint(names)


def test_a_name_in_another_alphabet_comes_back_whole(tmp_path):
    """Decoded by the file's character set, written as UTF-8."""
    case = made_case("CR", tmp_path, PatientName="Ямада^Тарō", SpecificCharacterSet="ISO_IR 192")
    assert str(segmentation(case).PatientName) == "Ямада^Тарō"


def test_the_name_stands_in_the_dicom_objects_alone(tmp_path):
    """report.json, report.html and the PDF carry a key only."""
    case = made_case("MR", tmp_path)
    write_comparison(
        case.comparison, tmp_path / "out", write_more=lambda folder: write_evidence(case, folder)
    )
    surname = NAME.partition("^")[0].encode()
    told = [p for p in (tmp_path / "out").rglob("*") if p.is_file() and surname in p.read_bytes()]
    assert told and all(path.suffix == ".dcm" for path in told)
    document = pydicom.dcmread(tmp_path / "out" / "dicom" / "document.dcm")
    assert surname not in document.EncapsulatedDocument


def test_the_result_lists_its_objects_and_replaces_an_earlier_one(tmp_path, monkeypatch):
    """`files` speaks of what is there, and the folder is exchanged as a whole."""
    monkeypatch.setenv("MEDSIAM_KEY", KEY.decode())
    case = made_case("CR", tmp_path)
    evidence = evidence_of([tmp_path / "visit1", tmp_path / "visit2"], now=NOW)
    for _ in range(2):
        files = write_comparison(
            case.comparison, tmp_path / "out", formats=("json",), write_more=evidence(case.comparison)
        )
    assert json.loads((tmp_path / "out" / "report.json").read_text())["files"] == files
    assert all((tmp_path / "out" / path).exists() for path in files.values())


def test_two_patients_are_not_mixed_in_one_object(tmp_path):
    """An object belongs to one patient."""
    case = made_case("MR", tmp_path)
    other = replace(
        case.comparison.prior, acquisition=replace(case.comparison.prior.acquisition, patient_key="z")
    )
    told = replace(case.comparison.prior, acquisition=replace(other.acquisition, issuer="HERE"))
    assert replace(case, comparison=replace(case.comparison, prior=told))
    with pytest.raises(IdentityRefused, match="2 patient numbers"):
        Case(replace(case.comparison, prior=other), case.prior, case.current, NOW)


def test_a_scan_without_a_patient_is_refused(tmp_path):
    """NIfTI tells nobody's name; DICOM passes."""
    nibabel = pytest.importorskip("nibabel")
    path = tmp_path / "scan.nii.gz"
    nibabel.save(nibabel.Nifti1Image(np.arange(60, dtype=np.float32).reshape(3, 4, 5), np.eye(4)), path)
    with pytest.raises(InputRefused, match="no patient and no study"):
        check_is_dicom(path, key=KEY)
    made_case("CR", tmp_path)
    check_is_dicom(tmp_path / "visit1", key=KEY)


def test_a_scan_without_frame_of_reference_is_given_one(tmp_path):
    """Anonymised scans often lost theirs; SEG and the resampled prior must share one."""
    case = made_case("MR", tmp_path, FrameOfReferenceUID=None)
    names = write_evidence(case, tmp_path / "result")
    seg = pydicom.dcmread(tmp_path / "result" / names["dicom_findings"])
    prior = pydicom.dcmread(tmp_path / "result" / names["dicom_prior"] / "IM0001.dcm")
    assert seg.FrameOfReferenceUID == prior.FrameOfReferenceUID == case.frame_of_reference_uid


def test_enhanced_frames_may_tell_their_spacing_each(tmp_path):
    """Some vendors share no functional group at all."""
    case = made_case("enhanced", tmp_path)
    for header in case.current.headers:
        shared = header.SharedFunctionalGroupsSequence[0]
        for frame in header.PerFrameFunctionalGroupsSequence:
            frame.update(shared)
        del header.SharedFunctionalGroupsSequence
    assert segmentation(case).NumberOfFrames == 5


def test_a_left_handed_stack_keeps_its_places(tmp_path):
    """Slices that run against the cross product of their axes are legal."""
    case = made_case("MR", tmp_path)
    grid = case.comparison.current.grid
    flip = np.diag([-1.0, 1.0, 1.0, 1.0])
    flip[0, 3] = grid.shape[0] - 1
    volume = replace(
        case.comparison.current,
        array=case.comparison.current.array[::-1],
        grid=Grid(grid.shape, grid.world_from_index @ flip),
    )
    turned = replace(case.comparison, current=volume, labels=case.comparison.labels[::-1])
    first, second = (highdicom.seg.Segmentation.from_dataset(segmentation(c)).get_volume().array.sum()
                     for c in (case, replace(case, comparison=turned)))  # fmt: skip
    assert first == second
