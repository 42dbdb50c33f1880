"""The public interface: what `import nsa_dsl` costs and what its objects do, without kernels."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import nsa_dsl
from nsa_dsl.program import AttentionPattern, Program
from nsa_dsl.prove import Verdict

EXAMPLES = Path(__file__).parent.parent / "examples"
PLAIN = """
pattern plain(w = 4) { output attend(tokens, window(w))
                       assert causal }
model deep { layers 3 { repeat plain } }
"""
REUSING = """
pattern chooser {
    selected = attend(tokens, causal & top(2, block = 4, by = mean, share = group))
    output selected
}
model pair { layers 4 { 0: chooser rest: chooser reuse(selected) } }
"""


def run(script: str) -> str:
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.fixture(scope="module")
def program() -> Program:
    return nsa_dsl.load(PLAIN)


@pytest.fixture(scope="module")
def paper() -> AttentionPattern:
    return nsa_dsl.load(EXAMPLES / "nsa.nsa").pattern("nsa", n=8)


def test_import_is_quick_and_light() -> None:
    script = (
        "import time, sys; t = time.perf_counter(); import nsa_dsl; took = time.perf_counter() - t\n"
        "heavy = [each for each in ('torch', 'triton', 'islpy', 'lark', 'networkx', 'jinja2') if each in sys.modules]\n"
        "print(took < 0.3, heavy, nsa_dsl.__version__)"
    )
    assert run(script).startswith("True [] 0.")


def test_source_needs_no_torch() -> None:
    made = f"nsa_dsl.load({str(EXAMPLES / 'nsa.nsa')!r}).pattern('nsa').source()"
    assert run(f"import sys, nsa_dsl; {made}; print('torch' in sys.modules, 'triton' in sys.modules)") == "False False"


@pytest.mark.parametrize("before", ["import nsa_dsl.loader", "from nsa_dsl.program import Program", "nsa_dsl.load"])
def test_load_is_the_function_whatever_was_imported_before(before: str) -> None:
    assert run(f"import nsa_dsl\n{before}\nprint(nsa_dsl.load('pattern p {{ output attend(tokens, causal) }}').patterns)") == "('p',)"


def test_every_public_name_exists() -> None:
    assert all(getattr(nsa_dsl, name) is not None for name in nsa_dsl.__all__)
    assert set(dir(nsa_dsl)) == set(nsa_dsl.__all__)


def test_other_names_do_not() -> None:
    with pytest.raises(AttributeError, match="no attribute 'attend'"):
        _ = nsa_dsl.attend


def test_program_lists_its_declarations(program: Program) -> None:
    assert program.patterns == ("plain",)
    assert program.models == ("deep",)
    assert repr(program) == "Program(patterns=('plain',), models=('deep',))"


def test_parameters_replace_defaults(program: Program) -> None:
    assert repr(program.pattern("plain", w=2)) == "AttentionPattern('plain', w=2)"
    with pytest.raises(nsa_dsl.SpecError, match="unknown-parameter"):
        program.pattern("plain", width=2)
    with pytest.raises(nsa_dsl.SpecError, match="declares no pattern plane"):
        program.pattern("plane")


def test_mask_is_what_a_query_sees(program: Program) -> None:
    (mask,) = program.pattern("plain", w=2).mask(4, heads=3).values()
    assert mask.shape == (1, 3, 4, 4)
    assert mask[0, 1].int().tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 1]]


def test_reference_computes_attention(program: Program) -> None:
    q, k, v = (torch.randn(1, 2, 6, 4) for _ in range(3))
    out, lse = program.pattern("plain", w=6).reference(q, k, v, return_lse=True)
    expected = torch.nn.functional.scaled_dot_product_attention(*(each.double() for each in (q, k, v)), is_causal=True)
    assert torch.allclose(out, expected)
    assert lse.shape == (1, 2, 6)
    assert program.pattern("plain").reference(q, k, v, dtype=torch.float32).dtype == torch.float32


def test_modules_fit_the_reference(paper: AttentionPattern) -> None:
    modules = paper.modules(kv_heads=1, head_dim=6, value_dim=5)
    q, k, v = torch.randn(1, 2, 40, 6), torch.randn(1, 1, 40, 6), torch.randn(1, 1, 40, 5)
    out = paper.reference(q, k, v, gates=torch.randn(1, 2, 40, 3), compressors=modules)
    assert list(modules) == ["summary"]
    assert out.shape == (1, 2, 40, 5)


def test_source_is_quick_and_follows_its_options(paper: AttentionPattern) -> None:
    started = time.perf_counter()
    source = paper.source(head_dim=192, value_dim=128)
    assert time.perf_counter() - started < 2
    compile(source, "nsa", "exec")
    assert "192 and 128" in source
    assert "fp32" in paper.source(dtype="fp32")


def test_graph_is_the_one_that_kernels_come_from(paper: AttentionPattern) -> None:
    graph = paper.graph()
    graph.verify()
    assert any("selected" in name for name in graph.order())


def test_check_gives_verdicts(program: Program, paper: AttentionPattern) -> None:
    for verdicts in (program.pattern("plain").check(), paper.check()):
        assert [type(each) for each in verdicts] == [Verdict]
        assert [each.status for each in verdicts] == ["proved"]


def test_compile_gives_a_callable_for_the_pattern(paper: AttentionPattern) -> None:
    op = paper.compile()
    assert op.pattern is paper.definition
    with pytest.raises(nsa_dsl.ArgumentError, match="gates"):
        op(torch.zeros(1, 2, 8, 4), torch.zeros(1, 1, 8, 4), torch.zeros(1, 1, 8, 4))


def test_model_is_a_sequence_of_layers() -> None:
    model = nsa_dsl.load(EXAMPLES / "asa.nsa").model("asa")
    assert len(model) == 24
    assert [each.definition.name for each in model][:3] == ["local", "global", "local"]
    assert repr(model) == "LayeredModel('asa', layers=24)"
    assert [each.status for each in model.check()] == ["proved", "proved"]
    for wrong in (-1, 24):
        with pytest.raises(IndexError, match="layers 0 to 23"):
            model.layer(wrong)


def test_a_layer_says_whose_choice_it_reuses() -> None:
    model = nsa_dsl.load(REUSING).model("pair")
    assert model.layer(0).reuse is None
    assert model.layer(2).reuse == {"selected": 0}
    assert "reuse={'selected': 0}" in repr(model.layer(2))
