"""An address to the archive behind it."""

from __future__ import annotations

from medsiam.errors import ArchiveRefused
from medsiam.pacs.dicomweb import Dicomweb
from medsiam.pacs.dimse import Dimse
from medsiam.pacs.settings import ArchiveSettings
from medsiam.pacs.values import Archive


def open_archive(url: str, settings: ArchiveSettings | None = None) -> Archive:
    """The archive at https://host/dicom-web or dimse://AETITLE@host:port; nothing is asked of it yet.

    Raises ArchiveRefused for an address of another kind.
    """
    settings = settings or ArchiveSettings()
    if url.startswith(("https://", "http://")):
        return Dicomweb(url, settings)
    if url.startswith(("dimse://", "dimse-tls://")):
        return Dimse(url, settings)
    raise ArchiveRefused(
        f"{url[:80]!r} is no address of an archive; write https://host/dicom-web or dimse://AETITLE@host:port"
    )
