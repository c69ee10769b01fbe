"""Enables Triton's interpreter on machines without a GPU. Import this first: Triton decides when it is imported."""

import os

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
