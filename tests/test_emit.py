"""Generated modules as text: goldens, the same every time, nothing in them but what the templates write; and how they launch."""

from __future__ import annotations

import ast
import keyword
import re
import subprocess
import sys
import tokenize
from collections.abc import Callable, Iterator
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any, TypeAlias

import pytest
import torch
from golden_files import check_golden

from nsa_dsl.ahead import record_launches
from nsa_dsl.compiler import compile_backward, compile_source
from nsa_dsl.diagnostics import SpecError
from nsa_dsl.execute import check_source, load_module
from nsa_dsl.graph import GraphError
from nsa_dsl.launch import CARDS, LaunchShape
from nsa_dsl.loader import load_spec
from nsa_dsl.pattern import Pattern

EXAMPLES = Path(__file__).parent.parent / "examples"
SMALL = LaunchShape(dim_qk=16, dim_v=16, rows=16, cols=16)

EVERYTHING = """
pattern tried {
    kv per branch
    far   = attend(compress(block = 4, stride = 2, by = mean), causal & document, softcap = 30, bias = alibi)
    near  = attend(tokens, window(5) & document, sink = learned, scale = 0.5)
    some  = attend(tokens, causal & document & (top(2, block = 4, by = far, share = group) | top(1, block = 4, by = scores, share = all)))
    other = attend(tokens, causal & top(2, block = 4, by = minmax, share = head, reduce = max, keep = window(1)) - first(2))
    given = attend(tokens, causal & top(2, block = 20, by = indices, share = group, every = 4, keep_extra = first(1)))
    output mix(far, near, some, other, given)
}
"""
MERGED = "pattern tried { a = attend(tokens, window(5)) b = attend(tokens, causal - window(5)) output merge(a, b) }"

# fmt: off
WORDS = {
    *keyword.kwlist, *keyword.softkwlist,
    "print", "len", "range", "min", "max", "sum", "abs", "all", "int", "object", "NotImplemented", "torch", "triton", "tl", "self",
    "q", "k", "v", "out", "run", "lse", "scale", "batch", "heads", "group", "tile", "rows", "cols", "key", "value", "scores", "gates",
    "chosen", "choices", "slots", "merged", "merge", "combine", "load_rows", "documents", "grads", "outs", "wanted", "parts", "finite",
    "delta", "weight", "keys", "values", "queries",
}
# fmt: on


TAKEN = {"abs", "all", "and", "assert", "group", "heads", "max", "merge", "min", "not", "or", "scores", "sum"}
"""Those of them that the language keeps for itself."""


Compiler: TypeAlias = Callable[..., str]
both = pytest.mark.parametrize("compiled", [compile_source, compile_backward], ids=["forward", "backward"])


def parse(text: str | Path) -> Pattern:
    spec = load_spec(text)
    return spec.pattern(spec.patterns[0])


def comments_of(source: str) -> int:
    """How many comments a module holds."""
    return sum(each.type == tokenize.COMMENT for each in tokenize.generate_tokens(StringIO(source).readline))


def example_patterns() -> Iterator[Any]:
    for path in sorted(EXAMPLES.glob("*.nsa")):
        spec = load_spec(path)
        for name in spec.patterns:
            yield pytest.param(spec.pattern(name), id=f"{path.stem}.{name}")


@pytest.mark.parametrize("name", ["causal", "sliding_window", "nsa"])
def test_golden_modules(name: str) -> None:
    check_golden(f"kernels/{name}.py", compile_source(parse(EXAMPLES / f"{name}.nsa")))
    check_golden(f"kernels/{name}_backward.py", compile_backward(parse(EXAMPLES / f"{name}.nsa")))


