"""bfloat16 under Triton's interpreter, for tests.

The interpreter keeps a bfloat16 as its bit pattern in a uint16. It widens those bits when they are cast, but computes on them
as if they were integers, and cuts float32 off where hardware rounds to nearest even. `repair` puts float32 values in the place
of bit patterns wherever something is computed, and rounds what comes back. Atomic operations are not covered.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import triton.language as tl
from numpy.typing import NDArray
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

QUIET_NAN = 0x7FC0


def widen(bits: NDArray[np.uint16]) -> NDArray[np.float32]:
    """The values that bfloat16 bit patterns stand for."""
    return np.left_shift(bits, 16, dtype=np.uint32).view(np.float32)


def narrow(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """The nearest bfloat16 bit patterns, ties to even; every NaN becomes the quiet one."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    upper = bits >> 16
    # Half a unit, or a hair less if the last bit is even: a tie then stays where it is.
    nearest = (bits + (0x7FFF + (upper & 1))) >> 16
    return np.where(np.isnan(values), QUIET_NAN, nearest).astype(np.uint16)


def _is_bfloat16(handle: TensorHandle) -> bool:
    return bool(handle.dtype.scalar == tl.bfloat16)


def _as_float32(handle: TensorHandle) -> TensorHandle:
    return TensorHandle(widen(handle.data), tl.float32) if _is_bfloat16(handle) else handle


def _as_bfloat16(handle: TensorHandle) -> TensorHandle:
    """Comparisons give truth values: they stay."""
    return TensorHandle(narrow(handle.data), tl.bfloat16) if np.issubdtype(handle.data.dtype, np.floating) else handle


def _computing_in_float32(original: Callable[..., TensorHandle]) -> Callable[..., TensorHandle]:
    """An operation (builder, *operands, function) that computes in float32 and rounds once if its operands are bfloat16."""

    def compute(builder: Any, *arguments: Any) -> TensorHandle:
        *operands, function = arguments
        if not all(_is_bfloat16(each) for each in operands):
            return original(builder, *arguments)
        return _as_bfloat16(original(builder, *map(_as_float32, operands), function))

    return compute


def _cast(original: Callable[..., TensorHandle]) -> Callable[..., TensorHandle]:
    def cast(builder: Any, source: TensorHandle, target: Any) -> TensorHandle:
        to_bfloat16 = target.scalar == tl.bfloat16
        if not to_bfloat16:
            return original(builder, _as_float32(source), target)
        return source if _is_bfloat16(source) else _as_bfloat16(TensorHandle(source.data.astype(np.float32), tl.float32))

    return cast


def _dot(original: Callable[..., TensorHandle]) -> Callable[..., TensorHandle]:
    def dot(builder: Any, left: TensorHandle, right: TensorHandle, *rest: Any) -> TensorHandle:
        return original(builder, _as_float32(left), _as_float32(right), *rest)

    return dot


def repair(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let kernels interpreted during this test compute on bfloat16 as a GPU does: dots accumulate in float32, results round to nearest."""
    for name in ("binary_op", "unary_op", "ternary_op"):
        monkeypatch.setattr(InterpreterBuilder, name, _computing_in_float32(getattr(InterpreterBuilder, name)))
    monkeypatch.setattr(InterpreterBuilder, "cast_impl", _cast(InterpreterBuilder.cast_impl))
    monkeypatch.setattr(InterpreterBuilder, "create_dot", _dot(InterpreterBuilder.create_dot))
