"""Angle distributions, the teacher's ODE sampler and the student's few-step sampler."""
