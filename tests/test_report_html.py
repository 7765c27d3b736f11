"""The page: hostile text stays text, nothing is fetched, and every reader finds the verdict."""

from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

from medsiam.pairing.values import Comparability, Difference
from medsiam.report import html, wording
from medsiam.report.comparison_json import to_json
from tests import comparison_maker as maker

HOSTILE = [
    "<script>alert(1)</script>",
    "</script><script>alert(1)</script>",
    "</style><img src=x onerror=alert(1)>",
    '" onmouseover="alert(1)" x=\'',
    "{{ 7 * 7 }} {% include 'x' %} ${7*7}",
    "javascript:alert(1)",
    "<!-- --!> ]]> <![CDATA[",
    "&lt;script&gt; &#60;b&#62;",
]


def page(comparison=None) -> str:
    comparison = comparison or maker.comparison()
    return html.render(comparison, to_json(comparison, files={}))


class Parsed(HTMLParser):
    """What a browser would make of the page: its elements, and its text outside scripts."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.contents: dict[str, list[str]] = {"script": [], "style": []}
        self._raw: str | None = None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self._raw = tag if tag in self.contents else None
        if self._raw:
            self.contents[tag].append("")

    def handle_endtag(self, tag):
        self._raw = None

    def handle_data(self, data):
        if self._raw:
            self.contents[self._raw][-1] += data
        else:
            self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


CLEAN = Parsed(page())


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_header_text_adds_no_element_and_no_attribute(text):
    """Whatever a header says, the page has the same skeleton as with a harmless text."""
    harmless = Parsed(page(maker.with_header_text(maker.comparison(), "x")))

    hostile = Parsed(page(maker.with_header_text(maker.comparison(), text)))

    assert [tag for tag, _ in hostile.elements] == [tag for tag, _ in harmless.elements]
    assert [sorted(a) for _, a in hostile.elements] == [sorted(a) for _, a in harmless.elements]
    assert hostile.contents == harmless.contents
    assert text in hostile.text


def test_control_and_direction_marks_are_made_visible():
    """A right-to-left mark can turn "not malignant" round; a NUL can end a text."""
    parsed = Parsed(
        page(maker.with_header_text(maker.comparison(), "a\x00b\x1bc\u202ed\u2066e\u200bf\ud800g"))
    )

    assert "a�b�c�d�e�f" in parsed.text
    assert not set(parsed.text) & set("\x00\x1b\u202e\u2066\u200b")


def test_an_endless_header_text_is_cut():
    parsed = Parsed(page(maker.with_header_text(maker.comparison(), "m" * 100_000)))

    assert max(len(word) for word in parsed.text.split()) <= html.LONGEST_TEXT + 10


def test_the_policy_names_the_very_script_and_style_in_the_page():
    """One byte off, and the browser would run neither."""
    policy = next(a["content"] for a in CLEAN.all("meta") if "http-equiv" in a)
    scripts = [text for text in CLEAN.contents["script"] if '"use strict"' in text]

    for kind, text in (("style", CLEAN.contents["style"][0]), ("script", scripts[0])):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy and "unsafe" not in policy


def test_the_page_refers_to_nothing_outside_itself():
    """It opens from a disk without a network, and tells no server that it was opened."""
    references = [
        a[key] for _, a in CLEAN.elements for key in ("src", "href", "action", "srcset") if key in a
    ]

    assert all(reference.startswith(("data:image/", "#")) for reference in references)
    assert not re.search(r"url\(|@import|https?://", "".join(CLEAN.contents["style"]))
    assert not any("style" in a or any(key.startswith("on") for key in a) for _, a in CLEAN.elements)


def test_it_is_complete_without_scripts():
    """Pictures and figures stand in the page; only the viewer waits for its script."""
    hidden = [a.get("id") for _, a in CLEAN.elements if "hidden" in a]
    pictures = CLEAN.all("img")

    assert hidden == ["viewer"]
    assert len(pictures) >= 4 * 2 + 6 and all(a["alt"] for a in pictures)


def test_the_research_banner_stands_first_and_in_the_printed_footer():
    style = CLEAN.contents["style"][0]

    assert CLEAN.text.split("Change between two scans: mixed")[1].strip().startswith("Research use only")
    assert re.search(r"@page \{[^}]*@bottom-left \{ content: \"Research use only", style)


@pytest.mark.parametrize("verdict", wording.MEANING_OF_VERDICT)
def test_every_verdict_is_explained_in_one_sentence(verdict):
    comparison = replace(maker.stable(), verdict=verdict)

    assert wording.MEANING_OF_VERDICT[verdict] in Parsed(page(comparison)).text


def test_indeterminate_says_why():
    """An abstention without its reason is of no use to anyone."""
    difference = Difference("body part", "HEAD", "CHEST", "nothing can be set side by side")
    comparison = replace(
        maker.stable(),
        verdict="indeterminate",
        comparability=Comparability("not-comparable", (difference,)),
        registration=maker.registration(quality="failed", reasons=("only 4 % are seen by both",)),
    )

    text = Parsed(page(comparison)).text.split("Viewer")[0]

    assert "Why no verdict is given" in text
    assert "nothing can be set side by side" in text and "only 4 % are seen by both" in text


@pytest.mark.parametrize(("modality", "part"), [("", ""), ("", "HEAD"), ("MR", ""), ("MR", "HEAD")])
def test_the_header_says_what_is_not_told(modality, part):
    """It began with a lone dot where neither modality nor body part was known."""
    comparison = maker.stable()
    scan = comparison.current
    told = replace(scan, acquisition=replace(scan.acquisition, modality=modality, body_part=part))
    text = " ".join(Parsed(page(replace(comparison, current=told))).text.split())
    assert " ".join(filter(None, (modality or "modality not told", part, "· prior"))) in text


def test_a_pair_that_was_never_laid_on_each_other_still_makes_a_page():
    """No prior on the current's grid at all, and no matrix."""
    nothing = np.full((24, 48, 48), np.nan, np.float32)
    lost = maker.registration(quality="failed", prior_from_current=np.full((4, 4), np.nan))
    comparison = replace(
        maker.stable(),
        verdict="indeterminate",
        prior_on_current=nothing,
        registration=lost,
        change_map=nothing,
    )

    text = Parsed(page(comparison)).text

    assert wording.MEANING_OF_QUALITY["failed"] in text
    assert wording.HATCHED in text and wording.MATCHED_GREY not in text


