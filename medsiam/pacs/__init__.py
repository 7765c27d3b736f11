"""Archives: found, fetched from and stored to, by DICOMweb and by DIMSE."""
