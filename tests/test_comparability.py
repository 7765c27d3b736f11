"""Two scans are compared only where that means something, and the reasons are told."""

from dataclasses import dataclass, replace
from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medsiam.errors import IdentityRefused, NotComparable, SeriesAmbiguous
from medsiam.pairing.body_parts import EVERYWHERE, regions_of
from medsiam.pairing.comparability import check_comparable, judge, unknown_notes
from medsiam.pairing.identity_check import check_identity
from medsiam.pairing.sequences import sequence_family
from medsiam.pairing.series_match import REFUSED_SHARE, match_series, plane_of, series_likeness
from medsiam.volume import Acquisition

SPACING = (3.0, 1.0, 1.0)

FLAIR = {
    "echo_time_ms": 120.0,
    "repetition_time_ms": 9000.0,
    "inversion_time_ms": 2500.0,
    "scanning_sequence": "SE\\IR",
    "field_strength_t": 3.0,
    "manufacturer": "SIEMENS",
    "model": "Skyra",
    "slice_thickness_mm": 3.0,
}
SPIN_T1 = {
    **FLAIR,
    "echo_time_ms": 12.0,
    "repetition_time_ms": 550.0,
    "inversion_time_ms": None,
    "scanning_sequence": "SE",
}
SPIN_T2 = {**SPIN_T1, "echo_time_ms": 100.0, "repetition_time_ms": 5000.0}
CHEST_CT = {"kvp": 120.0, "kernel": "B30f", "manufacturer": "GE MEDICAL SYSTEMS", "slice_thickness_mm": 1.0}


def scan(protocol=None, *, modality="MR", body_part="HEAD", description="", told=None, **changes):
    """An acquisition; what is None in the protocol was not told."""
    technique = {
        name: value for name, value in {**(protocol or {}), **(told or {})}.items() if value is not None
    }
    return Acquisition(
        modality=modality, body_part=body_part, description=description, protocol=technique, **changes
    )


def verdict(prior, current, prior_spacing=SPACING, current_spacing=SPACING):
    return judge(prior, current, prior_spacing, current_spacing)


def whats(comparability):
    return [difference.what for difference in comparability.differences]


def family(description="", protocol=None, **told):
    return sequence_family(scan(protocol, description=description, told=told))


@pytest.mark.parametrize(
    ("description", "expected"),
    [
        ("t2_tirm_tra_dark-fluid", "FLAIR"),
        ("Ax T2 FLAIR", "FLAIR"),
        ("T2FLAIR 3D", "FLAIR"),
        ("Sag T1 FLAIR", "T1"),
        ("t1_mprage_sag_iso", "T1"),
        ("T1 post GD", "T1-contrast"),
        ("T1-Gd", "T1-contrast"),
        ("AX T1 SE +C", "T1-contrast"),
        ("T1 ohne KM", "T1"),
        ("T1 PRE CONTRAST", "T1"),
        ("t2_fl2d_tra_hemo", "T2*"),
        ("T2* GRE", "T2*"),
        ("t2_tse_tra", "T2"),
        ("STIR COR", "T2"),
        ("pd_tse", "PD"),
        ("SWI_Images", "SWI"),
        ("TOF_3D_multi-slab", "MRA"),
        ("ep2d_diff_b1000", "DWI"),
        ("ep2d_diff_b1000_ADC", "ADC"),
        ("localizer", "localiser"),
        ("DIR SPACE", ""),
        ("T1 MAP", ""),
        ("tse tra", ""),
        ("posterior fossa", ""),
        ("", ""),
    ],
)
def test_words_alone_name_the_sequence_or_nothing(description, expected):
    """Many archives tell no more than a name; what it does not say is not made up."""
    assert family(description) == expected