@pytest.mark.parametrize("injected", [0, 60])
def test_a_size_that_none_reached_is_not_told_as_unmeasured(injected):
    """A blind pair must not read like one where nobody looked."""
    told = {"injected": injected}
    assert wording.detectable(None, told) == (wording.NONE_SEEN if injected else wording.NOT_MEASURED)
    assert wording.detectable(0.1, told) == wording.millilitres(0.1)
    assert wording.detectable(None, None) == wording.NOT_MEASURED


def test_a_radiograph_without_a_pixel_size_has_no_millimetres():
    """1 mm stands for it in the file."""
    scan = {"shape_kji": (1, 524, 640), "spacing_kji_mm": (1.0, 1.0, 1.0)}
    assert "mm" in wording.shape(scan) and "mm" not in wording.shape(scan, is_sized=False)


def test_what_was_not_measured_is_said_so():
    change = replace(maker.stable().change, smallest_detectable_ml=None, p_value=None)

    text = Parsed(page(replace(maker.stable(), change=change))).text

    assert text.count(wording.NOT_MEASURED) >= 3


def test_table_and_pictures_tell_kinds_by_sign_and_word_too():
    """Colour alone would leave one man in twelve out."""
    assert "● new" in re.sub(r"\s+", " ", CLEAN.text) and "○ resolved" in re.sub(r"\s+", " ", CLEAN.text)
    assert "solid orange" in CLEAN.text and "dashed blue" in CLEAN.text


def test_similar_cases_stand_in_the_page_whatever_else_is_told():
    """Before the provenance, also where a comparison has no note to show."""
    case = {
        "rank": 1, "case_id": "c" * 64, "similarity": 0.9, "modality": "MR", "acquired": None,
        "labels": {"outcome": "stable"}, "outcome": None,
    }  # fmt: skip
    comparison = replace(maker.stable(), notes=())
    report = to_json(comparison, files={}) | {"similar_cases": [case], "embedding_note": None}

    text = Parsed(html.render(comparison, report)).text

    assert text.index("Cases that look like the current scan") < text.index("Provenance")


def test_the_page_tells_things_in_the_order_in_which_they_are_asked():
    """First what changed, then where, then how sure, then how it was made."""
    order = ["One new and one resolved place.", "Viewer", "Findings", "what could not have been seen"]
    order += ["Comparability", "Registration", "Provenance"]

    places = [CLEAN.text.rindex(title) for title in order[:1]] + [CLEAN.text.index(t) for t in order[1:2]]
    headings = [place for title in order[2:] for place in [CLEAN.text.index(title, places[-1])]]

    assert places + headings == sorted(places + headings)


def test_many_findings_are_all_listed_but_not_all_pictured():
    """The file stays small enough for a PACS' web view."""
    many = tuple(maker.finding(label) for label in range(1, 61))
    parsed = Parsed(text := page(maker.comparison(findings=many, verdict="progressed")))

    assert len([a for a in parsed.all("article") if "id" in a]) == 60
    assert len([a for a in parsed.all("img") if "of finding" in a["alt"]]) == 4 * html.MOST_PICTURED
    assert len(text) < 8_000_000


def test_a_grid_turned_on_its_side_says_how_it_is_seen():
    sagittal = maker.grid_of(((1, 0, 0), (0, 0, -1), (0, 1, 0)))

    assert wording.SIGHT["sagittal"] in Parsed(page(maker.comparison(sagittal))).text
    assert wording.SIGHT["projection"] in Parsed(page(maker.radiograph())).text


def test_two_runs_give_the_same_page():
    assert page() == page()
