"""The cost model: counts are exact, times follow work, and what was measured is predicted in the right order."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.fit_cost import Measured, _kernels, fit, measured, report
from nsa_dsl import count, work
from nsa_dsl.arguments import Shape
from nsa_dsl.bench.inputs import draw_blocks, mean_union
from nsa_dsl.bench.rows import Sharing
from nsa_dsl.cli import main
from nsa_dsl.cost import Rate, efficiency, load_model, milliseconds, order_candidates, predict_ms
from nsa_dsl.count import count_pairs
from nsa_dsl.enumeration import enumerate_tiles
from nsa_dsl.integer_set import TooComplex
from nsa_dsl.launch import LaunchShape, Pin, Tiles
from nsa_dsl.lift import lift_to_slots, slot_count
from nsa_dsl.loader import load_spec
from nsa_dsl.pattern import Compress, Pattern
from nsa_dsl.relation import Var
from nsa_dsl.work import Call, kernels, union_sizes, visits

ROOT = Path(__file__).parent.parent
PORTABLE = LaunchShape(templates="portable")


@pytest.fixture(scope="module")
def nsa() -> Pattern:
    return load_spec(ROOT / "examples" / "nsa.nsa").pattern("nsa")


@pytest.mark.parametrize("over", ["keys", "queries"])
@pytest.mark.parametrize(("file", "name"), [("causal", "causal"), ("gemma", "local"), ("strided", "strided"), ("streaming", "streaming")])
def test_visits_are_those_of_an_enumeration(file: str, name: str, over: str) -> None:
    (branch,) = load_spec(ROOT / "examples" / f"{file}.nsa").pattern(name).branches
    for tokens, rows, cols in ((257, 32, 16), (300, 16, 64)):
        tiles = enumerate_tiles(branch.where, rows, cols, tokens, 0)
        axis = 1 if over == "keys" else 0
        full, partial = visits(branch.where, rows, cols, Call(tokens, 1, 1), Var("N"), over)  # type: ignore[arg-type]
        assert np.array_equal(full + partial, (tiles > 0).sum(axis))
        # Where isl finds no closed form for full tiles they count as partial: slower, never faster.
        assert (full <= (tiles == 2).sum(axis)).all()


def test_visible_pairs_are_exact(nsa: Pattern) -> None:
    call = Call(1000, 4, 2)
    found = kernels(nsa, PORTABLE, call)
    compressed, windowed = nsa.branch("compressed"), nsa.branch("windowed")
    assert isinstance(compressed.memory, Compress)
    slots = lift_to_slots(compressed.where, compressed.memory.block, compressed.memory.stride)
    assert found["attend_compressed"].work().visible == count_pairs(slots, 1000, heads=4, kv_heads=2, keys=slot_count(compressed.memory))
    for name in ("attend_windowed", "attend_windowed_queries", "attend_windowed_keys"):
        assert found[name].work().visible == count_pairs(windowed.where, 1000, heads=4, kv_heads=2)


def test_many_tiles_are_counted_a_part_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scattered blocks are asked for tile by tile: at 32k tokens all at once would take gigabytes."""
    scattered = load_spec(ROOT / "benchmarks/patterns.nsa").pattern("blocks", b=64, m=7)
    (branch,) = scattered.branches
    whole = [visits(branch.where, 16, 16, Call(2048, 4, 2), Var("N"), "keys")]
    count.count_tiles.cache_clear()
    monkeypatch.setattr(count, "_TILES_AT_ONCE", 100)
    whole.append(visits(branch.where, 16, 16, Call(2048, 4, 2), Var("N"), "keys"))
    assert np.array_equal(*whole)
    assert int(np.sum(whole[0])) > 0


def test_what_is_too_much_to_count_at_once_is_counted_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> int:
        raise TooComplex("too many pairs")

    (branch,) = load_spec(ROOT / "benchmarks/patterns.nsa").pattern("blocks", b=16, m=7).branches
    monkeypatch.setattr(work, "count_pairs", refuse)
    assert work._visible(branch.where, Call(500, 4, 2), Var("N")) == count_pairs(branch.where, 500, heads=4, kv_heads=2)


def test_time_grows_as_the_pattern_does(nsa: Pattern) -> None:
    model = load_model("h100")

    def ms(tokens: int) -> dict[str, float]:
        found = kernels(nsa, PORTABLE, Call(tokens, 64, 4)).values()
        return {each.name: predicted for each in found if (predicted := predict_ms(each.work(), model)) is not None}

    one, two = ms(32768), ms(65536)
    for name in one:
        growth = two[name] / one[name]
        low, high = (3.3, 4.1) if "compressed" in name or "score" in name else (1.9, 2.1)
        # Neighbours find more blocks to differ in.
        low, high = (2.05, 2.2) if "union" in name else (low, high)
        assert low < growth < high, name


