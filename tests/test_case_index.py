"""What every engine of the case index must do, and what the index sees to itself."""

import contextlib
import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medsiam.cases import erase
from medsiam.cases.changes import link_changes
from medsiam.cases.filters import parse
from medsiam.cases.index import CaseIndex
from medsiam.errors import FilterRefused, IndexDamaged, IndexRefused
from tests import case_maker as maker


@pytest.fixture(params=maker.ENGINES)
def index(request, tmp_path):
    made = maker.index_in(tmp_path, request.param)
    yield made
    made.close()


def test_the_nearest_of_a_case_is_itself(index):
    """The law of any index."""
    index.add([maker.case(n) for n in range(20)])
    first, second = index.search(maker.vector(7), count=2)
    assert first.case.case_id == maker.case(7).case_id
    assert first.similarity == pytest.approx(1.0, abs=1e-3)
    assert second.similarity < 0.9


def test_neighbours_come_in_the_order_of_their_cosine(index):
    """Beside the cosine that numpy computes."""
    cases = [maker.case(n) for n in range(30)]
    index.add(cases)
    query = maker.vector(99)
    found = index.search(query, count=30)
    truth = sorted((float(case.vector @ query) for case in cases), reverse=True)
    assert [each.similarity for each in found] == pytest.approx(truth, abs=2e-3)


def test_adding_again_changes_nothing(index):
    """The same scan twice is one case."""
    cases = [maker.case(n) for n in range(5)]
    assert index.add(cases).new == 5
    again = index.add([*cases, cases[0]])
    assert (again.new, again.updated, again.unchanged) == (0, 0, 5)
    assert len(index) == 5


def test_a_case_that_says_something_new_is_replaced(index):
    """A label that was corrected must not stand beside the wrong one."""
    index.add([maker.case(1, labels={"grade": "II"}), maker.case(2)])
    added = index.add([maker.case(1, labels={"grade": "III", "side": "left"})])
    assert (added.new, added.updated) == (0, 1)
    (found,) = index.search(maker.vector(1), count=1)
    assert found.case.labels == {"grade": "III", "side": "left"}
    assert len(index) == 2


def test_what_is_stored_is_read_back(index):
    """Words, numbers, what is unknown, and pictures."""
    stored = maker.case(3, labels={"dx": "it's <b>"}, age=None, sex="", outcome="alive")
    index.add([stored])
    (found,) = index.store.find("scan", None, vectors=True, thumbnails=True)
    assert found.digest == stored.digest
    assert found.thumbnails == stored.thumbnails
    assert np.allclose(found.vector, stored.vector, atol=1e-3)


FILTERS = {
    "modality = 'MR'": 20,
    "modality = 'CT'": 0,
    "age between 22 and 24": 3,
    "not (age between 22 and 24)": 16,
    "sex = 'F' and age < 30": 5,
    "sex = 'F' or age < 30": 15,
    "sex != 'F'": 10,
    "age is null": 1,
    "not age is null": 19,
    "modality in ('MR', 'CT')": 20,
    "modality not in ('CT')": 20,
    "acquired = '2020-01-03'": 1,
    "acquired <= '2020-01-03'": 3,
    "acquired > '2020-01-03T09:00:00'": 18,
    "grade = 'II'": 2,
    "grade != 'II'": 1,
    "not grade = 'II'": 1,
    "grade is null": 17,
    "size > 2": 2,
    "size between 1 and 2": 1,
    "label.grade in ('I', 'II')": 2,
    "age != 20": 18,
    "body_part = 'x'' or ''1''=''1'": 0,
}


@pytest.mark.parametrize(("text", "count"), FILTERS.items(), ids=FILTERS)
def test_a_filter_means_the_same_on_every_engine(tmp_path, text, count):
    """Unknown values pass no test, also behind a not."""
    cases = [maker.case(n) for n in range(19)] + [maker.case(19, age=None)]
    for n, (grade, size) in enumerate((("II", "1.5"), ("II", "10"), ("III", "2.5"))):
        cases[n] = dataclasses.replace(cases[n], labels={"grade": grade, "size": size})
    for engine in maker.ENGINES:
        index = maker.index_in(tmp_path / engine, engine)
        index.add(cases)
        assert len(index.search(maker.vector(0), count=100, where=text)) == count
        assert index.store.count("scan", index.filter(text)) == count
        index.close()


def test_an_empty_index_answers_with_nothing(index):
    """Not an error: nothing looks like this yet."""
    assert index.search(maker.vector(1)) == ()
    assert len(index) == 0
    assert index.store.labels() == ()


def test_more_neighbours_than_cases_gives_all_cases(index):
    """No error, and none twice."""
    index.add([maker.case(n) for n in range(3)])
    assert len({each.case.case_id for each in index.search(maker.vector(1), count=50)}) == 3


