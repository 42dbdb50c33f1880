"""The schedules of attention in which every query sees the blocks of one list: over unions of neighbouring queries, by blocks, and one
query at a time, which stands in wherever something is not finite."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import pytest
import torch
from interpret.support import USUAL, agree, agree_in_gradients, compiled, inputs_of, parse

from nsa_dsl.compiler import compile_backward, compile_source
from nsa_dsl.execute import load_module
from nsa_dsl.pattern import Pattern
from nsa_dsl.schedule import LaunchShape
from nsa_dsl.work import tile_queries

ONE = "output attend(tokens, causal & top(3, block = 16, by = indices, share = group))"
WINDOW = "output attend(tokens, window(30) & top(3, block = 32, by = indices, share = group), bias = alibi, softcap = 4, sink = learned)"
GATED = "a = attend(tokens, causal & top(3, block = 16, by = indices, share = group)) b = attend(tokens, window(5)) output gate(a, b)"
MIXED = """
    a = attend(tokens, window(5))
    b = attend(tokens, causal & top(3, block = 16, by = indices, share = group))
    c = attend(tokens, window(5))
    output mix(a, b, c)
"""


def by_blocks(part_bytes: int, share: int = 10**6) -> tuple[str, str]:
    """A change of modules: groups may go by blocks, and do but for a share of 0; parts take so many bytes."""
    constants = r"BY_BLOCKS_LISTS, BY_BLOCKS_SHARE = .*\nPART_ROWS, PART_BYTES = .*"
    return constants, f"BY_BLOCKS_LISTS, BY_BLOCKS_SHARE = 99, 0, {share}\nPART_ROWS, PART_BYTES = 16, {part_bytes}"


BY_BLOCKS = by_blocks(9000)
"""By blocks, in several chunks, and blocks that many queries chose in several items."""

WHOLE_LISTS = by_blocks(40000)
"""Chunks of several whole lists, and inverse indices of several chunks."""

BY_UNIONS = by_blocks(9000, share=0)
"""All that goes by blocks is launched, and leaves it to the unions."""

LARGE = (r"large = sizes.*", "large = sizes.sum() >= 0")
"""All unions count as large: with the one before, they are launched, and leave it to the blocks."""

ALONE = (r"most = QUERIES \* .*", "most = 0")
"""No union is small enough for the queries' gradient."""


KEPT = (r"KEEP_SLOPES = True", "KEEP_SLOPES = False")
"""The queries' gradient from kernels of its own, not from the slopes that the one for keys keeps."""


