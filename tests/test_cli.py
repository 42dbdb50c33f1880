"""The command line: what each command prints, its exit status, and that a refused spec is a message and never a traceback."""

from __future__ import annotations

import ast
import json
import os
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from nsa_dsl.cli import main
from nsa_dsl.cli.outcome import busy, write_whole
from nsa_dsl.enumeration import enumerate_tiles
from nsa_dsl.loader import load_spec
from nsa_dsl.picture import Frame, tile_kinds
from nsa_dsl.relation import Var

WINDOW = "pattern local(w = 256) { output attend(tokens, causal & window(w)) }\n"
CHOOSING = """\
pattern choosing {
    summary = compress(block = 32, stride = 16, by = mean)
    coarse = attend(summary, causal)
    fine = attend(tokens, causal & top(4, block = 64, by = coarse, share = group, keep = first(1) | window(1)))
    output gate(coarse, fine)
}
"""
BROKEN = "pattern broken {\n    output attend(tokens, cuasal)\n}\n"


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    return written(tmp_path / "spec.nsa", WINDOW)


def written(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def nsa(*arguments: object) -> int:
    """The exit status of `nsa` with these arguments, run in this process."""
    with pytest.raises(SystemExit) as ended:
        main([str(each) for each in arguments])
    return int(ended.value.code or 0)


@pytest.mark.parametrize("command", ["check", "show", "graph", "compile --output out", "fmt"])
def test_a_bad_spec_is_a_rendered_diagnostic_and_status_2(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = BROKEN.replace("cuasal", "causal &") if command == "fmt" else BROKEN
    bad = written(tmp_path / "bad.nsa", text)
    done = subprocess.run([sys.executable, "-m", "nsa_dsl", *command.split(), str(bad)], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error[")
    assert f"--> {bad}:2:" in done.stderr
    assert "^" in done.stderr
    assert "Traceback" not in done.stderr
    assert sorted(tmp_path.iterdir()) == [bad]
    assert bad.read_text(encoding="utf-8") == text


@pytest.mark.parametrize("command", ["check", "show", "graph", "compile --output out", "fmt"])
def test_a_file_that_cannot_be_read_is_a_message_and_status_2(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("absent.nsa", "."):
        assert nsa(*command.split(), name) == 2
        shown = capsys.readouterr()
        assert shown.out == ""
        assert name in shown.err


@pytest.mark.parametrize(
    "arguments",
    [["bogus"], ["show"], ["show", "--bogus"], ["show", "--tile", "0", "x"], ["graph", "--format", "png", "x"], ["compile", "x"]],
)
def test_misuse_is_status_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert nsa(*arguments) == 2
    assert "Usage: nsa" in capsys.readouterr().err


def test_check_proves_and_refutes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = written(tmp_path / "good.nsa", "pattern good { output attend(tokens, window(4)) assert causal }")
    assert nsa("check", good) == 0
    assert capsys.readouterr().out == f"{good}\n  pattern good\n    proved     assert causal: for every sequence length\n"
    leaking = written(tmp_path / "leaking.nsa", "pattern leaking { output attend(tokens, around(3, 1)) assert causal }")
    assert nsa("check", leaking, good) == 1
    shown = capsys.readouterr().out
    assert "    refuted    assert causal: N = 2: query 0 sees key 1" in shown
    assert "proved " in shown


def test_check_looks_at_models_and_at_patterns_with_open_parameters(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = "pattern p(w) { output attend(tokens, window(w)) }\nmodel m { layers 2 { repeat p(8) } assert causal }"
    spec = written(tmp_path / "m.nsa", text)
    assert nsa("check", spec) == 0
    assert capsys.readouterr().out.splitlines()[1:] == [
        "  pattern p: p needs w, so only its names and kinds are checked",
        "  model m",
        "    proved     assert causal: for every sequence length",
    ]


def test_show_draws_full_partial_and_empty_tiles(spec: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert nsa("show", spec, "--tokens", 320) == 0
    shown = capsys.readouterr().out
    assert shown.splitlines()[:8] == [
        "pattern local, 320 tokens",
        "",
        "output: 64 queries x 64 keys a cell; 9 full, 6 partial of 25 tiles",
        "  ▒▒········",
        "  ██▒▒······",
        "  ████▒▒····",
        "  ██████▒▒··",
        "  ▒▒██████▒▒",
    ]


@pytest.mark.parametrize("tokens", [37, 256, 500])
@pytest.mark.parametrize(
    "where", ["causal & (stride(5) | window(70))", "neighborhood(16, 20, 3, 5)", "causal - window(64)", "causal & { i, j, h : h < 1 }"]
)
def test_picture_equals_looking_at_every_pair(where: str, tokens: int) -> None:
    relation = load_spec(f"relation r = {where}\npattern p {{ output attend(tokens, r) }}").relation("r")
    for head in (0, 1):
        drawn = tile_kinds(relation, 32, Var("N"), Frame(tokens, 64, head))
        assert drawn == enumerate_tiles(relation, 64, 32, tokens, head, 16).tolist()


def test_show_tells_kept_blocks_from_candidates(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert nsa("show", written(tmp_path / "c.nsa", CHOOSING), "--tokens", 256) == 0
    shown = capsys.readouterr().out
    coarse, fine = shown.split("coarse: ")[1].splitlines()[1:5], shown.split("fine: ")[1].splitlines()[1:5]
    # A slot of 32 tokens that begins in a query's own tile, or in the one before, is not whole for its first queries.
    assert coarse == ["  ▒▒······", "  ▒▒▒▒····", "  ██▒▒▒▒··", "  ████▒▒▒▒"]
    assert fine == ["  ▒▒······", "  ██▒▒····", "  ██○○▒▒··", "  ██○○○○▒▒"]


def test_show_binds_parameters(spec: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert nsa("show", spec, "--tokens", 256, "--set", "w=64", "-p", "local") == 0
    assert "  ····▒▒▒▒" in capsys.readouterr().out
    assert nsa("show", spec, "--set", "q=1") == 2
    assert "unknown-parameter" in capsys.readouterr().err
    assert nsa("show", spec, "--set", "w") == 2
    assert "NAME=VALUE" in capsys.readouterr().err


def test_show_refuses_what_no_terminal_can_hold(spec: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert nsa("show", spec, "--tokens", 100_000) == 2
    assert "--tile 782" in capsys.readouterr().err
    assert nsa("show", spec, "--tokens", 1_000_000, "--tile", 8192, "--set", "w=64k") == 0
    assert "▒▒██████████████▒▒" in capsys.readouterr().out
    assert nsa("show", spec, "--head", 16) == 2
    assert "--heads 17" in capsys.readouterr().err


def test_graph_prints_dot_and_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = written(tmp_path / "c.nsa", CHOOSING)
    assert nsa("graph", spec) == 0
    assert capsys.readouterr().out.startswith('digraph "choosing" {\n')
    assert nsa("graph", spec, "--format", "json") == 0
    graph = json.loads(capsys.readouterr().out)
    assert {"attend.coarse", "attend.fine", "select.fine"} <= {node["name"] for node in graph["nodes"]}


def test_graph_prints_the_gradient_graph_when_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = written(tmp_path / "c.nsa", CHOOSING)
    assert nsa("graph", spec, "--backward", "--format", "json") == 0
    graph = json.loads(capsys.readouterr().out)
    assert graph["passes"][-1] == "differentiate"
    assert {"gradient.q", "gradient.k", "gradient.v"} <= {node["name"] for node in graph["nodes"]}
    inverse = [edge for edge in graph["edges"] if edge["kind"] == "inverse_choice"]
    assert [(edge["from"], edge["to"]) for edge in inverse] == [("select.fine", "grad.attend.fine.keys")]
    assert nsa("graph", spec, "--backward") == 0
    assert '"select.fine" -> "grad.attend.fine.keys"' in capsys.readouterr().out


def test_a_command_for_one_pattern_asks_which(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    both = written(tmp_path / "both.nsa", WINDOW + CHOOSING)
    assert nsa("graph", both) == 2
    assert "local, choosing; choose one with --pattern" in capsys.readouterr().err
    assert nsa("graph", both, "--pattern", "local") == 0


def test_compile_writes_two_standalone_modules_a_pattern(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    both = written(tmp_path / "both.nsa", WINDOW + CHOOSING)
    assert nsa("compile", both, "--output", tmp_path / "made" / "here") == 0
    modules = sorted((tmp_path / "made" / "here").iterdir())
    assert [each.stem for each in modules] == [
        f"{name}_attention{suffix}" for name in ("choosing", "local") for suffix in ("", "_backward")
    ]
    assert capsys.readouterr().out.count("wrote ") == 4
    for module in modules:
        tree = ast.parse(module.read_text(encoding="utf-8"))
        imported = {name.name.split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names}
        imported |= {str(node.module).split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        assert imported <= {"__future__", "torch", "triton", "math"}


def test_compile_writes_nothing_unless_all_of_it_compiles(spec: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from nsa_dsl import compiler
    from nsa_dsl.pattern import NotSupported

    genuine = compiler.compile_source

    def refuse_choosing(pattern: object, *arguments: object) -> str:
        if getattr(pattern, "name", "") == "choosing":
            raise NotSupported("no kernel for this")
        return genuine(pattern, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(compiler, "compile_source", refuse_choosing)
    written(spec, WINDOW + CHOOSING)
    assert nsa("compile", spec, "--output", tmp_path / "made") == 2
    assert sorted(tmp_path.iterdir()) == [spec]


def test_fmt_formats_in_place_and_keeps_comments(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    untidy = written(tmp_path / "untidy.nsa", "# why\npattern  local(w=256){output attend( tokens,causal&window(w) )}")
    assert nsa("fmt", "--check", untidy) == 1
    assert untidy.read_text(encoding="utf-8").startswith("# why\npattern  local")
    assert nsa("fmt", untidy) == 0
    assert untidy.read_text(encoding="utf-8") == "# why\n" + WINDOW
    assert nsa("fmt", "--check", untidy) == 0
    assert capsys.readouterr().out == f"would format {untidy}\nformatted {untidy}\n"


def test_every_file_is_looked_at_and_the_worst_status_wins(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, untidy = written(tmp_path / "good.nsa", WINDOW), written(tmp_path / "untidy.nsa", WINDOW.replace(" = ", "="))
    assert nsa("fmt", "--check", tmp_path / "absent.nsa", untidy, good) == 2
    shown = capsys.readouterr()
    assert "absent.nsa" in shown.err
    assert shown.out == f"would format {untidy}\n"


def test_write_whole_leaves_the_old_file_when_it_fails(tmp_path: Path) -> None:
    target = written(tmp_path / "target", "old")
    with pytest.raises(UnicodeEncodeError):
        write_whole(target, "new \ud800")
    assert target.read_text(encoding="utf-8") == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_write_whole_writes_through_a_link_and_keeps_the_mode(tmp_path: Path) -> None:
    target, link = written(tmp_path / "target", "old"), tmp_path / "link"
    target.chmod(0o640)
    link.symlink_to(target)
    write_whole(link, "new")
    assert link.is_symlink()
    assert target.read_text(encoding="utf-8") == "new"
    assert stat.S_IMODE(target.stat().st_mode) == 0o640


def test_long_work_is_announced_and_short_work_is_not(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    with busy("short work"):
        pass
    assert capsys.readouterr().err == ""
    monkeypatch.setattr("nsa_dsl.cli.outcome.PATIENCE", 0.0)
    with busy("long work"):
        while "long work ..." not in capsys.readouterr().err:
            os.sched_yield()


TYPO = "pattern local(w = 512) {\n    output attend(tokens, cuasal & window(w))\n}\n"


def test_readme_shows_what_the_commands_print(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    root = Path(__file__).parent.parent
    sessions = re.findall(r"```\n\$ nsa (.*)\n((?s:.*?))```", (root / "README.md").read_text(encoding="utf-8"))
    assert [arguments.split()[0] for arguments, _ in sessions] == ["show", "check", "check"]
    written(tmp_path / "typo.nsa", TYPO)
    (tmp_path / "examples").symlink_to(root / "examples")
    monkeypatch.chdir(tmp_path)
    for arguments, printed in sessions:
        nsa(*arguments.split())
        shown = capsys.readouterr()
        assert (shown.out or shown.err) == printed
