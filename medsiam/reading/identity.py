"""Who a scan is of, without saying who: keyed hashes of the patient's number.

A plain hash of an eight-digit number is undone in seconds, so every hash is an
HMAC under a secret key that lies outside of any index or report.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from pathlib import Path

from medsiam.errors import ConfigRefused

KEY_VARIABLE = "MEDSIAM_KEY"

# 20 hexadecimal digits are 80 bits: two of a billion patients collide with
# a probability below one in a million, and the key still fits a table column.
KEY_DIGITS = 20

# A key shorter than this can be guessed together with the patient numbers.
SHORTEST_KEY = 16

_FIELD_BREAK = "\x1f"


def load_key(config_key: str | None = None) -> bytes:
    """The secret of all patient keys: config, else environment, else a file.

    The file `medsiam/patient.key` below $XDG_CONFIG_HOME is made once, with
    mode 0600. Where it cannot be kept the key lives as long as the process.
    Raises ConfigRefused where a given key is shorter than SHORTEST_KEY bytes.
    """
    given = config_key or os.environ.get(KEY_VARIABLE)
    if not given:
        return _key_of_this_user()
    key = given.encode()
    if len(key) < SHORTEST_KEY:
        raise ConfigRefused(
            f"the patient key has {len(key)} bytes, it needs {SHORTEST_KEY} or more; "
            "make one with `python -c 'import secrets; print(secrets.token_hex(32))'`"
        )
    return key


def patient_key(patient_id: str | None, issuer: str | None, key: bytes) -> str | None:
    """Keyed hash of a patient's number and its issuer, None where there is no number."""
    number = (patient_id or "").strip()
    if not number:
        return None
    return keyed_hash(key, "patient", number, (issuer or "").strip())


def number_key(patient_id: str | None, key: bytes) -> str | None:
    """Keyed hash of a patient's number, whoever issued it; None where there is no number."""
    number = (patient_id or "").strip()
    return keyed_hash(key, "number", number) if number else None


def birth_key(birth_date: str | None, sex: str | None, key: bytes) -> str | None:
    """Keyed hash of birth date and sex, None where there is no birth date."""
    date = (birth_date or "").strip()
    if not date:
        return None
    return keyed_hash(key, "birth", date, (sex or "").strip().upper())


def keyed_hash(key: bytes, purpose: str, *fields: str) -> str:
    """KEY_DIGITS hexadecimal digits of HMAC-SHA256; one purpose cannot meet another's."""
    # Names of files may hold bytes that are no text.
    message = _FIELD_BREAK.join((purpose, *fields)).encode("utf-8", "surrogateescape")
    return hmac.new(key, message, hashlib.sha256).hexdigest()[:KEY_DIGITS]


def _key_of_this_user() -> bytes:
    base = os.environ.get("XDG_CONFIG_HOME") or os.path.join(os.path.expanduser("~"), ".config")
    path = Path(base) / "medsiam" / "patient.key"
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        return _stored_key(path)
    except OSError:
        return _ephemeral_key()


def _stored_key(path: Path) -> bytes:
    if not path.exists():
        _store_new_key(path)
    key = path.read_bytes().strip()
    if len(key) < SHORTEST_KEY:
        raise ConfigRefused(
            f"{path.name} holds {len(key)} bytes, a patient key needs {SHORTEST_KEY} or more; "
            "put the true key back, or remove the file to start with a new one"
        )
    return key


def _store_new_key(path: Path) -> None:
    # Written aside and linked into place: two processes that start together
    # agree on one key, and no reader ever sees half of one.
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(secrets.token_hex(32).encode())
        try:
            os.link(draft, path)
        except FileExistsError:
            return
    finally:
        draft.unlink(missing_ok=True)


_process_key: list[bytes] = []


def _ephemeral_key() -> bytes:
    # One for the whole process: the same patient must meet itself again.
    if not _process_key:
        _process_key.append(secrets.token_hex(32).encode())
    return _process_key[0]
