"""Kernels compiled side by side before a call needs them, and a line that says so when it takes a while.

Triton compiles a kernel when it is first launched, one after the other and in silence. Before the first call of its kind the module's host
function runs here once more than it is asked to, with every launch replaced by a compilation, and these share the machine's cores.
"""

from __future__ import annotations

import os
import types
from collections.abc import Callable, Hashable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, wraps
from typing import Any

import torch
from torch import Tensor
from triton.runtime import _async_compile

from nsa_dsl.notices import LOG, explained

LAUNCHERS = {"_launch", "_launch_hopper"}
"""The functions through which generated modules launch all their kernels."""

PATIENCE = 1.0
"""Seconds of compiling after which a line says what takes so long."""


def compile_before_calls(module: types.ModuleType, entry: str, title: str, card: str) -> None:
    """Wrap the host function `entry` of a generated module: before the first call of each kind all kernels that it launches are compiled.

    title, card: what the line calls the module and its target. Calls, and whatever they raise, stay as they are.
    """
    run: Callable[..., Any] = vars(module)[entry]
    seen: set[Hashable] = set()

    @wraps(run)
    def prepared(*arguments: Any, **options: Any) -> Any:
        kind = (*map(_kind, arguments), *options, *map(_kind, options.values()))
        if kind not in seen:
            seen.add(kind)
            compile_kernels(run, arguments, options, title, card)
        return run(*arguments, **options)

    setattr(module, entry, prepared)


def compile_kernels(run: Callable[..., Any], arguments: tuple[Any, ...], options: Mapping[str, Any], title: str, card: str) -> int:
    """Compile what this call of a generated module's host function would launch. Returns how many kernels were not compiled yet.

    What fails here is left to the call itself, which meets it again and reports it.
    """
    if _async_compile.active_mode.get() is not None:
        return 0
    with ThreadPoolExecutor(min(32, os.cpu_count() or 1), "nsa_dsl compiles") as executor:
        mode = _async_compile.AsyncCompileMode(executor, ignore_errors=True)
        submitted = 0
        try:
            with explained(lambda: f"compiling {submitted or 'the'} kernels of {title} for {card}", PATIENCE), mode:
                try:
                    _without_launching(run)(*arguments, **options)
                finally:
                    submitted = len(mode.raw_futures)
        except Exception as problem:
            LOG.debug("%s: kernels are compiled as they are launched (%s: %s)", title, type(problem).__name__, problem)
        finally:
            # Interrupted, a mode stays on and hands later kernels to threads that are gone.
            _async_compile.active_mode.set(None)
    return submitted


def _without_launching(run: Callable[..., Any]) -> Callable[..., Any]:
    """The same function, with the functions that it calls, in a namespace whose launches compile only. The module itself stays as it is:
    another thread may be calling it."""
    names = dict(run.__globals__)
    for name, each in run.__globals__.items():
        if isinstance(each, types.FunctionType) and each.__globals__ is run.__globals__:
            names[name] = _rebound(each, names)
    for name in LAUNCHERS & names.keys():
        names[name] = _compiling(names[name])
    names["torch"] = _Zeroing()
    assert isinstance(run, types.FunctionType)
    return _rebound(run, names)


def _compiling(launch: Callable[..., None]) -> Callable[..., None]:
    return lambda kernel, *arguments, **options: launch(_Compiling(kernel), *arguments, **options)


def _rebound(function: types.FunctionType, names: dict[str, Any]) -> types.FunctionType:
    made = types.FunctionType(function.__code__, names, function.__name__, function.__defaults__, function.__closure__)
    made.__kwdefaults__ = function.__kwdefaults__
    return made


class _Zeroing:
    """torch, but for tensors without a value: they hold zeros. What no kernel has written is read here all the same, as an index for one,
    and tensors of the device `meta`, which nobody reads, would import half of torch for some operations."""

    empty = staticmethod(torch.zeros)
    empty_like = staticmethod(torch.zeros_like)

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


@dataclass(frozen=True, slots=True)
class _Compiling:
    """Stands for a kernel where it is launched."""

    kernel: Any

    def __getitem__(self, grid: Any) -> Callable[..., Any]:
        return lambda *arguments, **options: self.kernel.warmup(*arguments, grid=grid, **options)


def _kind(value: Any) -> Hashable:
    """What kernels may be specialised by: types, strides' divisibility, which arguments there are, and the order of magnitude of sizes.
    Every call asks. Of a dict's tensors only the first is looked at: where others differ, kernels are compiled when they are launched."""
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, Tensor):
        return value.dtype, value.numel().bit_length(), _divisible(value.stride())
    if isinstance(value, dict):
        return *value, _kind(next(iter(value.values()), None))
    if isinstance(value, (list, tuple)):
        return tuple(map(_kind, value))
    return type(value).__name__


@lru_cache(4096)
def _divisible(strides: tuple[int, ...]) -> tuple[bool, ...]:
    return tuple(each % 16 == 0 for each in strides)
