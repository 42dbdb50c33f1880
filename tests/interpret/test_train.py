"""The example language model: what it reads, that it learns, and that a dense twin learns the same."""

from __future__ import annotations

import json
import math
import runpy
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

import nsa_dsl
from benchmarks import plot
from benchmarks import train as suite
from nsa_dsl.examples.train.data import Text, batch_of, read_library
from nsa_dsl.examples.train.model import Attention, Config, LanguageModel
from nsa_dsl.examples.train.train import Options, Step, make_model, rate_at, train, validate
from nsa_dsl.program import AttentionPattern

ROOT = Path(__file__).parents[2]
TINY = Config(dim=16, heads=2, kv_heads=1, head_dim=8, hidden=32)
BRIEF = Options(steps=4, context=24, rate=3e-2, warmup=2, half=False)


def layers_of(name: str) -> list[AttentionPattern]:
    small = {"alternating": {"w": 8, "b": 4, "n": 3}, "nsa_small": {"l": 8, "d": 4, "b": 8, "n": 3, "w": 8}}
    return list(nsa_dsl.load(ROOT / f"examples/train/{name}.nsa").model(name, **small[name]))


@pytest.fixture(scope="module")
def text() -> Text:
    return read_library(most=200_000)


def losses(layers: list[AttentionPattern], text: Text, attention: Attention, options: Options = BRIEF) -> list[float]:
    return [step.loss for step in train(make_model(layers, TINY, options, attention), text, options)]


def test_library_is_read_the_same_every_time() -> None:
    first, second = read_library(most=300_000), read_library(most=300_000)
    assert torch.equal(first.train, second.train)
    assert torch.equal(first.validation, second.validation)
    assert len(first.train) >= 300_000
    assert b"import" in bytes(first.train.tolist())


def test_library_keeps_some_files_for_validation(tmp_path: Path) -> None:
    for index in range(60):
        for folder in ("", "package", "test", "site-packages"):
            (tmp_path / folder).mkdir(exist_ok=True)
            (tmp_path / folder / f"m{index:02}.py").write_text(f"<{folder}/{index}>")
    (tmp_path / "notes.txt").write_text("<no module>")
    (tmp_path / "_sysconfigdata__linux.py").write_text("<paths>")
    read = read_library(tmp_path)
    sides = [set(bytes(each.tolist()).decode().split("\0")) for each in (read.train, read.validation)]
    assert sides[0] | sides[1] == {f"<{folder}/{index}>" for folder in ("", "package") for index in range(60)}
    assert not sides[0] & sides[1]
    assert 1 <= len(sides[1]) <= 20
    (tmp_path / "m00.py").unlink()
    assert set(bytes(read_library(tmp_path).validation.tolist()).decode().split("\0")) == sides[1] - {"</0>"}


def test_a_folder_without_modules_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="does not hold enough Python modules"):
        read_library(tmp_path)


def test_batches_come_from_their_seed_and_end_one_further(text: Text) -> None:
    given, wanted = batch_of(text.train, 30, 3, seed=5)
    assert given.shape == wanted.shape == (3, 30)
    assert torch.equal(given[:, 1:], wanted[:, :-1])
    assert torch.equal(given, batch_of(text.train, 30, 3, seed=5)[0])
    assert not torch.equal(given, batch_of(text.train, 30, 3, seed=6)[0])
    with pytest.raises(ValueError, match="context: 40 tokens"):
        batch_of(text.train[:40], 40, 1, seed=0)


def test_rate_rises_then_falls_to_a_tenth() -> None:
    options = Options(steps=100, warmup=10, rate=2.0)
    rates = [rate_at(step, options) for step in range(101)]
    assert rates[:10] == pytest.approx([0.2 * (step + 1) for step in range(10)])
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert (rates[10], rates[55], rates[100]) == pytest.approx((2.0, 1.1, 0.2))


@pytest.mark.parametrize(("name", "depth"), [("alternating", 2), ("nsa_small", 1)])
def test_model_learns_and_so_does_its_dense_twin(name: str, depth: int, text: Text) -> None:
    layers = layers_of(name)[:depth]
    kernels, reference = (losses(layers, text, attention) for attention in ("kernels", "reference"))
    assert kernels[-1] < kernels[0]
    assert kernels == pytest.approx(reference, abs=1e-4)
    assert kernels[0] == pytest.approx(math.log(256), abs=0.2)


def test_dense_model_learns_and_differs(text: Text) -> None:
    dense = losses(layers_of("alternating"), text, "dense", replace(BRIEF, steps=30, batch=8, rate=1e-2))
    assert sum(dense[-3:]) / 3 < dense[0] - 1
    longer = replace(BRIEF, context=60)
    model, sparse = (make_model(layers_of("alternating"), TINY, longer, each) for each in ("dense", "reference"))
    assert validate(model, text, longer, 2) == validate(model, text, longer, 2)
    assert validate(model, text, longer, 2) != validate(sparse, text, longer, 2)