@pytest.mark.parametrize("count", [0, -1, 100_000])
def test_a_count_out_of_range_is_refused(index, count):
    """Before the engine is asked."""
    with pytest.raises(IndexRefused, match="ask for 1 to"):
        index.search(maker.vector(1), count=count)


def test_the_query_s_own_patient_can_be_left_out(index):
    """Else the nearest case of a follow-up is the patient's own prior."""
    index.add([maker.case(1), maker.case(2), maker.case(3, patient_key="")])
    found = index.search(maker.vector(1), count=5, without_patient=maker.case(1).patient_key)
    assert {each.case.series_uid for each in found} == {"1.2.3.2", "1.2.3.3"}


def test_the_kinds_are_kept_apart(index):
    """A finding's vector says nothing of a whole scan."""
    lesion = dataclasses.replace(maker.case(1), case_id="ab" * 16, vector=maker.vector(1, maker.SIZE + 8))
    index.add([maker.case(1)])
    index.add([lesion], "finding")
    (found,) = index.search(lesion.vector, kind="finding")
    assert (found.case.case_id, len(index), index.store.count("finding")) == ("ab" * 16, 1, 1)


def test_a_dropped_case_is_in_no_answer(index):
    """Deleted is deleted, whatever the files still hold."""
    index.add([maker.case(n) for n in range(4)])
    index.drop([maker.case(2).case_id], "scan")
    assert len(index) == 3
    assert maker.case(2).case_id not in {each.case.case_id for each in index.search(maker.vector(2))}


def test_a_sample_is_drawn_by_its_seed(index):
    """The same controls stand in the report when it is made again."""
    index.add([maker.case(n) for n in range(30)])
    draws = [[case.case_id for case in index.store.sample("scan", None, 10, seed)] for seed in (1, 1, 2)]
    assert draws[0] == draws[1] != draws[2]
    assert len(set(draws[0])) == 10


def test_changes_are_linked_between_successive_scans_and_stale_ones_go(index):
    """A scan that comes in between takes the place of the long step."""
    whole = [maker.case(n, patient_key="a" * 20) for n in (1, 5, 9)]
    index.add([whole[0], whole[2]])
    assert link_changes(index, {"a" * 20}) == 1
    index.add([whole[1]])
    assert link_changes(index, {"a" * 20}) == 2
    assert sorted(case.interval_days for case in index.store.find("change", None)) == [4.0, 4.0]


def test_a_change_points_from_prior_to_current(index):
    """The direction is what is searched by."""
    before, after = maker.case(1, patient_key="a" * 20), maker.case(2, patient_key="a" * 20)
    index.add([before, after])
    link_changes(index, {"a" * 20})
    (found,) = index.search(after.vector - before.vector, kind="change")
    assert found.similarity == pytest.approx(1.0, abs=1e-3)
    assert (found.case.scan_id, found.case.prior_id) == (after.case_id, before.case_id)


def test_another_encoder_s_query_is_refused_with_the_remedy(index):
    """Numbers of two encoders have nothing to do with each other."""
    index.search(maker.vector(1), encoder_id=maker.ENCODER)
    with pytest.raises(IndexRefused, match=r"made-up@.*other@.*index rebuild"):
        index.search(maker.vector(1), encoder_id="other@ba9876543210")
    with pytest.raises(IndexRefused, match="other@"):
        CaseIndex.make(index.folder, "other@ba9876543210", maker.SIZES)


@pytest.mark.parametrize(
    "wrong", [np.ones(7), np.zeros(maker.SIZE), np.full(maker.SIZE, np.nan)], ids=["size", "zeros", "nan"]
)
def test_a_vector_that_cannot_be_compared_is_refused(index, wrong):
    """In a query and in a case."""
    with pytest.raises(IndexRefused):
        index.search(wrong)
    with pytest.raises(IndexRefused):
        index.add([maker.case(1, vector=wrong.astype(np.float32))])
    assert len(index) == 0


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("colour = 'red'", "no column 'colour'"),
        ("modalty = 'MR'", "did you mean modality"),
        ("modality = 'MR'; drop table scan", "cannot be read from ';"),
        ("'; drop table scan; --", "cannot be read|name of a column"),
        ("modality = MR", "a number or a 'text'"),
        ("modality = 'MR", "cannot be read"),
        ("age = 'old'", "age is a number"),
        ("modality = 3", "modality is text"),
        ("modality < 'MR'", "= and != only"),
        ("age between 1", "there must be `and`"),
        ("acquired = 'soon'", "no date"),
        ("(" * 30 + "age = 1", "nests deeper"),
        ("age = 1 age = 2", "an end"),
        ("modality = 'a\x00b'", "cannot be shown"),
        ("", "name of a column"),
        ("age = 1 " * 1000, "shorter"),
        ("case_id = 'a' union select * from scan", "cannot be read"),
        ("age > (select 1)", "a number or a 'text'"),
    ],
)
def test_a_filter_that_is_no_filter_is_refused_in_one_line(index, text, told):
    """Nothing of it reaches an engine."""
    with pytest.raises(FilterRefused, match=told) as refusal:
        index.search(maker.vector(1), where=text)
    assert "\n" not in str(refusal.value)