@pytest.mark.parametrize("sharing", ["random", "clustered", "identical"])
@pytest.mark.parametrize("queries", [2, 4, 8])
def test_unions_are_as_large_as_those_of_lists_that_are_drawn(sharing: Sharing, queries: int) -> None:
    choice = load_spec(ROOT / "benchmarks" / "patterns.nsa").pattern("selected").branches[0].choices[0]
    lists = draw_blocks(choice, Shape(1, 2, 2, 8192, 16, 16), sharing, torch.Generator().manual_seed(0))
    expected = union_sizes(choice, Call(8192, 2, 2, sharing=sharing), queries)
    assert len(expected) == 8192 // queries
    assert expected.mean() == pytest.approx(mean_union(lists, queries), rel=0.025)


def test_small_groups_may_go_by_blocks() -> None:
    """Where the host may launch these kernels: few heads a group, many lists."""
    pattern = load_spec(ROOT / "benchmarks" / "patterns.nsa").pattern("selected")
    beside = {"attend_output_by_blocks", "attend_output_merged"}
    assert beside <= set(kernels(pattern, PORTABLE, Call(32768, 64, 16)))
    assert not beside & set(kernels(pattern, PORTABLE, Call(32768, 64, 4)))
    assert not beside & set(kernels(pattern, PORTABLE, Call(4096, 64, 16)))
    written, read = (kernels(pattern, PORTABLE, Call(32768, 64, 16))[each].work().moved for each in sorted(beside))
    parts = 64 * 32768 * 16 * 129 * 4
    # The first queries choose fewer than 16 blocks.
    assert 0.98 * parts < read < parts < written
    unions = [kernels(pattern, PORTABLE, Call(32768, 64, each))["attend_output_union"].work() for each in (16, 8, 4)]
    assert [each.tiles.rows for each in unions] == [16, 64, 64]


@pytest.mark.parametrize("kv_heads", [4, 16, 64])
def test_no_kernel_does_more_that_is_useful_than_it_does(kv_heads: int) -> None:
    pattern = load_spec(ROOT / "benchmarks" / "patterns.nsa").pattern("selected")
    for each in kernels(pattern, PORTABLE, Call(32768, 64, kv_heads)).values():
        work = each.work()
        done = float((work.full + work.partial).sum()) * work.copies * work.repeats * work.operations
        assert 0.05 * done < work.useful <= done, each.name


def test_of_two_kernels_beside_each_other_the_one_that_ran_counts() -> None:
    pattern, call = load_spec(ROOT / "benchmarks" / "patterns.nsa").pattern("selected"), Call(32768, 64, 16)
    for ran, left in (("union", {"by_blocks", "merged"}), ("by_blocks", {"union"})):
        times = {f"attend_output_{each}": 9.0 if each == ran else 0.1 for each in ("union", "by_blocks", "merged")}
        found = {each.work.kind for each in _kernels("", pattern, PORTABLE, call, times)}
        assert found == {"union", "by_blocks", "merged"} - left


def test_the_h200_stands_in_with_the_rates_of_the_h100_until_it_is_measured() -> None:
    one, other = load_model("h100"), load_model("h200")
    assert other.rates.keys() == one.rates.keys()
    assert other.memory_tbs > one.memory_tbs
    with pytest.raises(KeyError):
        load_model("abacus")


def test_what_spills_or_starves_matrix_units_comes_last(nsa: Pattern) -> None:
    usual = Tiles(32, 64, 4, 3)
    assert efficiency(replace(usual, warps=8), "chosen_keys") < 0.6 * efficiency(usual, "chosen_keys")
    assert efficiency(Tiles(64, 64, 4, 3), "static_keys") < efficiency(Tiles(64, 64, 4, 2), "static_keys")
    kernel = kernels(nsa, PORTABLE, Call(65536, 64, 4))["attend_windowed_keys"]
    pins = [Pin(Tiles(64, 64, 4, 3)), Pin(Tiles(32, 128, 8, 3)), Pin(Tiles(16, 16, 8, 1))]
    assert order_candidates(kernel, pins, load_model("h100")) == (pins[1], pins[0], pins[2])


def test_nine_of_ten_measured_pairs_are_in_the_right_order() -> None:
    found = measured("h100", ())
    right, pairs = report(found, load_model("h100"))
    assert len(found) > 30
    assert right >= 0.9 * pairs, "refit: python benchmarks/fit_cost.py --write"


def test_a_rate_is_found_again_from_the_times_that_it_gives(nsa: Pattern) -> None:
    model = load_model("h100")
    works = [kernels(nsa, PORTABLE, Call(tokens, 64, 4))["attend_compressed_queries"].work() for tokens in (8192, 32768, 65536)]
    true = Rate(500.0, 1.5, 2.0)
    fitted = fit([Measured("", each, milliseconds(each, model, true)) for each in works], model)
    assert fitted.rates["triton/static_queries"] == replace(true, tflops=pytest.approx(500.0, rel=1e-3))


def test_the_command_prints_a_prediction_for_each_kernel(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    with pytest.raises(SystemExit) as ended:
        main(["cost", str(ROOT / "examples" / "nsa.nsa"), "--lengths", "8k", "--portable", "--forward-only"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert "nsa, 8192 tokens, 64/4 heads, h100" in shown
    for name in ("attend_windowed", "attend_compressed", "attend_selected", "score_selected"):
        assert name in shown
    with pytest.raises(SystemExit) as refused:
        main(["cost", str(ROOT / "examples" / "nsa.nsa"), "--card", "abacus"])
    assert refused.value.code == 2
