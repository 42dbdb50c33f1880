"""The Gluon kernels of attention's gradient over a static relation, on the CPU, against autograd through the dense reference."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from nsa_dsl import reference
from nsa_dsl.compiler import compile_backward
from nsa_dsl.execute import load_module
from nsa_dsl.launch import LaunchShape, Pin, Tiles
from nsa_dsl.loader import load_spec
from nsa_dsl.pattern import Pattern
from tests.gluon_on_cpu import launch_hopper, tensors

LOG2E = 1.4426950408889634

CASES = [
    ("causal", 2, 1, 2, 1),
    ("causal", 1, 215, 4, 2),
    ("causal", 2, 128, 2, 1),
    ("window(100)", 1, 260, 2, 1),
    ("window(100)", 2, 260, 1, 1),
    ("{ i, j : i - 70 < j < i + 90 }", 1, 215, 1, 1),
    ("causal & (first(4) | window(60))", 1, 260, 2, 1),
    ("{ i, j : j + 150 <= i }", 1, 215, 2, 1),
    ("full", 1, 70, 2, 1),
    ("causal | prefix(70)", 1, 130, 1, 1),
]
"""Relation, batch, tokens, query and KV heads: pairs of heads and single ones, ends of tiles, whole tiles and none, rows without keys."""


DIMS = [(64, 64), (192, 128)]
"""Of queries and keys, and of values: of one box of the copy engine, and with a tail."""


def stand_in(wild: int) -> Callable[..., None]:
    """For `_launch`: of the plain kernels it adds up splits, does what rows_backward would for one plain branch or gated ones, and lets
    find_wild find `wild`; the others are not run."""

    def launch(kernel: Any, programs: int, *arguments: Any, **constants: Any) -> None:
        if kernel.is_gluon():
            launch_hopper(kernel, programs, *arguments, warps=constants["warps"])
            return
        given = dict(zip(kernel.arg_names, arguments, strict=False))
        if kernel.__name__ == "rows_backward":
            branches = [each[4:-4] for each in given if each.startswith("out_")]
            for place, branch in enumerate(branches):
                weight = given["gates_ptr"][..., place].sigmoid() if "gates_ptr" in given else torch.ones(())
                lse = given[f"lse_{branch}_ptr"]
                given[f"folded_delta_{branch}_ptr"].copy_((given["grad_out_ptr"].float() * given[f"out_{branch}_ptr"].float()).sum(-1))
                given[f"folded_lse_{branch}_ptr"].copy_(torch.where(lse == -torch.inf, torch.inf, lse * LOG2E - weight.log2()))
        if kernel.__name__ == "add_splits":
            for each in ("key", "value"):
                total = given[f"{each}_parts_ptr"].sum(0) + (given[f"{each}_partial_ptr"] if constants["ADD"] else 0.0)
                given[f"{each}_out_ptr"].copy_(total)
        if "wild_ptr" in given and wild:
            given["wild_ptr"].fill_(1)

    return launch


def gradients(
    pattern: Pattern, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, slots: Any = None, *, wild: int = 0, **own: Any
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Of the Gluon kernels, and of the reference, for one random gradient of the output. own: the module's names that are others."""
    wanted = ("q", "k", "v") if slots is None else ("q", "slots.s.keys", "slots.s.values")
    leaves = [each.double().requires_grad_() for each in ((q, k, v) if slots is None else (q, *slots["s"]))]
    compressors: Any = {} if slots is None else {"s": lambda *_: tuple(leaves[1:])}
    tokens = tuple(leaves) if slots is None else (leaves[0], k.double(), v.double())
    made: Any = reference.attend(pattern, *tokens, compressors=compressors, return_lse=True)
    out, lse = made
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(3)).to(q.dtype)
    expected = dict(zip(wanted, torch.autograd.grad(out, leaves, grad.double()), strict=True))
    module = vars(load_module(compile_backward(pattern, LaunchShape(q.shape[3], v.shape[3], "fp16", "sm_90")), "hopper"))
    module.update(_launch=stand_in(wild), _launch_hopper=launch_hopper, _on_hopper=lambda *_: True, hold_tile=lambda tile: tile, **own)
    outs, lses = {"output": out.detach().to(q.dtype)}, {"output": lse.detach().float()}
    return module["run_backward"](grad, {}, q, k, v, outs, lses, slots=slots, wanted=wanted), expected


def check(found: dict[str, Any], expected: dict[str, Any]) -> None:
    for name, each in expected.items():
        torch.testing.assert_close(found[name].float(), each.float(), atol=6e-3, rtol=6e-3, msg=f"the gradient of {name}")


