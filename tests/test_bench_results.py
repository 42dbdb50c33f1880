"""What benchmarks leave: tables, files, pictures, verdicts on goals; and parts that do not end."""

from __future__ import annotations

import json
import sys
import types
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import goals, parts, performance, plot, scaling, sections, start
from benchmarks.suite import ROOT
from nsa_dsl.bench.plot import NoMatplotlibError, draw, new_figure
from nsa_dsl.bench.rows import OWN, Row, Settings, from_json, speedup, to_json, write_json
from nsa_dsl.bench.run import SPENT
from nsa_dsl.bench.table import columns, notes, tables
from nsa_dsl.loader import load_spec
from nsa_dsl.pattern import Pattern

MACHINE = {"card": "NVIDIA H100 80GB HBM3", "torch": "2.11.0", "triton": "3.6.0", "python": "3.12", "commit": "0" * 40}


def rows() -> list[Row]:
    """What a run might find at two lengths."""
    blank = Row("nsa", "64/4 heads", 8192, OWN)
    found = []
    for tokens, own, cudnn, flash in ((8192, 2.0, 1.0, 3.0), (65536, 20.0, 120.0, 200.0)):
        found += [
            replace(
                blank, tokens=tokens, choices="random", forward_ms=own, backward_ms=2 * own, union=54.3, kernels={"attend_selected": 1.5}
            ),
            replace(blank, tokens=tokens, contender="cudnn", forward_ms=cudnn, note="every key, causal"),
            replace(blank, tokens=tokens, contender="flash", forward_ms=flash),
            replace(blank, tokens=tokens, contender="flex", refused="one softmax only"),
        ]
    return found


def test_the_table_says_what_was_found() -> None:
    found = rows()
    (table,) = tables(found)
    assert table.row_count == 6
    headings = [heading for heading, _ in columns(found)]
    assert headings == ["tokens", "", "fwd ms", "bwd ms", "fwd vs dense", "union of 4"]
    cells = {heading: [cell(row) for row in found] for heading, cell in columns(found)}
    assert cells["fwd vs dense"] == ["0.50x", "1.00x", "0.33x", "", "6.00x", "1.00x", "0.60x", ""]
    assert cells[""][0] == "nsa_dsl, random"
    assert speedup(found, found[0], "backward") is None
    told = notes(found)
    assert "dense, cuDNN: every key, causal" in told
    assert "nsa, FlexAttention: not measured, one softmax only (at 8,192, 65,536 tokens)" in told


def test_results_survive_a_file(tmp_path: Path) -> None:
    path = tmp_path / "new" / "x.json"
    write_json(path, MACHINE, rows(), {"sections": ["nsa"]})
    found = json.loads(path.read_text())
    assert set(found) == {"format", "machine", "sections", "rows"}
    assert set(found["rows"][0]) == set(Row.__dataclass_fields__)
    assert from_json(path.read_text()) == parts.read_rows(path) == rows()
    assert parts.read_rows(tmp_path / "none.json") == []
    with pytest.raises(ValueError, match="format"):
        from_json('{"runs": []}')
    assert [parts.card_of({"card": name}) for name in (MACHINE["card"], "NVIDIA A100-SXM4-80GB", "NVIDIA GeForce RTX 4090", "")] == [
        "h100", "a100", "rtx4090", "gpu"
    ]  # fmt: skip


class Canvas:
    """A stand-in for matplotlib's figures and axes that notes what is called."""

    def __init__(self, **options: Any) -> None:
        self.options, self.calls, self.parts = options, list[tuple[str, tuple[Any, ...]]](), list["Canvas"]()

    def subplots(self, rows: int, columns: int, **_: Any) -> list[list[Canvas]]:
        grid = [[Canvas() for _ in range(columns)] for _ in range(rows)]
        self.parts = [each for line in grid for each in line]
        return grid

    def savefig(self, path: Path, **_: Any) -> None:
        path.write_bytes(b"png")

    def __getattr__(self, name: str) -> Any:
        return lambda *given, **_: self.calls.append((name, given))