@pytest.mark.parametrize(
    ("protocol", "expected"),
    [
        (FLAIR, "FLAIR"),
        (
            {**FLAIR, "echo_time_ms": 388.0, "repetition_time_ms": 5000.0, "inversion_time_ms": 1800.0},
            "FLAIR",
        ),
        (SPIN_T1, "T1"),
        (SPIN_T2, "T2"),
        ({**SPIN_T1, "repetition_time_ms": 3000.0, "echo_time_ms": 20.0}, "PD"),
        ({**SPIN_T2, "inversion_time_ms": 160.0, "echo_time_ms": 50.0}, "T2"),
        ({"echo_time_ms": 3.0, "repetition_time_ms": 2300.0, "inversion_time_ms": 900.0}, "T1"),
        ({"echo_time_ms": 3.0, "repetition_time_ms": 8.0, "scanning_sequence": "GR"}, "T1"),
        ({"echo_time_ms": 20.0, "repetition_time_ms": 600.0, "scanning_sequence": "GR"}, "T2*"),
        ({"echo_time_ms": 90.0, "repetition_time_ms": 5000.0, "scanning_sequence": "EP\\SE"}, ""),
        (
            {
                "echo_time_ms": 2.0,
                "repetition_time_ms": 4.0,
                "scanning_sequence": "GR",
                "sequence_variant": "SS",
            },
            "",
        ),
        ({"echo_time_ms": 100.0}, ""),
        ({"image_type": ("DERIVED", "PRIMARY", "DIFFUSION", "ADC")}, "ADC"),
        ({"image_type": ("ORIGINAL", "PRIMARY", "LOCALIZER")}, "localiser"),
        ({**FLAIR, "image_type": ("DERIVED", "SECONDARY", "CBF")}, ""),
    ],
)
def test_times_alone_name_the_sequence_where_they_can(protocol, expected):
    """Names are a department's taste, physics is not."""
    assert family(protocol=protocol) == expected


def test_times_beat_words_that_they_rule_out():
    """A protocol copied and changed keeps its old name."""
    assert family("T1 tra", FLAIR) == "FLAIR"
    assert family("FLAIR", SPIN_T1) == "T1"


def test_words_choose_among_what_the_times_allow():
    """Time of flight and a T1 gradient echo have the same times."""
    fast = {"echo_time_ms": 4.0, "repetition_time_ms": 22.0, "scanning_sequence": "GR"}
    slow = {"echo_time_ms": 20.0, "repetition_time_ms": 28.0, "scanning_sequence": "GR"}
    assert [family("TOF", fast), family("T1", fast), family("", fast)] == ["MRA", "T1", ""]
    assert [family("SWI", slow), family("", slow)] == ["SWI", "T2*"]


def test_the_header_decides_on_the_contrast_agent():
    """A name kept from a template does not inject anything."""
    assert family("", SPIN_T1, contrast_agent=True) == "T1-contrast"
    assert family("T1 +C", SPIN_T1, contrast_agent=False) == "T1"
    assert family("", FLAIR, contrast_agent=True) == "FLAIR"


def test_other_modalities_have_no_sequence():
    """A chest CT named after a T1 vertebra is no T1 image."""
    assert sequence_family(scan(modality="CT", description="T1 vertebra")) == ""


@pytest.mark.parametrize(
    ("written", "regions"),
    [
        ("BRAIN", {"head"}),
        ("SKULL", {"head"}),
        ("thorax", {"chest"}),
        ("CHEST_ABDOMEN", {"chest", "abdomen"}),
        ("Chest/Abd/Pelvis", {"chest", "abdomen", "pelvis"}),
        ("C-SPINE", {"neck"}),
        ("WHOLE BODY", EVERYWHERE),
        ("TREASURE", set()),
        ("", set()),
    ],
)
def test_body_parts_are_understood_however_they_are_written(written, regions):
    """HEAD and BRAIN are one place, an unknown word is none."""
    assert regions_of(written) == regions


def test_two_like_scans_have_the_same_protocol():
    """The ordinary follow-up."""
    found = verdict(scan(FLAIR), scan(FLAIR, body_part="BRAIN"))
    assert (found.category, found.differences) == ("same-protocol", ())
    check_comparable(found)


