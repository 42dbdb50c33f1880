"""The commands that run kernels, each in a process of its own: they switch Triton's interpreter on."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

WINDOW = "pattern local(w = 20) { output attend(tokens, window(w)) }\n"


def nsa(*arguments: object, plant: str = "") -> subprocess.CompletedProcess[str]:
    """`nsa` with these arguments. plant: Python to run first."""
    program = f"{plant}\nfrom nsa_dsl.cli import main\nmain({[str(each) for each in arguments]})"
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    path = tmp_path / "spec.nsa"
    path.write_text(WINDOW, encoding="utf-8")
    return path


@pytest.mark.parametrize(("agrees", "status"), [(True, 0), (False, 1)])
def test_demo_exits_with_its_verdict(agrees: bool, status: int) -> None:
    """What the demo shows is tested where kernels run; this is its way out."""
    done = nsa("demo", plant=f"import nsa_dsl.demo\nnsa_dsl.demo.run_demo = lambda console: {agrees}")
    assert done.returncode == status, done.stderr
    assert "Traceback" not in done.stderr


def test_verify_accepts_kernels_that_agree(spec: Path) -> None:
    done = nsa("verify", spec, "--examples", 3)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith(f"{spec}: local(w=20): 3 examples agree with the reference")


PLANT = """
import nsa_dsl.compiler as compiler
genuine = compiler.compile_source
def planted(*arguments):
    source = genuine(*arguments)
    assert "tl.exp2(" in source
    return source.replace("tl.exp2(", "0.9 * tl.exp2(")
compiler.compile_source = planted
"""


def test_verify_fails_with_the_smallest_call_when_a_kernel_is_wrong(spec: Path) -> None:
    done = nsa("verify", spec, "--examples", 3, plant=PLANT)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "smallest failing call: " in done.stdout
    assert "Traceback" not in done.stderr


def test_verify_refuses_a_bad_spec_before_it_imports_torch(spec: Path) -> None:
    spec.write_text(WINDOW.replace("window", "widow"), encoding="utf-8")
    done = nsa("verify", spec, plant="import atexit, sys\natexit.register(lambda: print('torch' in sys.modules))")
    assert (done.returncode, done.stdout) == (2, "False\n")
    assert done.stderr.startswith("error[unknown-name]")


def test_verify_refuses_what_has_no_kernel(spec: Path) -> None:
    spec.write_text("pattern p { output attend(tokens, causal & top(4, block = 16, by = index(2, 16), share = all)) }", encoding="utf-8")
    done = nsa("verify", spec, "--examples", 1)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith(f"error: {spec}: ")
    assert "Traceback" not in done.stderr
