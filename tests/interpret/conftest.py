"""Kernels under Triton's interpreter. Triton reads the switch when it is first imported, so this folder is a process of its own."""

import os
import sys

import pytest

if "triton" in sys.modules and os.environ.get("TRITON_INTERPRET") != "1":
    raise pytest.UsageError("tests/interpret needs a process of its own: pytest tests/interpret")
os.environ["TRITON_INTERPRET"] = "1"