@pytest.mark.parametrize(
    ("prior", "current", "what"),
    [
        (scan(modality="MR"), scan(modality="CT"), "modality"),
        (scan(body_part="HEAD"), scan(body_part="KNEE"), "body part"),
        (scan(FLAIR), scan(SPIN_T1), "sequence"),
        (scan(SPIN_T2), scan(FLAIR), "sequence"),
        (scan(description="ADC"), scan(description="T1 tra"), "sequence"),
        (
            scan({"view_position": "PA"}, modality="DX", body_part="CHEST"),
            scan({"view_position": "LL"}, modality="DX", body_part="CHEST"),
            "view position",
        ),
        (
            scan({"laterality": "L"}, body_part="KNEE"),
            scan({"image_laterality": "R"}, body_part="KNEE"),
            "laterality",
        ),
    ],
)
def test_what_shows_other_things_is_refused_with_reason_and_remedy(prior, current, what):
    """A number would be worse than none."""
    found = verdict(prior, current)
    assert found.category == "not-comparable"
    assert found.differences[0].what == what
    with pytest.raises(NotComparable, match=f"{what}.*choose two series"):
        check_comparable(found)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"echo_time_ms": 140.0}, "echo time"),
        ({"repetition_time_ms": 7000.0}, "repetition time"),
        ({"inversion_time_ms": 2100.0}, "inversion time"),
        ({"field_strength_t": 1.5}, "field strength"),
        ({"manufacturer": "Philips"}, "manufacturer"),
        ({"model": "Prisma"}, "scanner model"),
        ({"slice_thickness_mm": 5.0}, "slice thickness"),
        ({"contrast_agent": True}, "contrast agent"),
    ],
)
def test_a_changed_technique_is_told_with_its_effect(change, what):
    """Compared all the same, but the reader knows."""
    found = verdict(scan(FLAIR), scan({**FLAIR, **change}))
    assert (found.category, whats(found)) == ("protocol-changed", [what])
    assert len(found.differences[0].effect) > 20
    check_comparable(found)


@pytest.mark.parametrize(
    "change",
    [
        {"echo_time_ms": 125.0},
        {"repetition_time_ms": 9500.0},
        {"inversion_time_ms": 2450.0},
        {"field_strength_t": 2.89},
        {"manufacturer": "Siemens Healthineers"},
        {"model": "SKYRA"},
        {"scanning_sequence": "IR\\SE"},
        {"slice_thickness_mm": 3.3},
    ],
)
def test_what_lies_within_tolerance_is_no_difference(change):
    """Rounding and a company's new name change nothing in the image."""
    assert verdict(scan(FLAIR), scan({**FLAIR, **change})).category == "same-protocol"


def test_computed_and_digital_radiography_are_one_modality():
    """The detector was replaced, the projection was not."""
    view = {"view_position": "PA"}
    found = verdict(
        scan(view, modality="CR", body_part="CHEST"), scan(view, modality="DX", body_part="CHEST")
    )
    assert found.category == "same-protocol"


def test_an_agent_on_one_side_is_told_as_the_cause_of_what_may_look_new():
    """The commonest false progression."""
    t1 = verdict(scan(SPIN_T1), scan({**SPIN_T1, "contrast_agent": True}))
    assert (t1.category, whats(t1)) == ("protocol-changed", ["sequence"])
    ct = verdict(
        scan(CHEST_CT, modality="CT", body_part="CHEST"),
        scan({**CHEST_CT, "contrast_agent": True}, modality="CT", body_part="CHEST"),
    )
    assert whats(ct) == ["contrast agent"]
    assert "may be the agent alone" in t1.differences[0].effect == ct.differences[0].effect


def test_kernel_and_tube_voltage_of_ct_are_told():
    """Edges and bone change with them."""
    sharp = {**CHEST_CT, "kernel": "B70f", "kvp": 100.0}
    found = verdict(scan(CHEST_CT, modality="CT"), scan(sharp, modality="CT"))
    assert (found.category, whats(found)) == ("protocol-changed", ["tube voltage", "convolution kernel"])


def test_a_chest_seen_from_the_other_side_is_told_but_compared():
    """Ward and department: AP in bed, PA standing."""
    found = verdict(
        scan({"view_position": "PA"}, modality="DX"), scan({"view_position": "AP"}, modality="DX")
    )
    assert (found.category, whats(found)) == ("protocol-changed", ["view position"])


def test_parts_that_overlap_are_compared_where_they_do():
    """A chest beside a trunk, and anything beside a whole body."""
    chest, trunk, whole = (scan(modality="CT", body_part=p) for p in ("CHEST", "CHESTABDOMEN", "WHOLEBODY"))
    assert verdict(chest, trunk).category == "protocol-changed"
    assert verdict(chest, whole).category == "same-protocol"