@pytest.fixture
def change(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Replaces what patterns match in the sources of the modules; each pattern must match."""

    def replace_in(*changes: tuple[str, str], backward: bool = False) -> None:
        compile_now = compile_backward if backward else compile_source

        def compile_changed(pattern: Pattern, shape: LaunchShape) -> str:
            source = compile_now(pattern, shape)
            for expression, text in changes:
                source, found = re.subn(expression, text, source)
                assert found, expression
            return source

        monkeypatch.setattr(f"nsa_dsl.op.{compile_now.__name__}", compile_changed)

    return replace_in


@pytest.mark.parametrize(
    ("heads", "kv_heads", "rows", "tokens", "changes"),
    [
        (4, 2, 32, 9, ()),
        (16, 1, 32, 37, ()),
        (18, 1, 16, 25, ()),
        (2, 2, 32, 37, (BY_BLOCKS,)),
        (6, 1, 16, 9, (BY_BLOCKS,)),
        (12, 12, 32, 37, (WHOLE_LISTS,)),
        (4, 2, 32, 37, (BY_UNIONS,)),
        (4, 2, 32, 37, (BY_UNIONS, LARGE)),
    ],
)
def test_group_sizes(
    heads: int, kv_heads: int, rows: int, tokens: int, changes: tuple[tuple[str, str], ...], change: Callable[..., None]
) -> None:
    """18 heads are more than a tile of the union has rows."""
    change(*changes)
    agree(ONE, heads=heads, kv_heads=kv_heads, rows=rows, tokens=tokens, visible=heads < 6)


def test_an_index_of_two_batches(change: Callable[..., None]) -> None:
    """The second chunk of lists begins within the second batch."""
    change(WHOLE_LISTS)
    agree(ONE, batch=2, heads=6, kv_heads=6, rows=32, tokens=37, visible=False)


@pytest.mark.parametrize("changes", [(), (BY_BLOCKS,)])
def test_options(changes: tuple[tuple[str, str], ...], change: Callable[..., None]) -> None:
    """A mask that is more than causal, blocks of two tiles, and strides beyond 32 bits."""
    change(*changes)
    agree(WINDOW, tokens=70, heads=4, kv_heads=2, layout="far apart", dtype="fp16")


@pytest.mark.parametrize(
    ("heads", "damage", "changes"),
    [(4, "none", ()), (18, "none", ()), (2, "value", ()), (2, "none", (BY_BLOCKS,)), (2, "key", (BY_BLOCKS,))],
)
def test_the_output_at_the_end(heads: int, damage: str, changes: tuple[tuple[str, str], ...], change: Callable[..., None]) -> None:
    """The kernels of the branch in the middle combine, and no other does; an equal branch counts twice."""
    assert "def combine(" not in compile_source(parse(MIXED), LaunchShape())
    change(*changes)
    agree(MIXED, tokens=21, heads=heads, kv_heads=1, rows=16, damage=damage, damaged=20, visible=False)


@pytest.mark.parametrize("changes", [(), (BY_BLOCKS,)])
def test_a_branch_that_nobody_asks_for(changes: tuple[tuple[str, str], ...], change: Callable[..., None]) -> None:
    """Without gradients the branch at the end is not stored; the output is the same."""
    change(*changes)
    pattern, case = parse(MIXED), replace(USUAL, heads=2, kv_heads=1, tokens=21)
    op, inputs = compiled(pattern, case), inputs_of(pattern, case)
    run = op.module(inputs.q, case.d_v, kv_heads=1).run
    whole, alone = (run(inputs.q, inputs.k, inputs.v, **inputs.options, keep=keep) for keep in (True, False))
    assert torch.equal(whole[0], alone[0])
    assert [name for name, each in alone[4].items() if each is None] == ["b"]
    assert all(each is not None for each in whole[4].values())
    kept = [op(q, inputs.k, inputs.v, **inputs.options) for q in (inputs.q, inputs.q.detach().clone().requires_grad_())]
    assert torch.equal(*kept)
    assert kept[1].requires_grad


@pytest.mark.parametrize("damage", ["key", "value"])
@pytest.mark.parametrize("changes", [(), (BY_BLOCKS,)])
def test_what_is_not_finite(damage: str, changes: tuple[tuple[str, str], ...], change: Callable[..., None]) -> None:
    change(*changes)
    agree(ONE, tokens=53, heads=2, kv_heads=1, damage=damage, damaged=20, visible=False)


@pytest.mark.parametrize(
    ("text", "alone", "changes"),
    [
        (ONE, False, {"heads": 8, "kv_heads": 2, "rows": 32}),
        (ONE, True, {"heads": 3, "kv_heads": 1}),
        (WINDOW, False, {"tokens": 40, "layout": "far apart"}),
        (GATED, True, {"tokens": 21}),
        (ONE, False, {"heads": 2, "kv_heads": 1, "damage": "key", "damaged": 12}),
        (ONE, True, {"heads": 2, "kv_heads": 1, "damage": "cotangent", "damaged": 12}),
    ],
)
def test_gradients(text: str, alone: bool, changes: dict[str, Any], change: Callable[..., None]) -> None:
    change(*((ALONE,) if alone else ()), KEPT, backward=True)
    agree_in_gradients(text, **changes)


def host_functions(text: str) -> Any:
    return load_module(compile_source(parse(text), LaunchShape(rows=32, cols=16)), "host")


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64, torch.int16])
@pytest.mark.parametrize(("width", "every", "most"), [(3, 1, 64), (16, 4, 64), (5, 1, 4), (33, 2, 64)])
def test_lists_as_kernels_want_them(width: int, every: int, most: int, dtype: torch.dtype) -> None:
    """Ascending, distinct, -1 last; nothing that does not exist or begins after the list's first query. 5 entries of 4: torch sorts."""
    random = torch.Generator().manual_seed(width)
    tokens, block = 53, 4
    lists = -(-tokens // every)
    given = torch.randint(-3, 20, (2, 3, lists, width), generator=random).to(dtype)
    given[..., 1] = given[..., 0]
    module = host_functions(ONE)
    module.MOST_RANKED = most
    made = module._list_blocks(given.transpose(0, 1).contiguous().transpose(0, 1), tokens, block, every)
    assert made.shape == given.shape
    assert made.dtype == torch.int32
    assert made.is_contiguous()
    for n, (row, entries) in enumerate(zip(made.view(-1, width).tolist(), given.reshape(-1, width).tolist(), strict=True)):
        right = sorted({each for each in entries if each >= 0 and each * block <= min(n % lists * every, tokens - 1)})
        assert row == right + [-1] * (width - len(right))


@pytest.mark.parametrize(("queries", "width"), [(8, 3), (4, 16), (1, 2)])
def test_unions(queries: int, width: int) -> None:
    """Every distinct block once, ascending, with a bit for each query that chose it; the last tile has fewer queries."""
    random = torch.Generator().manual_seed(0)
    lists = torch.stack([torch.randperm(20, generator=random)[:width].sort().values for _ in range(2 * 21)]).to(torch.int32)
    lists[5, 1:] = -1
    lists[9] = -1
    unions, sizes, _ = host_functions(ONE)._unite_blocks(lists.view(1, 2, 21, width), queries)
    for unit in range(2):
        for tile in range(-(-21 // queries)):
            mine = lists.view(2, 21, width)[unit, tile * queries : (tile + 1) * queries].tolist()
            blocks = sorted({block for each in mine for block in each if block >= 0})
            words = [block + sum(1 << (24 + n) for n, each in enumerate(mine) if block in each) for block in blocks]
            assert sizes[0, unit, tile] == len(blocks)
            assert [word % 2**32 for word in unions[0, unit, tile, : len(blocks)].tolist()] == words


@pytest.mark.parametrize("rows", [16, 64])
def test_the_cost_model_counts_queries_of_a_tile_as_modules_do(rows: int) -> None:
    count = host_functions(ONE)._tile_queries
    for group, width in product(range(1, 20), (1, 3, 16, 33, 64)):
        assert tile_queries(group, width, rows) == count(group, width, rows)


@pytest.mark.parametrize(("sizes", "wild", "skips"), [(9, 0, (0, 1)), (10, 0, (0, 1)), (11, 0, (1, 0)), (9, 1, (1, 1)), (11, 1, (1, 1))])
def test_the_unions_decide(sizes: int, wild: int, skips: tuple[int, int]) -> None:
    """Among 80 pairs, 10 blocks in the unions are as many as pay."""
    held, flag = torch.tensor([[[sizes - 4, 4]]], dtype=torch.int32), torch.tensor([wild], dtype=torch.int32)
    flags = host_functions(ONE)._choose_schedule(held, 80, flag)
    assert tuple(each.item() for each in flags) == skips
    assert all(each.shape == (1,) and each.dtype == torch.int32 for each in flags)


def test_an_index_that_nobody_asks_for() -> None:
    lists = torch.zeros(1, 1, 40, 3, dtype=torch.int32)
    lists[..., 1:] = -1
    made = [host_functions(ONE)._invert_blocks(lists, 1, 3, 16, skip=torch.tensor([flag], dtype=torch.int32))[1] for flag in (0, 1)]
    assert made[0].any()
    assert not made[1].any()


@pytest.mark.parametrize(("owners", "slots"), [(2, True), (1, False)])
def test_inverse_index(owners: int, slots: bool) -> None:
    random = torch.Generator().manual_seed(0)
    lists = torch.stack([torch.randperm(7, generator=random)[:3].sort().values for _ in range(2 * 2 * 70)]).to(torch.int32)
    lists[::3, 2] = -1
    chosen = lists.view(2, 2, 70, 3)
    made = host_functions(ONE)._invert_blocks(chosen, owners, 7, 16, slots=slots, skip=torch.zeros(1, dtype=torch.int32))
    entries, items, ends = (each.tolist() for each in made)
    assert len(items) == 2 * owners
    found: dict[int, list[int]] = {block: [] for block in range(2 * owners * 7)}
    for owner, places in enumerate(items):
        parts = []
        counts = [count for _, count, _, _ in places]
        assert counts == sorted(counts, reverse=True)
        for start, count, block, part in sorted(places, key=lambda item: (item[2], item[0])):
            if count:
                assert block // 7 == owner
                assert (part < 0) == (not found[block])
                found[block] += entries[start : start + count]
                parts += [part] if part >= 0 else []
        assert parts == list(range(len(parts)))
    for block, held in found.items():
        rows = lists.view(2 * owners, -1, 3)[block // 7]
        expected = [row * 3 + slot if slots else row for row, slot in (rows == block % 7).nonzero().tolist()]
        assert held == expected
        assert ends[block] - (ends[block - 1] if block else 0) == max(1, -(-len(expected) // 16))


@dataclass(frozen=True)
class Fault:
    """A change of one kernel's text that must be noticed. where: other changes that make the kernel run."""

    expression: str
    text: str
    where: tuple[tuple[str, str], ...] = ()
    backward: bool = False
    damage: str = "none"
    heads: int = 4
    kv_heads: int = 1

    def check(self) -> None:
        """What finds the fault."""
        if self.backward:
            agree_in_gradients(ONE, tokens=37, heads=self.heads, kv_heads=self.kv_heads)
        else:
            agree(ONE, tokens=53, heads=self.heads, kv_heads=self.kv_heads, damage=self.damage, damaged=20, visible=False)


FAULTS = {
    "union: everybody chose it": Fault(r"last = tl.where\(chosen, tokens, -1\)", "last = tokens"),
    "unite: a block counts for its first query": Fault(r"block \| chosen_by", "block | bit"),
    "alone: keys before the last block": Fault(r"seen = \(cols >= start\) & ", "seen = ", heads=18),
    "alone: asleep": Fault(r"if tl.load\(wild_ptr\) == 0:", "if tl.load(wild_ptr) >= 0:", damage="value"),
    "lists: twice the same": Fault(r"tl.where\(repeated > 0, n_blocks, block\)", "block"),
    "by blocks: the last row of an item": Fault(r"step \* ROWS \+ place < n_rows", "step * ROWS + place < n_rows - 1", (BY_BLOCKS,)),
    "by blocks: keys after the query": Fault(r"cols\[None, :\] <= tokens\[:, None\]", "cols[None, :] >= 0", (BY_BLOCKS,)),
    "by blocks: the first chunk's lists": Fault(
        r"\+ first, first_token, some", ", first_token, some", (WHOLE_LISTS,), heads=12, kv_heads=12
    ),
    "by blocks: one part for two lists": Fault(r"owner - first_owner", "owner * 0", (WHOLE_LISTS,), heads=12, kv_heads=12),
    "by blocks: nobody's turn": Fault(r"for skip in \(large, ~large\)", "for skip in (large, ~large | large)", (BY_UNIONS, LARGE)),
    "merged: the last part": Fault(r"tl.max\(count, 0\)", "tl.max(count, 0) - 1", (BY_BLOCKS,)),
    "gradient, union: the neighbour's choice": Fault(r"chosen_bit = 24", "chosen_bit = 25", (KEPT,), backward=True),
    "gradient, alone: the last block": Fault(
        r"for step in tl.range\(count\)", "for step in tl.range(count - 1)", (KEPT, ALONE), backward=True
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_fault_is_caught(name: str, change: Callable[..., None]) -> None:
    fault = FAULTS[name]
    change(*fault.where, (fault.expression, fault.text), backward=fault.backward)
    with pytest.raises(AssertionError):
        fault.check()


@pytest.mark.parametrize(
    ("where", "takes"),
    [
        ("causal & top(3, block = 16, by = indices, share = group)", True),
        ("top(3, block = 48, by = indices, share = group) & window(7)", True),
        ("causal & top(3, block = 16, by = indices, share = head)", False),
        ("causal & top(3, block = 8, by = indices, share = group)", False),
        ("causal & top(3, block = 16, by = indices, share = group, every = 2)", False),
        ("causal & document & top(3, block = 16, by = indices, share = group)", False),
        ("causal & (window(3) | top(3, block = 16, by = indices, share = group))", False),
        ("causal - top(3, block = 16, by = indices, share = group)", False),
    ],
)
def test_which_branches(where: str, takes: bool) -> None:
    assert ("def unite_blocks" in compile_source(parse(f"output attend(tokens, {where})"), LaunchShape())) == takes
