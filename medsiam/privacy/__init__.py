"""Scans without their patient, for research."""
