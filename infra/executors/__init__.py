"""Executors without a cluster: in this process, or over ranks that torchrun started."""
