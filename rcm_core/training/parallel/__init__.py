"""Parallelism for networks that are written for one device."""
