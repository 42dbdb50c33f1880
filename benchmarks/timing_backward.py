"""Times of forward and backward: NSA beside dense attention, and static patterns beside dense attention and FlexAttention.

A backward pass is timed alone: `torch.autograd.grad` again and again on the graph of one forward pass.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from benchmarks.cases import LONG_NSA, Sizes, make_inputs, packed
from benchmarks.suite import example
from benchmarks.timing import BACKENDS, dense, median_ms, peak_bytes, time_kernels, try_ms
from nsa_dsl.op import AttentionOp
from nsa_dsl.pattern import Pattern
from nsa_dsl.verify.leaves import watch

STATIC = Sizes(heads=32, kv_heads=8, dim_qk=128, dim_v=128)

MaskMod = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def _causal(batch: Tensor, head: Tensor, i: Tensor, j: Tensor) -> Tensor:  # noqa: ARG001 - FlexAttention's signature
    return j <= i


def _window(batch: Tensor, head: Tensor, i: Tensor, j: Tensor) -> Tensor:  # noqa: ARG001 - FlexAttention's signature
    return (j <= i) & (i - j < 1024)


def _power(batch: Tensor, head: Tensor, i: Tensor, j: Tensor) -> Tensor:  # noqa: ARG001 - FlexAttention's signature
    distance = i // 256 - j // 256
    return (j <= i) & ((distance < 5) | (distance & (distance - 1) == 0) | (j < 256))


CASES: tuple[tuple[str, str, MaskMod], ...] = (
    ("causal", "causal", _causal),
    ("gemma", "local", _window),
    ("power_attention", "power_attention", _power),
)
"""Example, pattern, and the same for FlexAttention: dense causal, a window of 1,024, blocks of 256 (block-sparse)."""


def time_backward_cases(pattern: Pattern, lengths: tuple[int, ...] = (8192, 16384, 32768, 65536)) -> list[dict[str, Any]]:
    """NSA in the paper's shape, compressor and its gradients included: forward, backward, memory above the inputs, each kernel."""
    return [_row(_time_nsa, f"nsa {tokens}", AttentionOp(pattern), tokens) for tokens in lengths]


def time_static_cases(tokens: int = 16384) -> list[dict[str, Any]]:
    """Static patterns at 32 query and 8 KV heads, D = 128."""
    return [_row(_time_static, f"{file}.{name} {tokens}", example(file, name), mask, tokens) for file, name, mask in CASES]


def _row(time_one: Callable[..., dict[str, Any]], label: str, *arguments: Any) -> dict[str, Any]:
    """One line of the table. One that dies says so, and the lines after it still come."""
    try:
        return {"case": label, **time_one(*arguments)}
    except Exception as error:
        return {"case": label, "failed": f"{type(error).__name__}: {str(error)[:300]}"}
    finally:
        gc.collect()
        torch.cuda.empty_cache()


def _both_ms(forward: Callable[[], Tensor], leaves: Mapping[str, Tensor], cotangent: Tensor, label: str, runs: int = 10) -> dict[str, Any]:
    """Forward without gradients, and backward alone; for a peer that refuses, why."""

    def ahead() -> Tensor:
        with torch.no_grad():
            return forward()

    found: dict[str, Any] = {f"{label}_fwd_ms": try_ms(ahead, runs)}
    try:
        out = forward()
    except Exception as error:  # as in try_ms
        return found | {f"{label}_bwd_ms": f"refused: {type(error).__name__}: {str(error)[:80]}"}
    return found | {f"{label}_bwd_ms": try_ms(lambda: torch.autograd.grad(out, list(leaves.values()), cotangent, retain_graph=True), runs)}


def _time_op(op: AttentionOp, tokens: int, sizes: Sizes) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The op's own columns, and contiguous q, k, v and cotangent for its peers."""
    inputs = make_inputs(op.pattern, torch.bfloat16, tokens, sizes)
    call, leaves = watch(inputs)
    cotangent = packed((1, sizes.heads, tokens, sizes.dim_v), torch.bfloat16, torch.Generator(device=inputs.q.device).manual_seed(1))

    def forward() -> Tensor:
        out: Tensor = op(call.q, call.k, call.v, **call.options)
        return out

    def both() -> Any:
        return torch.autograd.grad(forward(), list(leaves.values()), cotangent)

    both()
    row: dict[str, Any] = {"fwd_bwd_gib": round(peak_bytes(both) / 2**30, 2), **_both_ms(forward, leaves, cotangent, "nsa_dsl")}
    modules = [op.module(inputs.q, sizes.dim_v, backward=backward) for backward in (False, True)]
    row |= time_kernels(modules, both)
    row["fwd_and_bwd_ms"] = round(median_ms(both, 5), 3)
    return row, {"q": inputs.q.contiguous(), "k": inputs.k.contiguous(), "v": inputs.v.contiguous(), "sent": cotangent.contiguous()}


def _time_dense(given: Mapping[str, Tensor]) -> dict[str, Any]:
    leaves = {name: given[name].detach().requires_grad_() for name in ("q", "k", "v")}
    row: dict[str, Any] = {}
    for name, backend in BACKENDS.items():
        row |= _both_ms(lambda backend=backend: dense(backend, **leaves), leaves, given["sent"], f"dense_{name}", 5)
        gc.collect()
    return row


def _time_nsa(op: AttentionOp, tokens: int) -> dict[str, Any]:
    row, given = _time_op(op, tokens, LONG_NSA)
    return {"tokens": tokens, **row, **_time_dense(given)}


def _time_static(pattern: Pattern, mask: MaskMod, tokens: int) -> dict[str, Any]:
    row, given = _time_op(AttentionOp(pattern), tokens, STATIC)
    return {"tokens": tokens, **row, **_time_dense(given), **_time_flex(mask, tokens, given)}


def _time_flex(mask: MaskMod, tokens: int, given: Mapping[str, Tensor]) -> dict[str, Any]:
    """FlexAttention compiled, and the making of its block mask apart: the first time, and once that is compiled too."""
    leaves = {name: given[name].detach().requires_grad_() for name in ("q", "k", "v")}
    torch._dynamo.reset()
    try:
        make = torch.compile(create_block_mask)
        begin = time.perf_counter()
        blocks = make(mask, None, None, tokens, tokens, device="cuda")
        torch.cuda.synchronize()
        row: dict[str, Any] = {"flex_first_mask_ms": round(1e3 * (time.perf_counter() - begin), 1)}
        row["flex_mask_ms"] = try_ms(lambda: make(mask, None, None, tokens, tokens, device="cuda"), 5)
        run = torch.compile(flex_attention)
    except Exception as error:  # as in try_ms
        return {"flex": f"refused: {type(error).__name__}: {str(error)[:80]}"}
    return row | _both_ms(lambda: run(*leaves.values(), block_mask=blocks, enable_gqa=True), leaves, given["sent"], "flex")
