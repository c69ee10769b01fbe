"""Measurements of Ray Train's overhead and recovery, and of memory and time of training steps."""