def test_another_voxel_size_is_told_and_turned_rows_are_not():
    """Only the size matters, not which axis is called rows."""
    assert whats(verdict(scan(), scan(), SPACING, (3.0, 1.0, 1.3))) == ["pixel size"]
    assert whats(verdict(scan(), scan(), SPACING, (5.0, 1.0, 1.0))) == ["slice distance"]
    assert whats(verdict(scan(), scan(), (3.0, 0.5, 1.0), (3.0, 1.0, 0.5))) == []


def test_a_pixel_size_that_nobody_told_is_not_compared():
    """One millimetre stands for a pixel there."""
    nominal = scan({"pixel_size_known": False}, modality="DX")
    assert verdict(nominal, scan(modality="DX"), (1.0, 1.0, 1.0), (1.0, 0.14, 0.14)).differences == ()


def test_what_a_file_does_not_tell_is_a_note_and_no_difference():
    """NIfTI has no header to speak of: same protocol is assumed, and that is said."""
    bare = Acquisition()
    assert verdict(bare, bare).category == "same-protocol"
    assert verdict(bare, scan(FLAIR)).category == "same-protocol"
    notes = unknown_notes(bare, bare)
    assert "The files do not tell the sequence; the same protocol is assumed." in notes
    assert all(note.endswith(".") for note in notes)


def test_scans_that_tell_everything_leave_no_note():
    """Notes must mean something."""
    assert unknown_notes(scan(FLAIR), scan(FLAIR)) == ()


def test_the_notes_name_the_number_that_is_missing():
    """So that a reader can look it up."""
    notes = unknown_notes(scan(FLAIR), scan({**FLAIR, "field_strength_t": None}))
    assert notes == ("Not told by both files and so not compared: field strength.",)


techniques = st.fixed_dictionaries(
    {},
    optional={
        "echo_time_ms": st.sampled_from([3.0, 12.0, 90.0, 100.0, 120.0]),
        "repetition_time_ms": st.sampled_from([8.0, 500.0, 3000.0, 9000.0]),
        "inversion_time_ms": st.sampled_from([0.0, 160.0, 900.0, 2500.0]),
        "scanning_sequence": st.sampled_from(["SE", "GR", "SE\\IR", "EP"]),
        "contrast_agent": st.booleans(),
        "field_strength_t": st.sampled_from([1.5, 3.0]),
        "view_position": st.sampled_from(["PA", "AP", "LL", "LATERAL"]),
        "laterality": st.sampled_from(["L", "R", "B", "U"]),
        "kernel": st.sampled_from(["B30f", "B70f"]),
    },
)
acquisitions = st.builds(
    scan,
    techniques,
    modality=st.sampled_from(["MR", "CT", "CR", "DX", ""]),
    body_part=st.sampled_from(["HEAD", "BRAIN", "CHEST", "CHESTABDOMEN", "WHOLEBODY", ""]),
    description=st.sampled_from(["", "FLAIR tra", "T1 post", "T2* SWI", "ADC", "localizer", "T2 cor"]),
)
spacings = st.tuples(*[st.sampled_from([0.5, 1.0, 1.1, 3.0])] * 3)


@settings(max_examples=150, deadline=None)
@given(acquisitions, acquisitions, spacings, spacings)
def test_the_judgement_is_the_same_when_the_two_are_swapped(a, b, a_mm, b_mm):
    """Whether two scans can be compared does not depend on which came first."""
    one, other = judge(a, b, a_mm, b_mm), judge(b, a, b_mm, a_mm)
    assert one.category == other.category
    assert [(d.what, d.prior, d.current, d.effect) for d in one.differences] == [
        (d.what, d.current, d.prior, d.effect) for d in other.differences
    ]


@settings(max_examples=50, deadline=None)
@given(acquisitions, spacings)
def test_a_scan_is_always_comparable_with_itself(a, a_mm):
    """Whatever its header says or does not say."""
    assert judge(a, a, a_mm, a_mm).category == "same-protocol"


def visit(year, **changes):
    told = {"patient_key": "anna", "birth_key": "1970", "sha256": str(year), "series_uid": f"1.{year}"}
    return replace(scan(FLAIR, acquired=datetime(year, 5, 4, 10, 30)), **{**told, **changes})


