"""Samplers: the teacher's ODE, the student's few steps, and sampling jobs that executors run.

``scheduler`` keeps its path: published students name it in model_index.json.
"""