@given(st.text(max_size=60))
@settings(max_examples=300, deadline=None)
def test_any_text_is_a_filter_or_refused(text):
    """Whatever is typed: no other error comes out."""
    with contextlib.suppress(FilterRefused):
        parse(text, {"grade"})


@given(
    st.text(alphabet=st.characters(categories=("L", "N", "P", "S", "Zs")), max_size=40).filter(
        str.isprintable
    )
)
@settings(max_examples=30, deadline=None)
def test_any_printable_text_is_found_again_by_the_filter_that_quotes_it(tmp_path_factory, text):
    """Quotes, backslashes and comment signs are letters like others."""
    index = maker.index_in(tmp_path_factory.mktemp("quoted"))
    value = f"x{text}x"
    index.add([maker.case(1, labels={"note": value}), maker.case(2, labels={"note": "other"})])
    quoted = value.replace("'", "''")
    found = index.search(maker.vector(1), where=f"note = '{quoted}'")
    assert [each.case.series_uid for each in found] == ["1.2.3.1"]


def test_there_is_no_index_where_none_was_made(tmp_path):
    """With the command that makes one."""
    with pytest.raises(IndexRefused, match="medsiam index add"):
        CaseIndex.open(tmp_path)


def test_an_index_of_another_version_is_refused(tmp_path):
    """Rather than half understood."""
    index = maker.index_in(tmp_path)
    (index.folder / "index.json").write_text(json.dumps(index.card() | {"schema": "medsiam.index/9"}))
    with pytest.raises(IndexRefused, match=r"medsiam\.index/9"):
        CaseIndex.open(index.folder)


@pytest.mark.parametrize("card", ["", "{", "[]", '{"schema": "medsiam.index/1"}'])
def test_a_damaged_card_is_told(tmp_path, card):
    """One line, with the remedy."""
    index = maker.index_in(tmp_path)
    (index.folder / "index.json").write_text(card)
    with pytest.raises(IndexRefused, match=r"restore|schema"):
        CaseIndex.open(index.folder)


@pytest.mark.parametrize("part", ["data", "_versions"])
def test_a_damaged_table_is_told(tmp_path, part):
    """Not a traceback from the engine's depths."""
    index = maker.index_in(tmp_path)
    index.add([maker.case(n) for n in range(4)])
    index.close()
    for path in (index.folder / "cases" / "scan.lance" / part).iterdir():
        path.write_bytes(b"xx")
    with pytest.raises(IndexDamaged, match="restore"):
        CaseIndex.open(index.folder).search(maker.vector(1))


def test_tables_without_their_card_are_not_taken_over(tmp_path):
    """Someone's index whose card was lost must not be mixed with a new one."""
    index = maker.index_in(tmp_path)
    index.add([maker.case(1)])
    (index.folder / "index.json").unlink()
    with pytest.raises(IndexRefused, match="not empty"):
        maker.index_in(tmp_path)


def test_lancedb_reads_the_tables(tmp_path):
    """They are LanceDB tables, not a format of our own."""
    lancedb = pytest.importorskip("lancedb")
    index = maker.index_in(tmp_path)
    index.add([maker.case(n) for n in range(5)])
    table = lancedb.connect(index.folder / "cases").open_table("scan")
    (row,) = table.search(maker.vector(3)).limit(1).to_list()
    assert row["series_uid"] == "1.2.3.3"


def test_a_large_index_is_searched_by_its_search_index_and_finds_the_same(tmp_path):
    """Rows that came later are found too, before and after it is refreshed."""
    index = maker.index_in(tmp_path, exact_below=300)
    index.add([maker.case(n) for n in range(600)])
    index.settle()
    index.add([maker.case(n) for n in range(600, 640)])
    assert index.store.nearest("scan", maker.vector(620).tolist(), 1, None)[0].case.series_uid == "1.2.3.620"
    index.settle()
    for number in (3, 250, 639):
        assert index.search(maker.vector(number), count=1)[0].case.series_uid == f"1.2.3.{number}"
    (found,) = index.search(maker.vector(3), count=1, where="sex = 'F' and age > 500")
    assert found.case.sex == "F" and found.case.age > 500


def test_a_faded_half_of_an_embedding_is_no_trace():
    """Zeros stand in every file; what tells a case apart is sought all the same."""
    drawn = np.random.default_rng(0).normal(size=256).astype(np.float16)
    faded = drawn.copy()
    faded[136:] = 0.0
    whole, half = erase._pieces(drawn.tobytes()), erase._pieces(faded.tobytes())
    assert len(whole) == 4 and 2 <= len(half) < 4
    assert all(len(set(piece)) >= 12 for piece in half)
    assert erase._pieces(bytes(512)) == set()
