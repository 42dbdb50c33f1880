"""Kernels compiled and run for real. By hand, on a machine with a GPU: pytest tests/gpu -n 4. `make test` never comes here."""

import pytest
import torch

if not torch.cuda.is_available():
    raise pytest.UsageError("tests/gpu needs a GPU")
