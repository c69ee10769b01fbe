"""Sections of params.yaml, their checks, and how they are read. No work happens here."""
