"""Benchmarks without a GPU: what commands refuse, counts, peers and their masks, inputs, measuring, the check of far ends."""

from __future__ import annotations

import sys
import types
import weakref
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.nn.attention.flex_attention import create_mask

from benchmarks import far_end, sections
from benchmarks.cases import Sizes, ungated
from benchmarks.far_end import Sample, check_far, packed_inputs
from benchmarks.suite import ROOT, example
from nsa_dsl import reference
from nsa_dsl.arguments import Shape
from nsa_dsl.bench import inputs as bench_inputs
from nsa_dsl.bench.contender import Case, Prepared, Refused
from nsa_dsl.bench.fla import Nsa, as_nsa, prepare_fla
from nsa_dsl.bench.inputs import draw_blocks, make_inputs, mean_union
from nsa_dsl.bench.masks import make_mask, one_softmax
from nsa_dsl.bench.rows import OWN, Products, Row, Settings, tflops
from nsa_dsl.bench.run import UNFINISHED, Measured, measure, reason, run
from nsa_dsl.bench.timing import launches
from nsa_dsl.cli import main
from nsa_dsl.flops import visible_pairs
from nsa_dsl.loader import load_spec
from nsa_dsl.pattern import Pattern
from nsa_dsl.signing import sign
from nsa_dsl.verify.inputs import all_choices

SHAPE = Shape(1, 4, 2, 70, 8, 8)
SMALL = {"l": 8, "d": 4, "b": 16, "n": 3, "w": 20}


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--lengths", "8k,x"], "--lengths 8k,x: 'x' is not a number of tokens from 1 to 4096k"),
        (["--lengths", "0"], "--lengths 0: '0' is not"),
        (["--peers", "cudnn,me"], "--peers cudnn,me: there is no peer 'me'; known are cudnn, flash, flex, fla, or none"),
        (["--heads", "6", "--kv-heads", "4"], "--heads 6: not a multiple of --kv-heads 4"),
        (["--json", "no/such/folder/x.json"], "there is no folder no/such/folder"),
        (["--dtype", "int8"], "'--dtype'"),
        (["--dim", "300"], "'--dim'"),
        (["--pattern", "nobody"], "nobody"),
        ([], "needs a GPU"),
    ],
)
def test_what_cannot_be_measured_is_one_error(
    arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as ended:
        main(["bench", str(ROOT / "examples" / "causal.nsa"), *arguments])
    assert ended.value.code == 2
    assert expected in " ".join(capsys.readouterr().err.replace("│", " ").split())


@pytest.mark.parametrize("name", ["nsa", "moba", "streaming", "strided"])
def test_operations_are_those_of_the_visible_pairs(name: str) -> None:
    pattern = example(name, name, **(SMALL if name == "nsa" else {"b": 16, "n": 2} if name == "moba" else {}))
    made = make_inputs(pattern, torch.float32, SHAPE, device="cpu")
    chosen = reference.choose(pattern, made.q, made.k, made.v, **ungated(made)) if name in ("nsa", "moba") else {}
    pairs = sum(visible_pairs(each, SHAPE, chosen, None) for each in sign(pattern).computed)
    seen = reference.mask(pattern, SHAPE.tokens, SHAPE.heads, SHAPE.kv_heads, choices=chosen or None)
    assert pairs == sum(int(each.expand(1, SHAPE.heads, -1, -1).sum()) for each in seen.values())
    work = Products(pairs, 8, 8)
    assert (work.forward, work.backward) == (4 * 8 * pairs, 2.5 * work.forward)
    assert Products(10, 192, 128).backward == 2 * (3 * 192 + 2 * 128) * 10
    assert tflops(work.forward, 2.0) == pytest.approx(work.forward / 2e-3 / 1e12)
    assert tflops(None, 2.0) is None


STATIC = (
    ("causal", "causal"), ("bigbird", "bigbird"), ("dilated", "longnet"), ("longformer", "longformer"), ("neighborhood", "neighborhood"),
    ("power_attention", "power_attention"), ("prefix_lm", "prefix_lm"), ("s2", "s2"), ("strided", "strided"), ("streaming", "streaming"),
)  # fmt: skip


@pytest.mark.parametrize(("file", "name"), STATIC)
def test_flex_attention_sees_the_same_keys(file: str, name: str) -> None:
    small: dict[str, dict[str, int]] = {
        "neighborhood": {"H": 12, "W": 12, "k": 5},
        "power_attention": {"b": 8, "w": 2},
        "s2": {"b": 8, "s": 3},
    }
    pattern = example(file, name, **small.get(file, {}))
    n = 144
    relation, scale = one_softmax(pattern)
    assert scale is None
    made = create_mask(make_mask(relation, n, 4, 2), 1, 4, n, n, device="cpu")
    seen = reference.mask(pattern, n, 4, 2)[pattern.output.branches[0]]
    assert torch.equal(made, seen.expand(1, 4, n, n))


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (
            "s = compress(block = 4, stride = 4, by = mean)\n c = attend(s, causal)\n t = attend(tokens, window(4))\n output gate(c, t)",
            "one softmax",
        ),
        ("s = compress(block = 4, stride = 4, by = mean)\n output attend(s, causal)", "compresses keys"),
        ("output attend(tokens, causal & top(2, block = 4, by = indices, share = group))", "chooses keys by data"),
        ("output attend(tokens, causal, bias = alibi)", "without `bias`"),
    ],
)
def test_what_flex_attention_cannot_express_is_said(text: str, why: str) -> None:
    with pytest.raises(Refused, match=why):
        one_softmax(load_spec(f"pattern p {{\n {text}\n}}\n").pattern("p"))


