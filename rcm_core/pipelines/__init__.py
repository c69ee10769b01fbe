"""Diffusers pipelines on disk: layout, checks, loading, conversion, and mini's pipelines.

Code for one family belongs to ``rcm_core.models``.
"""