def test_the_picture_holds_every_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", types.SimpleNamespace(Figure=Canvas))  # type: ignore[arg-type]
    figure = draw(rows(), MACHINE)
    times, _, speedups, _ = ([given for name, given in each.calls if name == "plot"] for each in figure.parts)
    assert [given[:2] for given in times] == [((8192, 65536), ms) for ms in ((2.0, 20.0), (1.0, 120.0), (3.0, 200.0))]
    assert [given[:2] for given in speedups] == [((8192, 65536), (0.5, 6.0)), ((8192, 65536), (pytest.approx(1 / 3), 0.6))]
    path = tmp_path / "x.json"
    path.write_text(to_json(MACHINE, rows()))
    monkeypatch.setattr(sys, "argv", ["plot.py", str(path)])
    assert plot.main() == 0
    assert path.with_suffix(".png").read_bytes() == b"png"
    with pytest.raises(ValueError, match="nothing to draw"):
        draw([], MACHINE)


def test_without_matplotlib_there_is_a_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(NoMatplotlibError, match=r"pip install 'nsa-dsl\[bench\]'"):
        new_figure(1, 1)


def test_the_commands_show_their_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    found = [replace(each, case="NSA") for each in rows()]
    performance._show(found, MACHINE, tmp_path / "performance-h100.json")
    shown = capsys.readouterr()
    for expected in ("attend_selected", "beaten by 70%", "6.00x", "(at 8,192, 65,536 tokens)"):
        assert expected in shown.out
    assert "pip install" in shown.err
    text = (tmp_path / "performance-h100.md").read_text()
    assert "| tokens |  | fwd ms | bwd ms | fwd vs dense | union of 4 |" in text
    assert "| 65,536 | nsa_dsl, random | 20.00 | 40.00 | 6.00x | 54.3 |" in text
    scaled = scaling.per_token_table([row for row in rows() if row.contender == OWN])
    assert [list(column.cells)[1] for column in scaled.columns] == ["nsa, random", "65,536", "305.2", "1.25x", "610.4", "1.25x"]


def test_a_later_call_keeps_what_it_does_not_measure() -> None:
    def row(case: str, contender: str, tokens: int, ms: float | None = None, commit: str = "", refused: str = "") -> Row:
        return Row(case, "64/4 heads", tokens, contender, forward_ms=ms, commit=commit, refused=refused)

    old = [
        row("NSA", OWN, 8192, 1.0, "old"),
        row("NSA", OWN, 16384, 2.0, "old"),
        row("NSA", OWN, 32768, refused=SPENT),
        row("NSA", "section nsa", 65536, refused="cut off after 9 s"),
        row("NSA", "section fla", 8192, refused="cut off after 9 s"),
        row("causal", OWN, 8192, 3.0, "old"),
    ]
    new = [row("NSA", OWN, 8192, 0.5, "new"), row("NSA", OWN, 16384, refused=SPENT), row("NSA", OWN, 65536, refused=SPENT)]
    found = performance.merged(old, new, "nsa")
    assert found == [old[1], old[4], old[5], new[0], new[2]]
    assert [each for each in notes(found) if each.startswith("at ")] == ["at old: NSA (nsa_dsl); causal (nsa_dsl)", "at new: NSA (nsa_dsl)"]
    assert performance.merged(found, [row("NSA", OWN, 8192, refused="out of memory")], "nsa")[-1].refused == "out of memory"


def test_goals_are_of_cases_that_are_measured() -> None:
    jobs = {(job.case, tokens) for jobs in sections.SECTIONS.values() for job in jobs for tokens in job.settings.lengths}
    assert {(goal.case, goal.tokens) for goal in goals.GOALS} <= jobs
    choices = {
        (job.case, tokens, job.settings.sharing) for jobs in sections.SECTIONS.values() for job in jobs for tokens in job.settings.lengths
    }
    assert {(goal.case, goal.tokens, goal.choices) for goal in goals.GOALS if goal.choices} <= choices
    assert set(sections.BUDGETS) == set(sections.SECTIONS)
    for job in {job for jobs in sections.SECTIONS.values() for job in jobs}:
        assert isinstance(load_spec(ROOT / job.file).pattern(job.pattern, **dict(job.parameters)), Pattern)


