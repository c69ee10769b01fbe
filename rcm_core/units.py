"""Binary units of memory."""

MIB = 2**20
"""Bytes of a mebibyte."""
GIB = 2**30
"""Bytes of a gibibyte."""
