"""The report: one self-contained page that a person wants to look at, made from the files of a run alone."""

from rcm_core.evaluation.report.page import render

__all__ = ["render"]
