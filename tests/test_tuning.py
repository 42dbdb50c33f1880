"""Measured decisions: among which candidates, and how they are kept, looked up and shared by ranks."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import triton

from nsa_dsl.arguments import Shape
from nsa_dsl.cli import main
from nsa_dsl.launch import LaunchShape, Pin, Tiles
from nsa_dsl.loader import load_spec
from nsa_dsl.op import AttentionOp
from nsa_dsl.pattern import Pattern
from nsa_dsl.signing import sign
from nsa_dsl.sources import compile_backward, compile_source
from nsa_dsl.tuned import lookup
from nsa_dsl.tuned.keys import entry_key, length_bucket, tunable_kernels
from nsa_dsl.tuned.table import Entry, Table, from_json, to_json
from nsa_dsl.tuning.candidates import MOST, candidates, find_stands
from nsa_dsl.tuning.ranks import tune_on_first_rank
from nsa_dsl.tuning.search import Pins
from nsa_dsl.tuning.tune import Progress, Tuned, tune_pattern

EXAMPLES = Path(__file__).parent.parent / "examples"
CARD = "NVIDIA H100 80GB HBM3"
SMALL, MIDDLE, LARGE = Pin(Tiles(64, 64, 4, 2)), Pin(Tiles(64, 32, 4, 2)), Pin(Tiles(128, 32, 8, 2))
PORTABLE = LaunchShape(templates="portable")


@pytest.fixture(scope="module")
def nsa() -> Pattern:
    return load_spec(EXAMPLES / "nsa.nsa").pattern("nsa")


def test_candidates_differ_from_the_default_and_fit(nsa: Pattern) -> None:
    for dtype in ("bf16", "fp32"):
        shape = LaunchShape(dtype=dtype)  # type: ignore[arg-type]
        for name, stand in find_stands(nsa, shape, backward=True).items():
            found = candidates(stand, shape)
            assert MOST >= len(set(found)) == len(found), name
            assert bool(found) is (stand.joined in ("", name)), name
            assert stand.pin not in found
            for pin in found:
                moving = pin.tiles.cols if stand.stay == "rows" else pin.tiles.rows
                assert pin.tiles.stages * moving * 256 * shape.element_bytes <= 227 * 1024
    # It took 262,248 bytes, and the card has 232,448.
    assert Pin(Tiles(128, 128, 8, 2), True) not in candidates(
        find_stands(nsa, LaunchShape(), backward=True)["attend_windowed_queries"], LaunchShape()
    )


def test_a_pin_changes_its_own_kernel_and_no_other(nsa: Pattern) -> None:
    for name, stand in find_stands(nsa, PORTABLE, backward=True).items():
        pin = next(
            each for each in candidates(stand, PORTABLE) if (each.tiles.rows, each.tiles.cols) != (stand.plain.rows, stand.plain.cols)
        )
        pinned = find_stands(nsa, replace(PORTABLE, pins=((name, pin),)), backward=True)
        assert {other for other, each in pinned.items() if each != find_stands(nsa, PORTABLE, backward=True)[other]} == {name}
        assert pinned[name].plain == pin.tiles
    pins = replace(PORTABLE, pins=(("attend_windowed", SMALL), ("chosen_keys_selected", Pin(Tiles(16, 64, 4, 2)))))
    assert compile_source(nsa, pins) != compile_source(nsa, PORTABLE)
    assert compile_backward(nsa, pins) != compile_backward(nsa, PORTABLE)
    insisting = replace(pins, rows=32, cols=32)
    assert compile_source(nsa, insisting) == compile_source(nsa, replace(insisting, pins=()))


def test_a_gluon_kernel_can_be_pinned_away(nsa: Pattern) -> None:
    default = find_stands(nsa, LaunchShape(), backward=False)["attend_windowed"]
    assert default.hopper is not None
    plain, other = Pin(Tiles(64, 64, 4, 2), False), Pin(replace(default.hopper, stages=3), True)
    for pin, expected in ((plain, None), (other, other.tiles)):
        stands = find_stands(nsa, LaunchShape(pins=(("attend_windowed", pin),)), backward=False)
        assert stands["attend_windowed"].hopper == expected
    portable = find_stands(nsa, replace(PORTABLE, pins=(("attend_windowed", other),)), backward=False)
    assert portable["attend_windowed"].hopper is None


def test_every_kernel_that_can_be_pinned_has_a_key() -> None:
    for path in sorted(EXAMPLES.glob("*.nsa")):
        spec = load_spec(path)
        for pattern in map(spec.pattern, spec.patterns):
            kernels = {each.name: each for each in tunable_kernels(pattern, sign(pattern))}
            stands = find_stands(pattern, PORTABLE, backward=True)
            assert stands.keys() <= kernels.keys(), pattern.name
            assert {name for name, each in kernels.items() if not each.optional} <= stands.keys(), pattern.name


def test_keys_forget_names_and_tell_work_apart() -> None:
    def keys(text: str) -> set[str]:
        pattern = load_spec(text).pattern("p")
        return {each.key for each in tunable_kernels(pattern, sign(pattern))}

    one = "pattern p { a = attend(tokens, window(512))\n output a }"
    assert keys(one) == keys("pattern p { other = attend(tokens, window(512))\n output other }")
    assert keys(one).isdisjoint(keys("pattern p { a = attend(tokens, window(1024))\n output a }"))
    assert [length_bucket(each) for each in (1, 1024, 1025, 8192, 65536, 10**7)] == [1024, 1024, 4096, 16384, 65536, 1 << 20]


def _won(pin: Pin, tokens: int) -> Entry:
    return Entry("p.kernel", MIDDLE, 2.0, pin, 1.0, True, tokens, tried=3, versions="triton 3.6.0")


def _table(nsa: Pattern, pin: Pin, tokens: int = 65536) -> Table:
    kernels = tunable_kernels(nsa, sign(nsa))
    entries = {entry_key(each, LaunchShape(), tokens, 64, 4): _won(pin, tokens) for each in kernels}
    return Table(CARD, "3.6.0", "abc", entries)


def test_a_table_survives_json_and_no_damage(nsa: Pattern) -> None:
    table = _table(nsa, Pin(Tiles(128, 64, 8, 3), True))
    text = to_json(table)
    assert from_json(text) == table
    for damaged in (
        text[:-20],
        text.replace('"rows": 128', '"rows": 64', 1),
        text.replace('"best"', '"default"', 1),
        text.replace(CARD, "another"),
        "[]",
        "",
        '{"format": 1}',
    ):
        assert from_json(damaged) is None
    impossible = to_json(_table(nsa, Pin(Tiles(100, 64, 8, 3))))
    assert from_json(impossible) is None
    assert from_json(json.dumps({**json.loads(text), "format": 1})) is None


@pytest.fixture
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own, and no memory of another."""
    monkeypatch.setenv("NSA_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(lookup, "_memory", {})
    monkeypatch.setattr(lookup, "shipped_table", lambda card: Table(card, "", "", {}))
    return tmp_path


def _found(nsa: Pattern, tokens: int = 60000) -> dict[str, Pin | None]:
    return lookup.find_decisions(tunable_kernels(nsa, sign(nsa)), LaunchShape(), tokens, 64, 4, CARD, "3.6.0")


def test_the_users_table_goes_before_the_shipped_one(nsa: Pattern, fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert _found(nsa) == {}
    monkeypatch.setattr(lookup, "shipped_table", lambda _: _table(nsa, LARGE))
    assert set(_found(nsa).values()) == {LARGE}
    assert _found(nsa, 1000) == {}
    lookup.keep(CARD, "3.6.0", _table(nsa, SMALL).entries)
    lookup.forget()
    assert set(_found(nsa).values()) == {SMALL}
    (folder,) = (fresh / "tuned").iterdir()
    (folder / "table.json").write_text("{}")
    lookup.forget()
    assert set(_found(nsa).values()) == {LARGE}


def test_without_a_disk_what_was_tuned_lasts_as_long_as_the_process(nsa: Pattern, fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NSA_CACHE_DIR", "")
    lookup.keep(CARD, "3.6.0", _table(nsa, SMALL).entries)
    assert set(_found(nsa).values()) == {SMALL}
    assert list(fresh.iterdir()) == []


def test_an_op_asks_in_order_and_refuses_what_is_missed(nsa: Pattern, fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: ARG001
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: CARD)
    monkeypatch.setattr("nsa_dsl.op._triton_version", lambda: "3.6.0")
    q = torch.empty(1, 64, 65536, 128, device="meta")

    def pins(**options: Any) -> dict[str, Pin]:
        op = AttentionOp(nsa, **options)
        return dict(op._pins(replace(LaunchShape(), pins=op._tiles.pins), q, 4, backward=False))

    assert pins() == {}
    with pytest.raises(lookup.MissingTuningError, match=r"attend_windowed.*nsa tune FILE --pattern nsa --lengths 65536 --heads 64"):
        pins(tune="assert")
    monkeypatch.setenv("NSA_TUNE", "assert")
    with pytest.raises(lookup.MissingTuningError):
        pins()
    lookup.keep(CARD, "3.6.0", _table(nsa, SMALL).entries)
    assert pins()["attend_windowed"] == SMALL
    assert pins(pins={"attend_windowed": LARGE})["attend_windowed"] == LARGE
    assert pins(tune="off") == {}
    monkeypatch.setenv("NSA_TUNE", "never")
    with pytest.raises(ValueError, match="NSA_TUNE=never"):
        pins()


def test_shipped_tables_are_whole_and_for_their_cards() -> None:
    for card, name in lookup.SHIPPED.items():
        if (Path(lookup.__file__).parent / f"{name}.json").exists():
            table = lookup.shipped_table(card)
            assert table.card == card
            assert table.entries


@pytest.mark.parametrize("card", list(lookup.SHIPPED))
@pytest.mark.parametrize(
    ("name", "parameters", "dims", "heads", "tokens"),
    [
        ("nsa", {}, (128, 128), (64, 4), 8192),
        ("nsa", {}, (128, 128), (64, 4), 65536),
        ("nsa", {}, (192, 128), (64, 4), 8192),
        ("nsa", {}, (192, 128), (64, 4), 65536),
        ("causal", {}, (128, 128), (32, 8), 16384),
        ("causal", {}, (128, 128), (32, 8), 32768),
        ("sliding_window", {"w": 1024}, (128, 128), (32, 8), 65536),
        ("sliding_window", {"w": 4096}, (128, 128), (32, 8), 65536),
    ],
)
def test_shipped_tables_know_the_kernels(
    card: str,
    name: str,
    parameters: dict[str, int],
    dims: tuple[int, int],
    heads: tuple[int, int],
    tokens: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As patterns are digested today: a table whose keys nobody asks for any more is as good as none."""
    monkeypatch.setattr(lookup, "_memory", {(card, "3.6.0"): Table(card, "", "", {})})
    pattern = load_spec(EXAMPLES / f"{name}.nsa").pattern(name, **parameters)
    kernels = tunable_kernels(pattern, sign(pattern))
    found = lookup.find_decisions(kernels, LaunchShape(*dims), tokens, *heads, card, "3.6.0")
    assert {each.name for each in kernels if not each.optional} <= set(found)


class FastWhenSmall:
    """A bench in the place of a GPU's: every kernel takes as long as its tile has rows, 200 with the default, and nothing is wrong."""

    check_seconds = 0.0

    def __init__(self, pattern: Pattern, shape: Shape, dtype: str, kernels: Any, compilers: Any, *, backward: bool) -> None:  # noqa: ARG002
        self.kernels = kernels

    def prepare(self, turns: Sequence[Pins]) -> None:
        pass

    def problems(self, pins: Pins, *, thorough: bool = False) -> list[str]:  # noqa: ARG002
        return []

    def times(self, pins: Pins, runs: int) -> dict[str, float]:  # noqa: ARG002
        return {name: float(pins[name].tiles.rows) if name in pins else 200.0 for name in self.kernels}


def test_what_is_tuned_is_used_by_the_next_call(nsa: Pattern, fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: CARD)
    monkeypatch.setattr("nsa_dsl.tuning.tune.card_of", lambda _: "sm_90")
    monkeypatch.setattr("nsa_dsl.tuning.tune.GpuBench", FastWhenSmall)
    monkeypatch.setattr("nsa_dsl.tuning.tune.Compilers", contextlib.nullcontext)
    seen, said = list[Tuned](), list[Progress]()
    shapes = [Shape(1, 64, 4, 8192, 128, 128)]
    table = tune_pattern(nsa, shapes, LaunchShape(), budget=60, report=seen.append, progress=said.append)
    (tuned,) = seen
    assert tuned.outcome.tried == tuned.outcome.of > 50
    assert (said[0].done, said[-1].done, said[-1].planned) == (0, tuned.outcome.of, tuned.outcome.of)
    lookup.forget()
    kernels = tunable_kernels(nsa, sign(nsa))
    pins = lookup.find_decisions(kernels, LaunchShape(), 9000, 64, 4, CARD, triton.__version__)
    assert pins.keys() == {each.name for each in kernels}
    assert pins["score_selected"] is not None
    assert pins["score_selected"].tiles.rows < 64
    assert {each.default_ms for each in table.entries.values()} == {200.0}
    assert [each.name for each in fresh.iterdir() if each.name == "tuned"] == ["tuned"]


class DefaultsWin(FastWhenSmall):
    """Every candidate takes as long as the default but for noise."""

    def times(self, pins: Pins, runs: int) -> dict[str, float]:  # noqa: ARG002
        return {name: 199.0 if name in pins else 200.0 for name in self.kernels}


def test_a_table_of_defaults_is_a_hit_and_changes_no_kernel(nsa: Pattern, fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: CARD)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr("nsa_dsl.tuning.tune.card_of", lambda _: "sm_90")
    monkeypatch.setattr("nsa_dsl.tuning.tune.GpuBench", DefaultsWin)
    monkeypatch.setattr("nsa_dsl.tuning.tune.Compilers", contextlib.nullcontext)
    path = fresh / "card.json"

    def tune(*arguments: str) -> Table:
        with pytest.raises(SystemExit) as ended:
            main(["tune", *arguments, "--card-json", str(path)])
        assert ended.value.code == 0
        found = from_json(path.read_text())
        assert found is not None
        return found

    examples = [str(EXAMPLES / f"{each}.nsa") for each in ("nsa", "causal")]
    table = tune(*examples, "--lengths", "8k,64k", "--commit", "abc")
    assert {(each.tokens, each.kernel.partition(".")[0]) for each in table.entries.values()} == {
        (tokens, name) for tokens in (8192, 65536) for name in ("nsa", "causal")
    }
    more = tune(str(EXAMPLES / "sliding_window.nsa"), "--lengths", "64k", "--heads", "32", "--kv-heads", "8")
    assert more.entries.items() > table.entries.items()
    entry = next(each for each in table.entries.values() if each.kernel == "nsa.attend_windowed")
    default = find_stands(nsa, LaunchShape(), backward=True)["attend_windowed"].pin
    assert (entry.default, entry.default_ms, entry.best_ms, entry.pin) == (default, 200.0, 199.0, None)
    assert entry.best not in (None, default)
    assert entry.tried > 3
    assert entry.versions.endswith("commit abc")

    # As it would be shipped: nothing in the user's cache.
    monkeypatch.setenv("NSA_CACHE_DIR", "")
    lookup.forget()
    monkeypatch.setattr(lookup, "shipped_table", lambda _: more)
    op, q = AttentionOp(nsa, tune="assert"), torch.empty(1, 64, 65536, 128, device="meta")
    for backward in (False, True):
        assert op._pins(LaunchShape(), q, 4, backward=backward) == ()


def test_another_card_of_the_same_generation_is_nobody_s() -> None:
    assert lookup.shipped_table("NVIDIA H100 PCIe").entries == {}


def _rank(rank: int, store: str, fails: bool, results: Any) -> None:
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)

    def make() -> Table:
        assert rank == 0
        if fails:
            raise ValueError("no card")
        return Table("card", "3", "x", {"key": _won(SMALL, 8)})

    try:
        results.put((rank, to_json(tune_on_first_rank(make))))
    except (RuntimeError, ValueError) as problem:
        results.put((rank, f"{type(problem).__name__}: {problem}"))
    dist.destroy_process_group()


@pytest.mark.parametrize("fails", [False, True])
def test_rank_0_tunes_for_all(tmp_path: Path, fails: bool) -> None:
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    ranks = [context.Process(target=_rank, args=(rank, str(tmp_path / "store"), fails, results)) for rank in range(2)]
    for each in ranks:
        each.start()
    found = dict(results.get(timeout=30) for _ in ranks)
    for each in ranks:
        each.join(timeout=30)
        assert each.exitcode == 0
    if fails:
        assert found == {0: "ValueError: no card", 1: "RuntimeError: rank 0 could not tune: ValueError: no card"}
    else:
        assert found[0] == found[1] == to_json(Table("card", "3", "x", {"key": _won(SMALL, 8)}))


def test_one_process_tunes_for_itself() -> None:
    assert tune_on_first_rank(lambda: Table("card", "3", "x", {})).card == "card"
