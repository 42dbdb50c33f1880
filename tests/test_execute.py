"""Generated source before it runs: what every template writes passes the list, and what none writes does not."""

from __future__ import annotations

from pathlib import Path

import pytest

from nsa_dsl.compiler import compile_source
from nsa_dsl.execute import UnsafeModuleError, check_source, load_module
from nsa_dsl.loader import load_spec

EXAMPLES = sorted((Path(__file__).parent.parent / "examples").glob("*.nsa"))
PATTERNS = [(path.stem, name) for path in EXAMPLES for name in load_spec(path).patterns]

REFUSED = [
    "import os",
    "import torch, subprocess",
    "import torch.utils.cpp_extension",
    "import triton.language as tl, sys",
    "from torch import hub",
    "from os import *",
    "class Kernel: pass",
    "f = lambda: 0",
    "with f() as x: pass",
    "try:\n    f()\nexcept Exception:\n    pass",
    "async def f(): pass",
    "def f():\n    yield 1",
    "def f():\n    global x",
    "def f():\n    nonlocal x",
    "raise SystemExit",
    "assert f()",
    "del x",
    "x = [y for y in z]",
    "x = {y for y in z}",
    "x = {y: y for y in z}",
    "x = {1, 2}",
    "(x := 1)",
    "x = f'{y!r}'",
    "match x:\n    case 1:\n        pass",
    "eval('1')",
    "exec('1')",
    "compile('1', '', 'eval')",
    "open('/etc/passwd')",
    "x = getattr",
    "setattr(x, 'y', 1)",
    "globals()['x'] = 1",
    "locals()",
    "vars(x)",
    "input()",
    "breakpoint()",
    "__import__('os')",
    "x = __builtins__",
    "x.__class__",
    "().__class__.__bases__[0].__subclasses__()",
    "torch._C",
    "torch.hub.load('a', 'b')",
    "torch.utils.cpp_extension.load_inline('x', '')",
    "torch.serialization.load('x')",
    "torch.os.system('true')",
    "triton.runtime.sys.exit()",
    "torch.tools",
]


@pytest.mark.parametrize("source", REFUSED)
def test_what_no_template_writes_is_refused(source: str) -> None:
    with pytest.raises(UnsafeModuleError, match="not allowed"):
        check_source("import torch\n" + source)
    indented = source.replace("\n", "\n    ")
    with pytest.raises(UnsafeModuleError, match="not allowed"):
        check_source(f"def run():\n    {indented}")


@pytest.mark.parametrize("source", REFUSED[:1])
def test_refused_source_does_not_run(source: str) -> None:
    with pytest.raises(UnsafeModuleError, match="line 2"):
        load_module(f"x = 1\n{source}\n1 // 0", "tried")


def test_source_that_is_no_python_is_refused() -> None:
    with pytest.raises(SyntaxError):
        check_source("def run(:")


@pytest.mark.parametrize(("file", "name"), PATTERNS)
def test_every_example_passes(file: str, name: str) -> None:
    source = compile_source(load_spec(Path(__file__).parent.parent / "examples" / f"{file}.nsa").pattern(name))
    check_source(source)


def test_a_module_has_no_file_and_a_name_by_its_content() -> None:
    one, same, other = (load_module(text, "tried") for text in ("x = 1", "x = 1", "x = 2"))
    assert (one.x, other.x) == (1, 2)
    assert one is not same
    assert one.__name__ == same.__name__ != other.__name__
    assert not Path(str(one.__file__)).exists()
