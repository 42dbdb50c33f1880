"""The demonstration, on fewer bytes than it shows its users."""

from __future__ import annotations

from collections.abc import Iterator
from io import StringIO
from pathlib import Path

import pytest
import torch
from rich.console import Console

from nsa_dsl.compiler import compile_source
from nsa_dsl.demo import BOOKS, EXAMPLES, Lesson, Scale, draw_curve, read_text, run_demo, text_inputs
from nsa_dsl.examples.train.model import Config
from nsa_dsl.examples.train.train import Options, Step
from nsa_dsl.loader import load_spec
from nsa_dsl.nn.attention import compiled

SMALL = Scale(tokens=48, heads=2, kv_heads=1, d_qk=16, d_v=8, dtype="fp32")
SHORT = Lesson(
    1,
    Config(dim=16, heads=2, kv_heads=1, head_dim=8, hidden=32),
    Options(steps=5, context=24, rate=3e-2, warmup=2, half=False),
    {"w": 8, "b": 8, "n": 3},
)


def demonstrate() -> tuple[bool, str]:
    screen = StringIO()
    agreed = run_demo(Console(file=screen, width=160), scale=SMALL, lesson=SHORT)
    return agreed, screen.getvalue()


def test_demo_goes_from_text_to_agreement() -> None:
    agreed, screen = demonstrate()
    assert agreed
    for shown in ("summary    = compress(", "█ full", "lines of Triton in", "attend_selected", "local(w=64): running", "all kernels agree"):
        assert shown in screen
    assert "alternating.nsa: a byte-level language model of 1 layers" in screen
    assert "DISAGREE" not in screen
    assert "NOTHING LEARNED" not in screen


def test_demo_says_when_nothing_was_learned(monkeypatch: pytest.MonkeyPatch) -> None:
    def idle(*_: object) -> Iterator[Step]:
        return (Step(step, 2.0, 1.0, 0.1, 1.0, 1.0) for step in range(4))

    monkeypatch.setattr("nsa_dsl.demo.train", idle)
    monkeypatch.setattr("nsa_dsl.demo.SPECS", ())
    agreed, screen = demonstrate()
    assert not agreed
    assert "loss 2.000 at first, 2.000 at last, in nats a byte: NOTHING LEARNED" in screen


def test_curve_has_a_bar_a_step_or_a_mean_of_some() -> None:
    assert draw_curve([4.0, 0.5, 0.5, 2.25]) == "█▁▁▅"
    assert draw_curve([2.0] * 3) == "▁▁▁"
    assert draw_curve([3.0, 1.0, 0.0, 0.0, 1.0], width=3) == "█▁▅"


def test_demo_says_when_kernels_are_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nsa_dsl.op.compile_source", lambda *given: compile_source(*given).replace("<= rows[:, None])", "< rows[:, None])"))
    # Layers share ops by pattern: none made before is used here, and none made here after.
    compiled.cache_clear()
    agreed, screen = demonstrate()
    compiled.cache_clear()
    assert not agreed
    assert "some kernels DISAGREE" in screen


def test_text_is_python_and_the_same_every_time() -> None:
    text = read_text(300)
    assert b'"""' in text
    assert len(BOOKS) > 1
    nsa = load_spec(EXAMPLES / "nsa.nsa").pattern("nsa")
    first, second = (text_inputs(nsa, text[: SMALL.tokens], SMALL, torch.device("cpu")) for _ in range(2))
    assert torch.equal(first.q, second.q)
    assert first.options["gates"].shape == (1, 2, 48, 3)


def test_too_much_text_is_refused() -> None:
    with pytest.raises(OSError, match="are needed"):
        read_text(10**9)


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"nsa\.nsa"):
        run_demo(Console(file=StringIO()), folder=tmp_path)
