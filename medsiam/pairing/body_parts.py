"""Which regions of the body a BodyPartExamined names; departments write it in many ways."""

from __future__ import annotations

import re

EVERYWHERE = frozenset({"everywhere"})

_NAMES = {
    "head": "HEAD BRAIN SKULL CRANIUM CEREBRUM NEUROCRANIUM ORBIT ORBITS FACE SINUS SINUSES IAC SELLA "
    "PITUITARY KOPF SCHAEDEL SCHADEL HIRN TEMPORALBONE",
    "neck": "NECK HALS LARYNX PHARYNX THYROID CAROTID CSPINE CERVICALSPINE HWS",
    "chest": "CHEST THORAX LUNG LUNGS LUNGE HEART CARDIAC MEDIASTINUM RIBS TORAX",
    "breast": "BREAST BREASTS MAMMA",
    "abdomen": "ABDOMEN ABD LIVER KIDNEY KIDNEYS PANCREAS SPLEEN LEBER BAUCH",
    "pelvis": "PELVIS PROSTATE UTERUS BLADDER RECTUM BECKEN HIP HIPS HUEFTE",
    "thoracic spine": "TSPINE THORACICSPINE BWS",
    "lumbar spine": "LSPINE LUMBARSPINE LSSPINE LWS SACRUM",
    "shoulder": "SHOULDER SCHULTER CLAVICLE SCAPULA",
    "upper arm": "HUMERUS UPPERARM",
    "elbow": "ELBOW ELLENBOGEN",
    "forearm": "FOREARM RADIUS ULNA",
    "hand": "HAND WRIST FINGER THUMB HANDGELENK",
    "thigh": "THIGH FEMUR UPPERLEG",
    "knee": "KNEE KNIE PATELLA",
    "lower leg": "TIBIA FIBULA LOWERLEG CALF",
    "foot": "FOOT ANKLE TOE CALCANEUS FUSS HEEL",
}
_REGION = {word: region for region, words in _NAMES.items() for word in words.split()}
_SEVERAL = {
    "SPINE": frozenset({"neck", "thoracic spine", "lumbar spine"}),
    "TLSPINE": frozenset({"thoracic spine", "lumbar spine"}),
    "HEADNECK": frozenset({"head", "neck"}),
    "NECKCHEST": frozenset({"neck", "chest"}),
    "CHESTABDOMEN": frozenset({"chest", "abdomen"}),
    "ABDOMENPELVIS": frozenset({"abdomen", "pelvis"}),
    "CHESTABDOMENPELVIS": frozenset({"chest", "abdomen", "pelvis"}),
    "CHESTABDPELVIS": frozenset({"chest", "abdomen", "pelvis"}),
    "TAP": frozenset({"chest", "abdomen", "pelvis"}),
    "CAP": frozenset({"chest", "abdomen", "pelvis"}),
    "TRUNK": frozenset({"chest", "abdomen", "pelvis"}),
    "WHOLEBODY": EVERYWHERE,
    "BODY": EVERYWHERE,
}


def regions_of(body_part: str) -> frozenset[str]:
    """The regions that a body part names, EVERYWHERE for a whole body, empty where none is known."""
    words = re.sub(r"[^A-Z]+", " ", body_part.upper()).split()
    whole = _known("".join(words))
    return whole or frozenset().union(*map(_known, words))


def _known(word: str) -> frozenset[str]:
    if word in _SEVERAL:
        return _SEVERAL[word]
    return frozenset({_REGION[word]}) if word in _REGION else frozenset()
