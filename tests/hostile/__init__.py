"""Hostile scans by name, each with its expected outcome; every module adds its own to CASES."""
