"""The least that Triton can be asked for."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def fill(x_ptr, size: tl.constexpr):
    """Ones."""
    tl.store(x_ptr + tl.arange(0, size), 1.0)
