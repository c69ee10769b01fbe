"""Samplers: the teacher's ODE, the student's few steps, and sampling jobs that executors run.

The path of ``scheduler`` must not change: published students name it in model_index.json.
"""
