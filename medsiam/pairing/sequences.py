"""Which contrast an MR series shows, told from its physics first and from its words second.

Echo, repetition and inversion time say which families are possible and which is
likely; a word of the description chooses among the possible. A word that the times
rule out is not believed, and where neither tells, the answer is "".
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from medsiam.volume import Acquisition

# The longest echo time of T1 and proton density images, and the shortest of T2:
# between them the words must decide. Ranges as in the textbooks on brain MR at 1.5 and 3 T.
LONGEST_SHORT_ECHO_MS = 35.0
SHORTEST_LONG_ECHO_MS = 60.0

# Fluid is nulled by an inversion this long before the echo, fat below the second
# number; T1 preparation (MPRAGE, T1 FLAIR) lies between.
FLUID_INVERSION_MS = 1400.0
LONGEST_FAT_INVERSION_MS = 350.0

# Scanners write small numbers here for series that have no inversion at all.
SHORTEST_INVERSION_MS = 50.0

# What times cannot contradict: the preparation that makes these is not in them.
_BEYOND_TIMES = ("localiser", "ADC", "DWI")

_WORDS = {
    "localiser": r"LOCALI[SZ]ERS?|SCOUTS?|SURVEY|TOPOGRAM|SURVIEW",
    "ADC": r"D?ADC",
    "DWI": r"DWI|DIFF(USION)?|DTI|TRACEW?|EP B\d+T?",
    "SWI": r"SWI(3D\w*)?|SWAN",
    "MRA": r"TOF|MRA|ANGIO(GRAPHY)?",
    "T2*": r"T2 ?(\*|STAR)W?|HEMO",
    "FLAIR": r"FLAIR|DARK ?FLUID",
    "T1": r"T1(WI?)?(FLAIR)?|MP ?RAGE|BRAVO|I?R?F?SPGR|VIBE|TFL3D\d*",
    "PD": r"PD(WI?)?|PROTON DENSITY",
    "T2": r"T2(WI?)?|STIR|HASTE",
}
# A letter before or after makes another word; a number before does not (T2FLAIR, 3D T1).
_PATTERNS = {
    name: re.compile(rf"(?<![A-Z])(?:[23]D)?(?:{words})(?![A-Z0-9*])") for name, words in _WORDS.items()
}

# Maps and preparations that are none of the families, whatever their times.
_NONE_OF_THESE = re.compile(
    r"(?<![A-Z])(DIR|DOUBLE INVERSION|EADC|FA(?! ?\d)|R?CB[FV]|MTT|TTP|TMAX|PERF(USION)?|PWI|DSC|P?C?ASL|"
    r"BOLD|FMRI|FIELD ?MAP(PING)?|PHA(SE)?|MAPS?|QSM)(?![A-Z0-9])"
)
_KINDS = {
    "localiser": {"LOCALIZER", "LOCALISER", "SCOUT", "TOPOGRAM", "SURVEY"},
    "ADC": {"ADC"},
    "DWI": {"DIFFUSION", "TRACEW", "DWI"},
    "SWI": {"SWI"},
    "MRA": {"TOF", "ANGIO", "MRA"},
}
_AGENT = re.compile(
    r"\+ ?(C|KM|GD|CM)(?![A-Z])|(?<![A-Z])(GD|GAD(O\w*)?|KM|CE|POST(GAD|GD|KM|CONTRAST)?|CONTRAST)(?![A-Z])"
)
_NO_AGENT = re.compile(r"(?<![A-Z])(PRE\w*|WITHOUT|W ?/ ?O|OHNE|NATIVE?|NON|NO)(?![A-Z])|- ?C(?![A-Z])")


@dataclass(frozen=True)
class _Possible:
    """The families that times allow, None where they tell nothing, and the likely one or ""."""

    families: frozenset[str] | None = None
    likely: str = ""


def sequence_family(acquisition: Acquisition) -> str:
    """The contrast an MR series shows, "" where it is not told.

    One of FLAIR, T1, T1-contrast, T2, T2*, PD, DWI, ADC, SWI, MRA and localiser.
    Of other modalities only a localiser is known.
    """
    family = _family(acquisition)
    if family == "T1" and agent_was_given(acquisition):
        return "T1-contrast"
    return family


def agent_was_given(acquisition: Acquisition) -> bool | None:
    """Whether a contrast agent was given: by the header, else a word that hints at one, else None."""
    told = acquisition.protocol.get("contrast_agent")
    if told is not None:
        return bool(told)
    text = words_of(acquisition)
    return True if _AGENT.search(text) and not _NO_AGENT.search(text) else None


def words_of(acquisition: Acquisition) -> str:
    """All words that describe a series, in capitals, single blanks between them."""
    protocol = acquisition.protocol
    names = ("protocol_name", "sequence_name", "part")
    text = " ".join((acquisition.description, *(str(protocol.get(name, "")) for name in names))).upper()
    return " ".join(re.sub(r"[^A-Z0-9*+/-]", " ", text).replace("-", " - ").split())


def _family(acquisition: Acquisition) -> str:
    kinds = {str(kind).upper() for kind in acquisition.protocol.get("image_type", ())}
    by_kind = next((name for name, names in _KINDS.items() if kinds & names), "")
    text = words_of(acquisition).replace(" - ", " ")
    words = list(_families_named(text))
    if by_kind == "localiser" or "localiser" in words:
        return "localiser"
    if acquisition.modality not in ("MR", ""):
        return ""
    if _NONE_OF_THESE.search(f"{text} {' '.join(sorted(kinds))}") and by_kind != "ADC":
        return ""
    if by_kind:
        return by_kind
    return _chosen(words, _possible(acquisition))


def _families_named(text: str) -> Iterator[str]:
    found = [name for name, pattern in _PATTERNS.items() if pattern.search(text)]
    if "FLAIR" in found and "T1" in found and "T2" not in found:
        # "T1 FLAIR" suppresses fluid by a short inversion: a T1 image.
        found.remove("FLAIR")
    return iter(found)


def _chosen(words: list[str], possible: _Possible) -> str:
    for word in words:
        if word in _BEYOND_TIMES or possible.families is None or word in possible.families:
            return word
    return possible.likely


def _only(family: str) -> _Possible:
    return _Possible(frozenset({family}), family)


def _one_of(*families: str, likely: str = "") -> _Possible:
    return _Possible(frozenset(families), likely)


def _possible(acquisition: Acquisition) -> _Possible:
    """What echo, repetition and inversion time and the kind of echo allow."""
    protocol = acquisition.protocol
    echo, repetition, inversion = (
        protocol.get(name) for name in ("echo_time_ms", "repetition_time_ms", "inversion_time_ms")
    )
    kinds = set(re.split(r"[^A-Z]+", str(protocol.get("scanning_sequence", "")).upper())) - {""}
    if echo is None or repetition is None:
        return _Possible()
    if inversion is not None and inversion >= SHORTEST_INVERSION_MS:
        return _inverted(echo, repetition, inversion)
    if "EP" in kinds:
        return _one_of("T2", "T2*", "SWI", "FLAIR")
    if "GR" in kinds:
        variant = set(str(protocol.get("sequence_variant", "")).upper().replace("\\", " ").split())
        return _gradient_echo(echo, repetition, is_prepared="IR" in kinds or "MP" in variant, variant=variant)
    if "SE" in kinds:
        return _spin_echo(echo, repetition, is_inverted="IR" in kinds, is_told_plain=inversion is not None)
    if echo >= SHORTEST_LONG_ECHO_MS:
        return _one_of("T2", "FLAIR", "T2*")
    if echo <= LONGEST_SHORT_ECHO_MS:
        return _one_of("T1", "PD", "MRA", "T2*", "SWI")
    return _one_of("PD", "T2", "T2*")


def _inverted(echo: float, repetition: float, inversion: float) -> _Possible:
    if inversion >= FLUID_INVERSION_MS and echo >= SHORTEST_LONG_ECHO_MS and repetition >= 3500.0:
        return _only("FLAIR")
    if LONGEST_FAT_INVERSION_MS <= inversion < FLUID_INVERSION_MS and echo <= LONGEST_SHORT_ECHO_MS:
        return _only("T1")
    if inversion < LONGEST_FAT_INVERSION_MS and repetition >= 1500.0:
        # Fat is nulled (STIR): what remains bright is water, as on T2.
        return _one_of("T2", "PD", likely="T2" if echo >= LONGEST_SHORT_ECHO_MS else "")
    return _Possible()


def _gradient_echo(echo: float, repetition: float, *, is_prepared: bool, variant: set[str]) -> _Possible:
    if "SS" in variant and "SP" not in variant:
        # Balanced steady state shows T2 over T1, which is no family here.
        return _one_of("MRA")
    if echo >= 12.0:
        return _one_of("T2*", "SWI", likely="T2*")
    if echo > 10.0:
        return _one_of("T1", "T2*", "SWI", "MRA")
    if is_prepared:
        return _only("T1")
    # Time of flight needs longer repetition; a spoiled echo this fast is T1-weighted.
    return _one_of("T1", "MRA", "T2*", "PD", likely="T1" if repetition <= 15.0 else "")


def _spin_echo(echo: float, repetition: float, *, is_inverted: bool, is_told_plain: bool) -> _Possible:
    if echo >= SHORTEST_LONG_ECHO_MS and repetition >= 1500.0:
        if is_inverted:
            return _one_of("FLAIR", "T2", likely="FLAIR" if echo >= 80.0 and repetition >= 7000.0 else "")
        return _only("T2") if is_told_plain else _one_of("T2", "FLAIR", likely="T2")
    if echo <= LONGEST_SHORT_ECHO_MS and repetition <= 1200.0:
        return _only("T1")
    if repetition >= 1800.0 and is_inverted:
        return _one_of("T1", "PD", "T2")
    if repetition >= 1800.0:
        return _only("PD") if echo <= LONGEST_SHORT_ECHO_MS else _one_of("PD", "T2")
    return _one_of("T1", "PD", "T2")