def test_a_model_looks_at_nothing_that_comes_later(text: Text) -> None:
    given, _ = batch_of(text.train, 40, 1, seed=0)
    changed = given.clone()
    changed[0, 25:] = 0
    for attention in ("reference", "dense"):
        for name in ("alternating", "nsa_small"):
            model = make_model(layers_of(name), TINY, BRIEF, attention)
            torch.testing.assert_close(model(changed)[:, :25], model(given)[:, :25])
            assert not torch.allclose(model(changed)[:, 25:], model(given)[:, 25:])


def test_layers_that_reuse_a_choice_get_it_from_the_layer_that_made_it() -> None:
    program = nsa_dsl.load("""
        pattern far { far = attend(tokens, causal & top(2, block = 4, by = mean, share = group, keep = window(1))) output far }
        pattern near { output attend(tokens, window(4)) }
        model m { layers 3 { 0: far 1: near rest: far reuse(far) } }
    """)
    torch.manual_seed(0)
    model = LanguageModel(list(program.model("m")), TINY, "reference")
    seen: list[object] = []
    for block in model.blocks:
        original = block.attention.forward
        block.attention.forward = lambda x, original=original, **call: (seen.append(call["choices"]), original(x, **call))[1]
    model(torch.arange(20)[None])
    assert seen[:2] == [None, None]
    _, chosen = model.blocks[0].attention(
        model.blocks[0].attention_norm(model.embedding(torch.arange(20)[None])), choices=None, return_choices=True
    )
    assert torch.equal(seen[2]["far"], chosen["far"])


def test_script_prints_a_line_a_step(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = "--context 24 --dim 16 --heads 2 --kv-heads 1 --head-dim 8 --hidden 32 --steps 3 --validate 1 --device cpu"
    given = f"{ROOT}/examples/train/alternating.nsa {sizes} --backend reference --set w=8 b=4 n=3"
    monkeypatch.setattr(sys, "argv", ["train.py", *given.split()])
    with pytest.raises(SystemExit, match="0"):
        runpy.run_path(str(ROOT / "examples/train/train.py"), run_name="__main__")
    lines = [json.loads(each) for each in capsys.readouterr().out.splitlines()]
    assert [each["step"] for each in lines[:3]] == [0, 1, 2]
    assert lines[0].keys() == {"step", "loss", "norm", "rate", "seconds", "tokens_per_second"}
    assert 0 < lines[3]["validation"] < 6


def a_run(name: str, loss: list[float], steps: int = 4) -> suite.Run:
    machine = {"card": "card", "torch": "1", "triton": "2", "commit": "unknown"}
    return suite.Run(name, loss, 2.0, 1000.0, 1.0, 9.0, machine, asdict(Config()), asdict(Options(steps=steps)))


def test_curves_agree_within_twice_the_noise() -> None:
    kernels, nudged = [5.0, 4.0, 3.0, 2.0], [5.1, 4.1, 2.9, 1.9]
    for shift, agree in ((0.19, True), (0.21, False), (math.nan, False)):
        runs = [
            a_run("nsa_small/kernels", kernels),
            a_run("nsa_small/nudged", nudged),
            a_run("nsa_small/reference", [x - shift for x in kernels]),
        ]
        found = suite.compare("nsa_small", {each.name: each for each in runs})
        assert found is not None
        assert found.agree is agree
        assert found.noise == pytest.approx(0.1)
    assert suite.compare("alternating", {}) is None
    other = [a_run("nsa_small/kernels", kernels), a_run("nsa_small/nudged", nudged), a_run("nsa_small/reference", kernels, steps=5)]
    with pytest.raises(ValueError, match="not made with the same sizes"):
        suite.compare("nsa_small", {each.name: each for each in other})


def test_nudge_moves_every_parameter_by_less_than_bfloat16_can_tell() -> None:
    model, same = (make_model(layers_of("nsa_small")[:1], TINY, BRIEF, "reference") for _ in range(2))
    suite.nudge(model, 1)
    for name, each in model.named_parameters():
        before = same.get_parameter(name)
        assert bool(((each - before).abs() <= 2**-9 * before.abs() * 1.001).all()), name
        assert torch.equal(each, before) == (not bool(before.any())), name


def test_smoothing_is_a_running_mean() -> None:
    assert plot.smooth([4.0, 2.0, 0.0, 6.0], 2) == [4.0, 3.0, 1.0, 3.0]


def test_drawing_without_matplotlib_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "train.json"
    suite.write(path, {"nsa_small/kernels": a_run("nsa_small/kernels", [1.0])})
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.setattr(sys, "argv", ["plot.py", str(path)])
    assert plot.main() == 2
    assert "pip install 'nsa-dsl[bench]'" in capsys.readouterr().err


def test_steps_say_how_fast_they_were(text: Text) -> None:
    options = replace(BRIEF, steps=1, batch=2)
    (step,) = train(make_model(layers_of("alternating")[:1], TINY, options, "dense"), text, options)
    assert isinstance(step, Step)
    assert step.tokens_per_second * step.seconds == pytest.approx(48)