@both
@pytest.mark.parametrize("pattern", list(example_patterns()))
def test_modules_are_readable_python_of_torch_and_triton_alone(pattern: Pattern, compiled: Compiler) -> None:
    source = compiled(pattern)
    tree = check_source(source)
    imported = [each.name for node in ast.walk(tree) if isinstance(node, ast.Import) for each in node.names]
    gluon = ["", ".language", ".language.nvidia.hopper", ".nvidia.hopper"] if "@gluon.jit" in source else []
    assert imported == ["torch", "triton", "triton.language", *(f"triton.experimental.gluon{each}" for each in gluon)]
    assert not any(isinstance(node, ast.ImportFrom) for node in ast.walk(tree))
    defined = [node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    assert len(set(defined)) == len(defined)
    assert not [line for line in source.splitlines() if line != line.rstrip()]
    assert source.isascii()
    assert source.endswith("\n")
    for line in pattern.text.splitlines():
        assert f"#     {line}".rstrip() in source


def test_the_same_text_every_time() -> None:
    """Also in another process, where strings hash differently."""
    program = "import sys; from nsa_dsl.loader import load_spec; from nsa_dsl.compiler import compile_backward, compile_source\n"
    program += "pattern = (spec := load_spec(sys.argv[1])).pattern(spec.patterns[0])\n"
    program += "sys.stdout.write(compile_source(pattern) + compile_backward(pattern))"
    expected = compile_source(parse(EVERYTHING)) + compile_backward(parse(EVERYTHING))
    for seed in ("1", "2"):
        command, environment = [sys.executable, "-c", program, EVERYTHING], {"PYTHONHASHSEED": seed, "PYTHONPATH": str(EXAMPLES.parent)}
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
        assert done.stdout == expected


@pytest.mark.parametrize(
    "text",
    ['"""\nimport os\n"""', "\\", "a\rimport os", "a\x0cimport os\x1c\x85\u2028import os", "{{ 1 // 0 }} {% raise %}", "\x00é", "'''", "#"],
)
@both
def test_a_spec_is_quoted_in_comments_alone(text: str, compiled: Compiler) -> None:
    pattern = parse(EVERYTHING)
    plain, quoting = (compiled(replace(pattern, text=each)) for each in ("", text))
    assert ast.dump(ast.parse(plain)) == ast.dump(ast.parse(quoting))
    own, all_of_them = (comments_of(source) for source in (plain, quoting))
    assert all_of_them == own + len(text.splitlines())


@pytest.mark.parametrize("card", CARDS)
@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32"])
@both
def test_everything_has_source_for_every_card(card: str, dtype: Any, compiled: Compiler) -> None:
    check_source(compiled(parse(EVERYTHING), LaunchShape(192, 128, dtype, card)))


def usable(word: str) -> str | None:
    """A spec that calls its pattern, a branch and a memory by the word, or None where the language has taken it."""
    text = (
        f"pattern {word} {{ m_{word} = compress(block = 4, stride = 2, by = mean) c = attend(m_{word}, causal) "
        f"{word} = attend(tokens, causal & (top(2, block = 4, by = c, share = group) | top(1, block = 4, by = mean, share = all))) "
        f"w = attend(tokens, window(2)) output gate({word}, c, w) }}"
    )
    try:
        load_spec(text)
    except SpecError:
        return None
    return text


@pytest.mark.parametrize("word", sorted(each for each in WORDS if each[0].isalpha()))
def test_names_that_python_or_the_module_uses(word: str) -> None:
    text = usable(word)
    if text is None:
        assert word in TAKEN
        return
    assert record_launches(parse(text), SMALL, tokens=32, heads=2, kv_heads=1, backward=True)


def launches(pattern: Pattern, batch: int, heads: int, tokens: int) -> dict[str, int]:
    """Programs by kernel of one call on tensors without storage."""
    module = load_module(compile_source(pattern, SMALL), pattern.name)
    programs: dict[str, int] = {}

    def record(kernel: Any, count: int, *_: Any, **__: Any) -> None:
        programs[kernel.__name__] = count

    module.__dict__["_launch"] = record

    def tensor(*size: int) -> torch.Tensor:
        return torch.empty(*size, dtype=torch.bfloat16, device="meta")

    q, k, v = (tensor(batch, heads, tokens, 16) for _ in range(3))
    module.__dict__["run"](q, k, v, gates=tensor(batch, heads, tokens, len(pattern.output.branches)))
    return programs


NSA = """
pattern small {
    compressed = attend(compress(block = 1, stride = 1, by = mean), causal)
    selected   = attend(tokens, causal & (top(2, block = 1, by = compressed, share = head) | top(2, block = 1, by = mean, share = head)))
    output gate(compressed, selected)
}
"""


@pytest.mark.parametrize("text", [NSA, MERGED], ids=["nsa", "merged"])
@pytest.mark.parametrize(("batch", "heads"), [(70_000, 1), (1000, 100), (1, 70_000)])
def test_batch_times_heads_beyond_what_grid_y_holds(text: str, batch: int, heads: int) -> None:
    programs = launches(parse(text), batch, heads, 1)
    assert len(programs) >= 3
    assert set(programs.values()) == {batch * heads}


@both
@pytest.mark.parametrize("text", [NSA, MERGED, EVERYTHING], ids=["nsa", "merged", "everything"])
def test_grids_have_one_dimension(text: str, compiled: Compiler) -> None:
    """Grid x alone may exceed 65,535; no kernel asks for more than one place on another."""
    tree = ast.parse(compiled(parse(text)))
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    grids = [ast.unparse(node.func) for node in calls if isinstance(node.func, ast.Subscript)]
    assert set(grids) == {"kernel[programs,]", "compiled[programs, 1, 1]"}
    axes = {ast.unparse(node.args[0]) for node in calls if ast.unparse(node.func) in ("tl.program_id", "gl.program_id")}
    assert axes == {"0"}


@both
@pytest.mark.parametrize("text", [NSA, EVERYTHING], ids=["nsa", "everything"])
def test_offsets_are_64_bit(text: str, compiled: Compiler) -> None:
    """What is multiplied by a stride, and what counts rows of all heads, has been widened before."""
    source = compiled(parse(text))
    assert "positions.to(tl.int64)[:, None] * stride" in source
    for name in ("head", "kv_head", "unit"):
        for tensor in ("q", "k", "v", "grad"):
            assert f" {name} * {tensor}_head" not in source
    # Gluon kernels hand the batch to descriptors, which widen themselves.
    plain = "".join(part for part in re.split(r"(?m)^(?=@)", source) if part.startswith("@triton.jit"))
    batches = [line for line in plain.splitlines() if line.strip().startswith("batch = ")]
    assert batches
    assert all("tl.int64" in line for line in batches)


def test_only_needed_functions_are_written() -> None:
    plain, full = (compile_source(parse(text)) for text in (MERGED, EVERYTHING))
    for name in ("softcap", "alibi_slope", "is_member", "_list_blocks"):
        assert f"def {name}(" not in plain
        assert f"def {name}(" in full
    plain, full = (compile_backward(parse(text)) for text in (MERGED, EVERYTHING))
    for name in ("softcap", "alibi_slope", "is_member", "lists_hold", "_invert_blocks"):
        assert f"def {name}(" not in plain
        assert f"def {name}(" in full


def test_no_kernel_adds_atomically() -> None:
    """Sums that race have no order: two runs would differ. Bits that are set do not need one."""
    source = compile_source(parse(EVERYTHING)) + compile_backward(parse(EVERYTHING))
    assert set(re.findall(r"atomic\w*", source)) <= {"atomic_or"}


def test_a_gradient_graph_that_is_wrong_gets_no_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here the transposed relation is forgotten."""
    monkeypatch.setattr("nsa_dsl.passes.differentiate.inverse_static", lambda edge: edge)
    with pytest.raises(GraphError, match=r"grad\.attend"):
        compile_backward(parse("pattern unlike_others { output attend(tokens, window(77)) }"))
