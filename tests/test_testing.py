"""What `nsa_dsl.testing` offers to other projects: an assertion, strategies and a pytest plugin that leaves other runs alone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import nsa_dsl.testing

WINDOW = "pattern local(w = 20) { output attend(tokens, window(w)) }\n"
PLUGIN = "nsa_dsl.testing.plugin"


def run_pytest(folder: Path, *arguments: str, plant: str = "") -> subprocess.CompletedProcess[str]:
    """pytest with the plugin in a process of its own. plant: Python to run first."""
    program = f"{plant}\nimport pytest\nraise SystemExit(pytest.main(['-p', {PLUGIN!r}, '-p', 'no:cacheprovider', *{list(arguments)!r}]))"
    return subprocess.run([sys.executable, "-c", program], cwd=folder, capture_output=True, text=True, check=False)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "local.nsa").write_text(WINDOW, encoding="utf-8")
    (tmp_path / "test_other.py").write_text("def test_other():\n    pass\n", encoding="utf-8")
    return tmp_path


def test_without_the_option_nothing_is_collected_or_imported(project: Path) -> None:
    plant = "import atexit, sys\natexit.register(lambda: print({'torch', 'triton', 'hypothesis', 'lark'} & set(sys.modules)))"
    done = run_pytest(project, "-q", "-p", "no:hypothesispytest", plant=plant)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed" in done.stdout
    assert done.stdout.splitlines()[-1] == "set()"


def test_with_the_option_specs_are_tests(project: Path) -> None:
    done = run_pytest(project, "-v", "--nsa", "--nsa-examples", "1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "local.nsa::local(w=20) PASSED" in done.stdout
    assert "test_other.py::test_other PASSED" in done.stdout


def test_a_spec_named_on_the_command_line_is_collected(project: Path) -> None:
    done = run_pytest(project, "--collect-only", "-q", "--nsa", "local.nsa")
    assert "local.nsa::local(w=20)" in done.stdout, done.stdout + done.stderr
    assert "test_other" not in done.stdout


def test_a_bad_spec_is_one_error_with_its_place(project: Path) -> None:
    (project / "local.nsa").write_text(WINDOW.replace("window(w)", "widow(w)"), encoding="utf-8")
    done = run_pytest(project, "--nsa")
    assert done.returncode != 0
    assert "error[unknown-name]" in done.stdout
    assert "local.nsa:1:" in done.stdout
    assert "Traceback" not in done.stdout


PLANT = """
import nsa_dsl.compiler as compiler
genuine = compiler.compile_backward
compiler.compile_backward = lambda *arguments: genuine(*arguments).replace("key_grad * scale", "key_grad * scale * 2")
import nsa_dsl.verify.search as search
search.SHRINK_SECONDS = 1.0
"""


def test_a_wrong_kernel_fails_with_the_smallest_call(project: Path) -> None:
    done = run_pytest(project, "--nsa", "--nsa-examples", "8", "local.nsa", plant=PLANT)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "smallest failing call: " in done.stdout
    assert "gradient of k" in done.stdout
    assert "Traceback" not in done.stdout


ASSERTION = "from nsa_dsl.testing import assert_correct\nassert_correct({text!r}, examples={examples})"


@pytest.mark.parametrize(("plant", "examples", "holds"), [("", 1, True), (PLANT, 8, False)])
def test_assert_correct(plant: str, examples: int, holds: bool) -> None:
    program = f"{plant}\n{ASSERTION.format(text=WINDOW, examples=examples)}"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode == 0) == holds, done.stdout + done.stderr
    assert ("AssertionError: local(w=20): FAILED" in done.stderr) == (not holds)


def nsa(*arguments: str) -> subprocess.CompletedProcess[str]:
    program = f"from nsa_dsl.cli import main\nmain({list(arguments)!r})"
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)


def test_the_command_tries_random_patterns() -> None:
    done = nsa("verify", "--random", "2")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("random patterns: 2 examples agree with the reference, ")


def test_the_command_wants_something_to_verify() -> None:
    done = nsa("verify")
    assert done.returncode == 2
    assert done.stderr == "error: nothing to verify: name spec files, or ask for random patterns with --random N\n"


def test_names_are_found_when_asked_for() -> None:
    assert set(nsa_dsl.testing.__all__) <= set(dir(nsa_dsl.testing))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = nsa_dsl.testing.nothing