@pytest.mark.parametrize("dims", DIMS)
@pytest.mark.parametrize(("relation", "batch", "tokens", "heads", "kv_heads"), CASES)
def test_static_relation(relation: str, batch: int, tokens: int, heads: int, kv_heads: int, dims: tuple[int, int]) -> None:
    pattern = load_spec(f"pattern p {{ output attend(tokens, {relation}) }}").pattern("p")
    q, *keys = tensors((batch, heads, tokens, dims[0]), *((batch, kv_heads, tokens, each) for each in dims))
    check(*gradients(pattern, q, *keys))


def test_groups_whose_keys_the_cache_holds_come_one_after_another() -> None:
    pattern = load_spec("pattern p { output attend(tokens, causal) }").pattern("p")
    q, k, v = tensors((2, 4, 150, 64), *[(2, 2, 150, 64)] * 2)
    check(*gradients(pattern, q, k, v, NEAR_BYTES=1))


@pytest.mark.parametrize("dims", DIMS)
@pytest.mark.parametrize("tokens", [5, 400])
def test_slots(tokens: int, dims: tuple[int, int]) -> None:
    """Too few tokens for a slot leave no keys at all."""
    pattern = load_spec("pattern p { s = compress(block = 8, stride = 4, by = mlp)\n output attend(s, causal) }").pattern("p")
    n_slots = max(0, (tokens - 8) // 4 + 1)
    q, k, v, *slots = tensors((1, 2, tokens, dims[0]), *((1, 1, rows, each) for rows in (tokens, n_slots) for each in dims))
    check(*gradients(pattern, q, k, v, slots={"s": tuple(slots)}))


def test_wild_stores_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a number is not finite, the plain kernels store the gradients."""
    monkeypatch.setattr(torch, "empty", lambda *size, **options: torch.full(size[0] if isinstance(size[0], tuple) else size, 7, **options))
    pattern = load_spec("pattern p { output attend(tokens, window(100)) }").pattern("p")
    q, k, v = tensors(*[(1, 1, 130, 64)] * 3)
    found, _ = gradients(pattern, q, k, v, wild=1)
    assert all((each == 7).all() for each in found.values())


SLOTS, NEAR, ALL, APART = "attend(s, causal)", "attend(tokens, window(100))", "attend(tokens, full)", "attend(tokens, causal, scale = 0.3)"
STEPS = "attend(tokens, { i, j : j // 96 <= i // 96 })"

JOINED = [
    ((SLOTS, NEAR), 2, 215, 4, 2),
    ((NEAR, SLOTS), 1, 70, 1, 1),
    ((SLOTS, NEAR), 1, 5, 2, 1),
    ((SLOTS, NEAR, APART), 1, 260, 2, 1),
    ((APART, NEAR, SLOTS), 1, 150, 3, 3),
    ((SLOTS, ALL, NEAR), 1, 150, 2, 1),
]
"""Branches, batch, tokens, query and KV heads: walks of different lengths, one without keys, and a branch before or after that is apart."""


def gated(branches: tuple[str, ...]) -> Pattern:
    """Branches b0, b1, ... over tokens or slots."""
    names = [f"b{place}" for place in range(len(branches))]
    lines = "\n".join(("s = compress(block = 8, stride = 4, by = mlp)", *map(" = ".join, zip(names, branches, strict=True))))
    return load_spec(f"pattern p {{ {lines}\n output gate({', '.join(names)}) }}").pattern("p")


def gated_gradients(
    pattern: Pattern, batch: int, tokens: int, heads: int, kv_heads: int, launch: Callable[..., None], dims: tuple[int, int] = (64, 64)
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Of the Gluon kernels, and of the reference. launch: for `_launch`."""
    sizes = [(batch, kv_heads, rows, each) for rows in (tokens, max(0, (tokens - 8) // 4 + 1)) for each in dims]
    q, k, v, *slots = tensors((batch, heads, tokens, dims[0]), *sizes)
    gates = torch.randn(batch, heads, tokens, len(pattern.branches), generator=torch.Generator().manual_seed(5))
    leaves = {name: each.double().requires_grad_() for name, each in {"q": q, "k": k, "v": v}.items()}

    def attend(logits: torch.Tensor) -> Any:
        made: Any = {"s": lambda *_: tuple(each.double() for each in slots)}
        return reference.attend(pattern, *leaves.values(), gates=logits.double(), compressors=made, return_lse=True)

    out, lse = attend(gates)
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(3)).to(q.dtype)
    expected = dict(zip(leaves, torch.autograd.grad(out, tuple(leaves.values()), grad.double()), strict=True))
    # A branch alone: its gate open, the others shut.
    alone = {each: attend(torch.full_like(gates, -1e4).index_fill(3, torch.tensor(n), 1e4))[0] for n, each in enumerate(lse)}
    outs = {name: each.detach().to(q.dtype) for name, each in alone.items()}
    module = vars(load_module(compile_backward(pattern, LaunchShape(*dims, "fp16", "sm_90")), "hopper"))
    module.update(_launch=launch, _launch_hopper=launch_hopper, _on_hopper=lambda *_: True, hold_tile=lambda tile: tile)
    options = {"gates": gates, "slots": {"s": tuple(slots)}, "wanted": tuple(leaves)}
    lses = {name: each.detach().float() for name, each in lse.items()}
    found = module["run_backward"](grad, {}, q, k, v, outs, lses, **options)
    assert all(each.dtype == q.dtype for each in found.values())
    return found, expected


@pytest.mark.parametrize("dims", DIMS)
@pytest.mark.parametrize(("branches", "batch", "tokens", "heads", "kv_heads"), JOINED)
def test_joined(branches: tuple[str, ...], batch: int, tokens: int, heads: int, kv_heads: int, dims: tuple[int, int]) -> None:
    """Several branches by one kernel: every one has its own keys, mask and row facts, and the queries' sum is stored once. That of keys
    goes on from branch to branch."""
    check(*gated_gradients(gated(branches), batch, tokens, heads, kv_heads, stand_in(0), dims))


def test_joined_wild(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a number is not finite, the plain kernels of all joined branches make the sum, each adding to the one before."""
    monkeypatch.setattr(torch, "empty", lambda *size, **options: torch.full(size[0] if isinstance(size[0], tuple) else size, 7, **options))
    launch, plain = stand_in(1), list[dict[str, Any]]()

    def noting(kernel: Any, programs: int, *arguments: Any, **constants: Any) -> None:
        if kernel.__name__.endswith("_queries"):
            plain.append(constants | dict(zip(kernel.arg_names, arguments, strict=False)))
        launch(kernel, programs, *arguments, **constants)

    found, _ = gated_gradients(gated((SLOTS, NEAR)), 1, 70, 2, 1, noting)
    assert (found["q"] == 7).all()
    one, other = plain
    assert (one["ADD"], other["ADD"], one["BESIDE"], other["BESIDE"]) == (False, True, True, True)
    assert one["out_ptr"].dtype == torch.float32
    assert one["out_ptr"] is other["partial_ptr"]
    assert other["out_ptr"] is found["q"]


WIDE, NARROW = Pin(Tiles(128, 128, 8, 3), True), Pin(Tiles(128, 64, 8, 3), True)


@pytest.mark.parametrize(
    ("branches", "pins", "cols"),
    [
        ((SLOTS, NEAR), {}, 128),
        ((SLOTS, NEAR), {"b0": NARROW}, 64),
        ((SLOTS, NEAR), {"b0": NARROW, "b1": NARROW}, 64),
        ((SLOTS, NEAR), {"b0": NARROW, "b1": WIDE}, None),
        ((SLOTS, NEAR), {"b1": NARROW}, None),
        ((SLOTS, NEAR), {"b0": Pin(Tiles(64, 64, 4, 2), False)}, None),
        ((SLOTS, APART), {}, None),
        # Tiles of 32 keys are no one walk of blocks of 96.
        ((SLOTS, STEPS), {"b0": NARROW}, 64),
        ((SLOTS, STEPS), {"b0": Pin(Tiles(128, 32, 8, 3), True)}, None),
    ],
)
def test_what_is_joined(branches: tuple[str, ...], pins: dict[str, Pin], cols: int | None) -> None:
    """Branches of one scale, whose tiles nobody decided to be different, and all of which they fit."""
    named = tuple((f"attend_{name}_queries", pin) for name, pin in pins.items())
    source = compile_backward(gated(branches), LaunchShape(64, 64, "fp16", "sm_90", pins=named))
    joined = source.partition("def attend_b0_queries_with_b1_hopper(")[2].partition("TILE_N: gl.constexpr = ")[2]
    assert joined.partition("\n")[0] == ("" if cols is None else str(cols))
    assert ("def attend_b1_queries_hopper(" in source) is (cols is None)