def test_goals_are_missed_or_beaten_by_so_much() -> None:
    assert goals.verdict(17, 34, more=False) == "beaten by 100%"
    assert goals.verdict(51, 34, more=False) == "missed by 50%"
    assert goals.verdict(880, 800, more=True) == "beaten by 10%"
    assert goals.verdict(400, 800, more=True) == "missed by 100%"
    assert goals.verdict(None, 800, more=True) == "not measured"
    found = [
        Row("causal", "", 16384, OWN, forward_ms=1.0, backward_ms=3.0, forward_tflops=700.0, backward_tflops=500.0),
        Row("selected alone", "", 8192, OWN, "random", forward_ms=1.0),
        Row("selected alone", "", 262144, OWN, "random", forward_ms=40.0),
    ]
    values = {(goal.case, goal.choices, goal.measure): goals.measured(goal, found) for goal in goals.GOALS if goal.tokens != 32768}
    assert values["causal", "", "both_tflops"] == pytest.approx(550)
    assert values["selected alone", "random", "forward_per_token"] == pytest.approx(40 / 32)
    assert values["selected alone", "random", "backward_per_token"] is None
    assert values["selected alone", "clustered", "forward_per_token"] is None
    assert values["NSA", "random", "forward_ms"] is None
    assert goals.goal_table(found).row_count == len(goals.GOALS)
    lines = goals.goal_markdown(found).splitlines()
    assert len(lines) == 4 + len(goals.GOALS)
    assert "| causal | 16k | forward tflops | >= 690 |  | 700 | beaten by 1% |  |" in lines
    assert len({line.count("|") for line in lines[2:]}) == 1


def test_a_part_that_hangs_is_cut_off(tmp_path: Path) -> None:
    script = tmp_path / "part.py"
    script.write_text("import sys, time\ntime.sleep(30 if sys.argv[1] == 'hang' else 0)\nsys.exit(sys.argv[1] == 'fail')\n")
    assert "cut off after" in str(parts.run_part(script, ["hang"], 0.1, grace=0.2))
    assert parts.run_part(script, ["fail"], 5) == "ended with status 1"
    assert parts.run_part(script, ["well"], 5) is None


def test_settings_read_well() -> None:
    assert str(Settings((1,))) == "64/4 heads, D = 128, bf16"
    assert str(Settings((1,), heads=32, kv_heads=2, dim_qk=192)) == "32/2 heads, D = 192/128, bf16"


@pytest.mark.parametrize("script", [performance, scaling, start])
def test_without_a_gpu_nothing_is_measured(
    script: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["script.py", "--out", str(tmp_path)])
    assert script.main() == 2
    assert "needs a GPU" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_start_is_told_by_its_parts(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The first process, which fills the caches, is not counted; medians are of each part, and of what is ours together."""
    runs = [dict.fromkeys((*start.THEIRS, *start.OURS), 100.0)]
    runs += [{**dict.fromkeys((*start.THEIRS, *start.OURS), 0.25), "forward": forward, "torch": 3.0} for forward in (0.5, 9.0, 1.0)]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(start, "_run", lambda: runs.pop(0))
    monkeypatch.setattr("nsa_dsl.bench.timing.describe_machine", lambda _: {"card": "NVIDIA H100 80GB HBM3"})
    monkeypatch.setattr(sys, "argv", ["start.py", "--runs", "3", "--out", str(tmp_path)])
    assert start.main() == 0
    found = json.loads((tmp_path / "start-h100.json").read_text())
    assert (found["runs"], found["seconds"]["torch"], found["seconds"]["forward"], found["ours"]) == (3, 3.0, 1.0, 2.0)
    assert "ours    2.00 s" in capsys.readouterr().out
