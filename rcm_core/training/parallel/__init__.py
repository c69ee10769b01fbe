"""Parallelism applied from outside to networks written for one device."""
