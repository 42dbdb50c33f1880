"""The Gluon kernel of attention over a static relation, on the CPU, against the dense reference."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from nsa_dsl import reference
from nsa_dsl.compiler import compile_source
from nsa_dsl.execute import load_module
from nsa_dsl.launch import LaunchShape, Pin, Tiles
from nsa_dsl.loader import load_spec
from nsa_dsl.pattern import Pattern
from nsa_dsl.tuning.candidates import candidates, find_stands
from tests.gluon_on_cpu import launch_hopper, tensors

RELATIONS = {
    "causal": "causal",
    "full": "full",
    "window": "window(300)",
    "both ways": "{ i, j : i - 150 < j < i + 90 }",
    "sinks": "causal & (first(4) | window(140))",
    "no keys at first": "{ i, j : j + 150 <= i }",
    "by head": "causal & { i, j, h : h % 2 == 0 or j + 130 > i }",
}


def check(pattern: Pattern, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, slots: dict[str, Any] | None = None, **own: Any) -> None:
    module = vars(load_module(compile_source(pattern, LaunchShape(q.shape[3], v.shape[3], "fp16", "sm_90")), "hopper"))
    module.update(_launch=lambda *_, **__: None, _launch_hopper=launch_hopper, _on_hopper=lambda *_: True, **own)
    out, lse, *_ = module["run"](q, k, v, slots=slots)
    compressors: Any = {name: lambda *_, made=made: tuple(each.double() for each in made) for name, made in (slots or {}).items()}
    expected, expected_lse = reference.attend(pattern, q, k, v, compressors=compressors, return_lse=True)
    torch.testing.assert_close(next(iter(lse.values())), expected_lse.float(), atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(out.float(), expected.float(), atol=4e-3, rtol=4e-3)


@pytest.mark.parametrize("name", RELATIONS)
@pytest.mark.parametrize(
    ("batch", "tokens", "heads", "kv_heads", "dims"), [(2, 1, 2, 1, (64, 64)), (1, 300, 4, 2, (192, 128)), (2, 517, 1, 1, (64, 64))]
)
def test_static_relation(name: str, batch: int, tokens: int, heads: int, kv_heads: int, dims: tuple[int, int]) -> None:
    pattern = load_spec(f"pattern p {{ output attend(tokens, {RELATIONS[name]}) }}").pattern("p")
    check(pattern, *tensors((batch, heads, tokens, dims[0]), (batch, kv_heads, tokens, dims[0]), (batch, kv_heads, tokens, dims[1])))


@pytest.mark.parametrize(
    ("relation", "dim", "rows"), [("causal", 64, 192), ("full", 64, 192), ("window(1024)", 64, 128), ("causal", 128, 128)]
)
def test_a_third_consumer_where_walks_are_long(relation: str, dim: int, rows: int) -> None:
    """Warpgroups of 64 rows each; what the schedule did not choose may be tried, if threads have registers enough for it."""
    pattern = load_spec(f"pattern p {{ output attend(tokens, {relation}) }}").pattern("p")
    shape = LaunchShape(dim, dim, "bf16", "sm_90")
    stand = find_stands(pattern, shape, backward=False)["attend_output"]
    assert stand.hopper is not None
    assert (stand.hopper.rows, stand.hopper.warps) == (rows, rows // 16)
    tried = {each.tiles.rows for each in candidates(stand, shape) if each.hopper}
    assert tried == ({128, 192} if dim == 64 else {128})


@pytest.mark.parametrize("near", [1, 64 * 200 * 2 * 2 * 2])
def test_groups_whose_keys_the_cache_holds_come_one_after_another(near: int) -> None:
    """One group at a time, and two of three, so that the last comes alone."""
    pattern = load_spec("pattern p { output attend(tokens, causal) }").pattern("p")
    check(pattern, *tensors((2, 6, 200, 64), (2, 3, 200, 64), (2, 3, 200, 64)), NEAR_BYTES=near)


SCATTERED = "pattern p {{ output attend(tokens, {}{{ i, j : (j // {} + 3 * (i // 64)) % 3 == 0 }}) }}"


@pytest.mark.parametrize("past", ["", "causal & "])
@pytest.mark.parametrize(("tokens", "heads", "kv_heads", "dim"), [(331, 4, 2, 128), (650, 8, 2, 64), (64, 2, 1, 64)])
def test_heads_of_a_group_share_blocks_of_64(past: str, tokens: int, heads: int, kv_heads: int, dim: int) -> None:
    """Two heads at a time with the same 64 rows; eight heads in two groups take two turns each."""
    pattern = load_spec(SCATTERED.format(past, 64)).pattern("p")
    stand = find_stands(pattern, LaunchShape(dim, dim, "fp16", "sm_90"), backward=False)["attend_output"]
    assert stand.hopper is not None
    assert (stand.hopper.rows, stand.hopper.cols, stand.hopper.warps) == (64, 64, 8)
    check(pattern, *tensors((1, heads, tokens, dim), (1, kv_heads, tokens, dim), (1, kv_heads, tokens, dim)))


@pytest.mark.parametrize(
    ("relation", "kernel", "tiles", "taken"),
    [
        ("causal", "attend_output", (128, 64, 8, 3), True),
        ("causal", "attend_output", (64, 64, 8, 4), True),
        ("causal & { i, j, h : h % 2 == 0 or j + 130 > i }", "attend_output", (64, 64, 8, 4), False),
        ("{ i, j : (j // 64 + i // 64) % 9 == 0 }", "attend_output", (128, 128, 8, 2), False),
        ("causal", "attend_output_queries", (128, 32, 8, 4), True),
        ("{ i, j : (j // 64 + i // 64) % 9 == 0 }", "attend_output_queries", (128, 64, 8, 3), False),
        ("{ i, j : (j // 128 + i // 128) % 9 == 0 }", "attend_output_keys", (16, 128, 8, 2), False),
        ("causal", "attend_output_keys", (32, 128, 8, 4), True),
    ],
)
def test_pins_whose_walk_is_not_one_are_not_taken(relation: str, kernel: str, tiles: tuple[int, int, int, int], taken: bool) -> None:
    """A kernel with them would be wrong: it goes through one short sequence of loops, and heads that share rows share keys."""
    pattern, shape = load_spec(f"pattern p {{ output attend(tokens, {relation}) }}").pattern("p"), LaunchShape()
    usual = find_stands(pattern, shape, backward=True)[kernel].hopper
    pinned = find_stands(pattern, replace(shape, pins=((kernel, Pin(Tiles(*tiles), True)),)), backward=True)[kernel].hopper
    assert pinned == (Tiles(*tiles) if taken else usual)
    assert pinned is None or taken or pinned != Tiles(*tiles)


def test_heads_that_cannot_share_run_alone() -> None:
    """An odd group leaves the call to the plain kernel, and so do heads that see different keys or blocks that fill no tile."""
    shape = LaunchShape(64, 64, "fp16", "sm_90")
    for text in (SCATTERED.format("{ i, j, h : h >= 0 } & ", 64), SCATTERED.format("", 40)):
        assert find_stands(load_spec(text).pattern("p"), shape, backward=False)["attend_output"].hopper is None
    launched: list[bool] = []
    module = vars(load_module(compile_source(load_spec(SCATTERED.format("", 64)).pattern("p"), shape), "odd"))
    module.update(_launch=lambda *_, **constants: launched.append(constants.get("BESIDE", False)), _on_hopper=lambda *_: True)
    module["run"](*tensors((1, 6, 70, 64), (1, 2, 70, 64), (1, 2, 70, 64)))
    assert launched[-1] is False
    assert not any(launched)


@pytest.mark.parametrize("tokens", [5, 700])
def test_slots(tokens: int) -> None:
    """Too few tokens for a slot leave no keys at all."""
    pattern = load_spec("pattern p { s = compress(block = 8, stride = 4, by = mlp)\n output attend(s, causal) }").pattern("p")
    n_slots = max(0, (tokens - 8) // 4 + 1)
    q, k, v, slot_k, slot_v = tensors((1, 4, tokens, 64), *[(1, 2, tokens, 64)] * 2, *[(1, 2, n_slots, 64)] * 2)
    check(pattern, q, k, v, slots={"s": (slot_k, slot_v)})