def identity(prior, current, *, allow=False, keep=False):
    return check_identity(prior, current, allow_different_patients=allow, keep_order=keep)


def test_one_patient_in_order_needs_no_note():
    """The ordinary follow-up."""
    assert identity(visit(2023), visit(2024)) == ()


@pytest.mark.parametrize(
    "change", [{"patient_key": "berta"}, {"birth_key": "1980"}, {"patient_key": None, "birth_key": "1980"}]
)
def test_two_patients_are_refused_unless_that_is_meant(change):
    """The worst mistake a comparison can make."""
    with pytest.raises(IdentityRefused, match="--allow-different-patients"):
        identity(visit(2023), visit(2024, **change))
    notes = identity(visit(2023), visit(2024, **change), allow=True)
    assert "different patients was asked for" in notes[0]


def test_one_number_is_one_patient_s_where_a_scan_does_not_tell_who_issued_it():
    """Older scans of an archive often tell none; the prior is fetched by the same rule."""
    told = visit(2024, patient_key="anna of HERE", number_key="12", issuer="HERE")
    assert "one issuer was assumed" in identity(visit(2023, number_key="12"), told)[0]
    for other in (
        {"number_key": "13"},
        {"number_key": None},
        {"number_key": "12", "issuer": "THERE"},
        {"number_key": "12", "birth_key": "1980"},
    ):
        with pytest.raises(IdentityRefused, match="--allow-different-patients"):
            identity(visit(2023, **other), told)


@pytest.mark.parametrize("change", [{"patient_key": None}, {"patient_key": None, "birth_key": None}])
def test_a_missing_patient_number_is_told(change):
    """NIfTI files have none; the reader must know that nobody checked."""
    assert "not checked" in identity(visit(2023), visit(2024, **change))[0]


def test_a_prior_that_is_the_later_scan_is_refused_unless_kept():
    """Growth would be read as shrinking."""
    with pytest.raises(IdentityRefused, match=r"2024-05-04.*swap the two, or give --keep-order"):
        identity(visit(2024), visit(2023))
    assert "kept as asked" in identity(visit(2024), visit(2023), keep=True)[0]


def test_a_missing_date_is_told():
    """The order of the arguments is then all there is."""
    assert "order given was taken" in identity(visit(2023), visit(2024, acquired=None))[0]


def test_a_day_without_a_time_is_no_order_within_that_day():
    """Midnight is what reading puts where no time was told."""
    day, hour = datetime(2024, 5, 4), datetime(2024, 5, 4, 10)
    told = visit(2024, acquired=hour)
    assert "do not tell which" in identity(told, visit(2024, acquired=day, sha256=""))[0]
    with pytest.raises(IdentityRefused):
        identity(told, visit(2023, acquired=datetime(2024, 5, 3)))


def test_a_midnight_that_was_truly_told_is_an_order():
    """Emergency scans happen then."""
    midnight = visit(2024, acquired=datetime(2024, 5, 4))
    midnight = replace(midnight, protocol={**midnight.protocol, "acquired_time_known": True})
    with pytest.raises(IdentityRefused):
        identity(visit(2024, acquired=datetime(2024, 5, 4, 10), sha256=""), midnight)


def test_clocks_with_and_without_a_zone_are_compared_with_care():
    """Within the widest zone shift neither is earlier; beyond it one is."""
    local, zoned = datetime(2024, 5, 4, 10), datetime(2024, 5, 4, 8, tzinfo=UTC)
    assert "do not tell which" in identity(visit(2024, acquired=local), visit(2023, acquired=zoned))[0]
    with pytest.raises(IdentityRefused):
        identity(visit(2024, acquired=local), visit(2023, acquired=datetime(2024, 5, 1, tzinfo=UTC)))


def test_a_scan_against_itself_is_allowed_and_told():
    """The first thing a careful user tries."""
    assert "very same scan" in identity(visit(2023), visit(2023))[0]
    assert "one is a copy" in identity(visit(2023), visit(2023, series_uid="1.9"))[0]


@dataclass(frozen=True)
class Series:
    """A small stand-in for an entry of a folder."""

    acquisition: Acquisition
    shape_kji: tuple = (48, 256, 256)
    spacing_kji_mm: tuple = SPACING


def series(protocol, uid, description="", **changes):
    return Series(scan(protocol, description=description, series_uid=uid), **changes)