def test_a_relation_that_no_position_decides_is_a_mask_of_tensors() -> None:
    relation, _ = one_softmax(load_spec("pattern p { output attend(tokens, { i, j : N >= 100 }) }\n").pattern("p"))
    for n in (16, 144):
        assert bool(create_mask(make_mask(relation, n, 1, 1), 1, 1, n, n, device="cpu").all()) == (n == 144)


def test_nsa_is_recognised() -> None:
    assert as_nsa(example("nsa", "nsa")) == Nsa(0, 1, 2, block=64, count=16, window=512)
    assert as_nsa(example("asa", "global")) is None
    assert as_nsa(example("causal", "causal")) is None


def test_fla_takes_nsa_only_and_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fla.ops.nsa", None)
    for pattern, shape, why in (
        (example("causal", "causal"), SHAPE, "NSA only"),
        (example("nsa", "nsa"), SHAPE, "groups of 16"),
        (example("nsa", "nsa"), replace(SHAPE, heads=32), "not installed"),
    ):
        made = make_inputs(pattern, torch.float32, shape, device="cpu")
        with pytest.raises(Refused, match=why):
            prepare_fla(Case(pattern, shape, made, made.q, True, None))


def test_fla_gets_its_own_layout(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    def parallel_nsa(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **options: Any) -> torch.Tensor:
        seen.update(options, q=q, k=k, v=v)
        return q * options["g_cmp"][..., None]

    monkeypatch.setitem(sys.modules, "fla.ops.nsa", types.SimpleNamespace(parallel_nsa=parallel_nsa))  # type: ignore[arg-type]
    pattern, shape = example("nsa", "nsa"), replace(SHAPE, heads=32)
    made = make_inputs(pattern, torch.float32, shape, device="cpu")
    prepared = prepare_fla(Case(pattern, shape, made, made.q, True, None))
    out = prepared.forward()
    assert out.shape == made.q.shape
    assert seen["q"].shape == (1, 70, 32, 8)
    assert seen["q"].is_contiguous()
    assert seen["k"].is_contiguous()
    assert (seen["block_counts"], seen["block_size"], seen["window_size"]) == (16, 64, 0)
    torch.testing.assert_close(out, made.q * made.options["gates"][..., :1].sigmoid())
    assert "without the window" in prepared.note
    assert prepared.products is None


def test_inputs_are_token_major_and_agree_as_asked() -> None:
    pattern = load_spec(ROOT / sections.HERE).pattern("nsa_mean", **{**SMALL, "n": 6})
    shape = Shape(1, 16, 1, 512, 16, 16)
    unions = {}
    for sharing in ("random", "clustered", "identical"):
        made = make_inputs(pattern, torch.float32, shape, sharing=sharing, device="cpu")
        assert all(each.transpose(1, 2).is_contiguous() for each in (made.q, made.k, made.v) if isinstance(each, torch.Tensor))
        assert float(made.q.var()) == pytest.approx(1, abs=0.1)
        lists = reference.choose(pattern, made.q, made.k, made.v, **ungated(made))["selected"]
        unions[sharing] = mean_union(lists)
    # All of a run sees the same blocks, but for the few that its later queries have in reach.
    assert unions["random"] > unions["clustered"] + 2 > unions["identical"] + 3
    assert unions["identical"] < 7


def test_given_blocks_agree_as_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    pattern = load_spec(ROOT / sections.HERE).pattern("selected", b=4)
    shape = Shape(1, 4, 2, 600, 8, 8)
    monkeypatch.setattr(bench_inputs, "_SCORES_AT_ONCE", 1 << 14)
    (choice,) = all_choices(pattern).values()
    lists = {name: draw_blocks(choice, shape, name, torch.Generator().manual_seed(0)) for name in bench_inputs.COMMON}
    for each in lists.values():
        own = torch.arange(600) // 4
        assert each.shape == (1, 2, 600, 16)
        assert bool(((each >= 0).sum(-1) == (own + 1).clamp(max=16)).all())
        assert bool((each <= own[:, None]).all())
        assert bool((each == own[:, None]).any(-1).all())
        full = each[:, :, 64:]
        assert bool((full[..., 1:] > full[..., :-1]).all())
        assert bool((full[..., 0] == 0).all())
    unions = [mean_union(lists[name][:, :, 256:]) for name in ("random", "clustered", "identical")]
    assert unions[0] > unions[1] + 5
    assert unions[1] > unions[2] + 3
    assert unions[2] < 20
    by_hand = [len(set(lists["random"][0, 0, start : start + 4].flatten().tolist()) - {-1}) for start in range(0, 600, 4)]
    assert mean_union(lists["random"][:, :1]) == pytest.approx(sum(by_hand) / len(by_hand))


def test_dense_attention_is_measured_once_for_all_patterns_that_look_back(monkeypatch: pytest.MonkeyPatch) -> None:
    measured = list[str]()

    def measure(row: Row, prepared: object, **_: object) -> Row:  # noqa: ARG001
        measured.append(row.case)
        return replace(row, forward_ms=2.0, note="every key")

    monkeypatch.setattr("nsa_dsl.bench.run.make_case", lambda *_: (None, None))
    monkeypatch.setattr("nsa_dsl.bench.run._prepare", lambda *_: None)
    monkeypatch.setattr("nsa_dsl.bench.run.measure", measure)
    seen = Measured()
    settings = Settings((64,), peers=("cudnn",), own=False)
    patterns = [example("sliding_window", "sliding_window", w=4), example("causal", "causal"), example("longformer", "longformer")]
    rows = [row for each in patterns for row in run(each, settings, dense=seen)]
    rows += run(patterns[0], replace(settings, heads=32), dense=seen)
    assert measured == ["sliding_window", "longformer", "sliding_window"]
    assert [(row.case, row.pattern, row.forward_ms) for row in rows[:2]] == [("sliding_window",) * 2 + (2.0,), ("causal",) * 2 + (2.0,)]
    assert ["measured once" in row.note for row in rows] == [False, True, False, False]


def test_measuring_keeps_what_was_measured_before_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("median_ms", "peak_bytes"):
        monkeypatch.setattr(f"nsa_dsl.bench.run.{name}", lambda call, before=lambda: None, **_: (before(), call(), 2**30)[2])
    leaf = torch.ones(3, requires_grad=True)
    fine = Prepared(lambda: leaf * 2, (leaf,), torch.ones(3), Products(10, 4, 4))
    row = measure(Row("a", "b", 3, OWN), fine, backward=True)
    assert (row.forward_gib, row.both_gib, row.forward_ms, row.refused) == (1, 1, 2**30, "")
    assert row.backward_tflops == pytest.approx(2.5 * (row.forward_tflops or 0))
    said = list[Row]()
    once = measure(Row("a", "b", 3, OWN), replace(fine, once=True), backward=True, early=said.append)
    assert once == row
    assert [(each.forward_ms, each.backward_ms, each.refused) for each in said] == [(2**30, None, UNFINISHED)]
    broken = replace(fine, leaves=(torch.ones(1, requires_grad=True),))
    row = measure(Row("a", "b", 3, OWN), broken, backward=True)
    assert row.forward_ms is not None
    assert row.backward_ms is None
    assert row.refused.startswith("backward: RuntimeError: The differentiated Tensor")
    assert reason(torch.cuda.OutOfMemoryError("tried to allocate")) == "out of memory"


def test_graphs_are_what_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here a replay is the call again, which asks of autograd what a graph asks of memory: that nothing be given back after one."""
    said, pools, made = list[str](), list[Any](), list[Any]()

    class Graph:
        def __init__(self, call: Callable[[], Any]) -> None:
            self.call = call

        def pool(self) -> str:
            return "forward's"

        def replay(self) -> str:
            self.call()
            return "replay"

    def capture(call: Callable[[], Any], pool: Any = None) -> tuple[Graph, Any]:
        pools.append(pool)
        kept = call()
        made.extend(map(weakref.ref, kept if isinstance(kept, tuple) else (kept,)))
        return Graph(call), kept

    def median_ms(call: Callable[[], Any], **_: object) -> float:
        said.extend((call(), call()))
        assert all(each() is not None for each in made), "what replays write and read went to whoever comes next"
        made.clear()
        return 2.0

    for module in ("run", "graphs"):
        monkeypatch.setattr(f"nsa_dsl.bench.{module}.capture", capture)
        monkeypatch.setattr(f"nsa_dsl.bench.{module}.warm", lambda call: call())
    monkeypatch.setattr("nsa_dsl.bench.run.peak_bytes", lambda call: (call(), 2**30)[1])
    monkeypatch.setattr("nsa_dsl.bench.run.median_ms", median_ms)
    leaf = torch.ones(3, requires_grad=True)
    row = measure(Row("a", "b", 3, OWN), Prepared(lambda: leaf * 2, (leaf,), torch.ones(3), None), backward=True, graphs=True)
    assert (row.forward_ms, row.backward_ms, row.refused) == (2.0, 2.0, "")
    assert said == ["replay"] * 4
    assert pools == [None, None, "forward's"]
    once = Prepared(lambda: leaf * 2, (leaf,), torch.ones(3), None, once=True)
    row = measure(Row("a", "b", 3, "flex"), once, backward=True, graphs=True)
    assert (row.forward_ms, row.backward_ms) == (2.0, None)
    assert row.refused.startswith("backward: its backward pass takes over")
    assert str(Settings((64,), graphs=True)) == str(Settings((64,))) + ", CUDA graphs"


def test_every_launch_is_seen_and_put_back() -> None:
    module, seen = types.ModuleType("generated"), list[str]()
    launched = list[int]()
    exec("def _launch(kernel, n, **o):\n    kernel(n)\ndef _launch_hopper(kernel, n, *, warps):\n    kernel(n)\n", vars(module))
    before = dict(vars(module))

    def kernel(n: int) -> None:
        launched.append(n)

    def around(name: str, launch: Callable[[], None]) -> None:
        seen.append(name)
        launch()

    with launches([module], around):
        vars(module)["_launch"](kernel, 1, stages=2)
        vars(module)["_launch_hopper"](kernel, 2, warps=8)
    vars(module)["_launch"](kernel, 3)
    assert (seen, launched) == (["kernel", "kernel"], [1, 2, 3])
    assert vars(module) == before


class Op:
    """NSA by the dense reference in an op's place. fault: what is wrong at its far end."""

    def __init__(self, pattern: Pattern, fault: str) -> None:
        self.pattern, self.fault = pattern, fault

    def __call__(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, gates: torch.Tensor, return_lse: bool = False) -> Any:
        late = (torch.arange(q.shape[2]) >= q.shape[2] - 2)[:, None]
        if self.fault == "dv" and v.requires_grad:
            v.register_hook(lambda gradient: torch.where(late, 0, gradient))
        out, lse = reference.attend(self.pattern, q, k, v, gates=gates, dtype=torch.float64, return_lse=True)
        if self.fault == "out" and not q.requires_grad:
            out = torch.where(late, out.roll(1, 2), out)
        return (out.to(q.dtype), lse) if return_lse else out.to(q.dtype)

    def choose(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> dict[str, torch.Tensor]:
        return reference.choose(self.pattern, q, k, v)

    def compress(self, name: str, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        assert name == "summary"
        return reference.compress(self.pattern.memories[0], k, v)


@pytest.mark.parametrize("tokens", [5, 8, 12, 90, 1000])
def test_sampled_rows_are_the_last_and_the_middle(tokens: int) -> None:
    runs = Sample(tail=8, run=4).runs(tokens, torch.device("cpu"))
    rows = torch.cat(runs).tolist()
    assert rows == sorted(set(rows))
    assert rows[-min(8, tokens) :] == list(range(max(0, tokens - 8), tokens))
    assert len(rows) == min(16, tokens)
    assert all(len(each) <= 4 and int(each[-1] - each[0]) == len(each) - 1 for each in runs)
    assert tokens < 90 or tokens // 2 in rows


@pytest.mark.parametrize("fault", ["none", "out", "dv"])
def test_wrong_far_ends_are_found(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(far_end, "clean", lambda: None)
    pattern, sizes = load_spec(ROOT / sections.HERE).pattern("nsa_mean", **SMALL), Sizes(heads=4, kv_heads=2, dim_qk=8, dim_v=8)
    inputs = packed_inputs(90, sizes, torch.float32, "cpu")
    assert inputs.q.stride(2) == (4 + 2 * 2) * 8
    wrong = check_far(Op(pattern, fault), inputs, sizes, Sample(tail=8, run=4))  # type: ignore[arg-type]
    assert [name for name in ("out", "d(v)") if any(name in each for each in wrong)] == {"none": [], "out": ["out"], "dv": ["d(v)"]}[fault]
