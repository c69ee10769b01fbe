"""Evaluation: judges, metrics, intervals, selection of candidates, report. Trains no student."""
