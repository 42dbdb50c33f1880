"""The demonstration, on fewer bytes than it shows its users."""

from __future__ import annotations

from io import StringIO
from pathlib import Path

import pytest
import torch
from rich.console import Console

from nsa_dsl.compiler import compile_source
from nsa_dsl.demo import BOOKS, EXAMPLES, Scale, read_text, run_demo, text_inputs
from nsa_dsl.loader import load_spec

SMALL = Scale(tokens=48, heads=2, kv_heads=1, d_qk=16, d_v=8, dtype="fp32")


def demonstrate() -> tuple[bool, str]:
    screen = StringIO()
    agreed = run_demo(Console(file=screen, width=160), scale=SMALL)
    return agreed, screen.getvalue()


def test_demo_goes_from_text_to_agreement() -> None:
    agreed, screen = demonstrate()
    assert agreed
    for shown in ("summary    = compress(", "█ full", "lines of Triton in", "attend_selected", "local(w=64): running", "all kernels agree"):
        assert shown in screen
    assert "DISAGREE" not in screen


def test_demo_says_when_kernels_are_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nsa_dsl.op.compile_source", lambda *given: compile_source(*given).replace("<= rows[:, None])", "< rows[:, None])"))
    agreed, screen = demonstrate()
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