PRIORS = [
    series(SPIN_T1, "1.1", "T1 tra"),
    series(FLAIR, "1.2", "FLAIR tra"),
    series(SPIN_T2, "1.3", "T2 sag"),
]
CURRENTS = [series(FLAIR, "2.1", "FLAIR tra"), series(SPIN_T2, "2.2", "T2 tra")]


def test_the_pair_of_one_sequence_and_plane_is_chosen_and_told():
    """Three series against two: only one pair is right."""
    match = match_series(PRIORS, CURRENTS)
    assert (match.prior, match.current) == (1, 0)
    assert "'FLAIR tra' and 'FLAIR tra' were taken (sequence FLAIR, plane axial" in match.sentence
    assert match.runners_up[0].score < match.score <= 1.0


def test_swapping_the_visits_chooses_the_same_pair():
    """Else a comparison could not be antisymmetric."""
    match = match_series(CURRENTS, PRIORS)
    assert (match.prior, match.current) == (0, 1)


def test_equal_pairs_are_decided_by_their_uid_and_that_is_told():
    """The order of files in a folder must not decide."""
    twins = [series(FLAIR, "2.2", "FLAIR tra"), series(FLAIR, "2.1", "FLAIR tra")]
    for currents in (twins, twins[::-1]):
        match = match_series(PRIORS, currents)
        assert currents[match.current].acquisition.series_uid == "2.1"
        assert "1 other pair is as alike, time or the UID decided" in match.sentence


def visits_of(*told):
    """One FLAIR of each visit: its UID, its year and whose it is."""
    return [
        Series(
            scan(FLAIR, description="FLAIR", series_uid=uid, acquired=datetime(year, 5, 4), patient_key=whose)
        )
        for uid, year, whose in told
    ]


def test_one_series_is_not_compared_with_itself_where_there_is_another():
    """A folder that holds every visit is given on either side: "stable" would be a wrong answer."""
    both = visits_of(("1.1", 2023, "a"), ("1.2", 2024, "a"))
    for priors in (both, both[:1], both[::-1]):
        match = match_series(priors, both)
        told = priors[match.prior].acquisition.series_uid, both[match.current].acquisition.series_uid
        assert told == ("1.1", "1.2")
    alone = match_series(both[:1], both[:1])
    assert (alone.prior, alone.current) == (0, 0)


def test_another_patients_series_is_taken_only_where_there_is_no_other():
    """It would be refused, though the folder holds the right one."""
    currents = visits_of(("1.0", 2024, "b"), ("1.3", 2024, "a"))
    assert match_series(visits_of(("1.1", 2023, "a")), currents).current == 1
    assert match_series(visits_of(("1.1", 2023, "a")), currents[:1]).current == 0


def test_the_finer_of_two_like_pairs_is_taken():
    """More slices see more."""
    thin = {"shape_kji": (160, 256, 256), "spacing_kji_mm": (1.0, 1.0, 1.0)}
    sides = [[series(FLAIR, f"{n}.1", "FLAIR"), series(FLAIR, f"{n}.2", "FLAIR", **thin)] for n in (1, 2)]
    match = match_series(*sides)
    assert (match.prior, match.current) == (1, 1)


def test_a_pair_that_must_be_refused_ranks_below_every_other():
    """And two modalities share nothing at all."""
    t1, flair, bare = PRIORS[0], PRIORS[1], Series(Acquisition())
    ct = Series(scan(CHEST_CT, modality="CT", body_part="CHEST"))
    assert series_likeness(t1, flair) < REFUSED_SHARE < series_likeness(bare, flair)
    assert series_likeness(ct, flair) == 0.0
    assert "though no two series show the same" in match_series([t1, ct], [flair]).sentence


def test_a_side_without_series_is_refused():
    """Naming the side."""
    with pytest.raises(SeriesAmbiguous, match="the current holds 0"):
        match_series(PRIORS, [])


def test_the_plane_is_told_only_where_one_is_named():
    """A reformat named after two planes is neither."""
    names = ("t1 tra", "Sag T2", "COR STIR", "AX and COR", "texture", "T1")
    planes = [plane_of(scan(description=name)) for name in names]
    assert planes == ["axial", "sagittal", "coronal", "", "", ""]
