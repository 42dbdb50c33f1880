"""Every diagnostic of the project has a malformed input and a golden message; name resolution's are rendered here."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from diagnostic_cases import CASES
from golden_files import GOLDEN, check_golden

from nsa_dsl.diagnostics import SpecError
from nsa_dsl.loader import load_spec

_SOURCE = Path(__file__).parent.parent / "nsa_dsl"
_REPORTING = {"refusal": 0, "report": 0, "_report": 0, "Diagnostic": 0}


@pytest.mark.parametrize("name", CASES)
def test_the_message_is_the_golden_one(name: str) -> None:
    with pytest.raises(SpecError) as caught:
        load_spec(CASES[name])
    assert name.startswith(caught.value.diagnostics[0].code)
    check_golden(f"diagnostics/{name}.txt", str(caught.value))


def test_no_golden_is_left_over() -> None:
    from test_load import FILE_CASES
    from test_resolve_overrides import OVERRIDE_CASES

    held = {each.stem for each in (GOLDEN / "diagnostics").glob("*.txt")}
    assert held == {*CASES, *FILE_CASES, *OVERRIDE_CASES}


def _codes(file: Path) -> set[str]:
    """The codes that a module can report: the constants in the first argument of what makes a diagnostic."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call) or not node.args:
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if name in _REPORTING:
            first = node.args[0]
            kept = [first.body, first.orelse] if isinstance(first, ast.IfExp) else [first]
            found.update(each.value for each in kept if isinstance(each, ast.Constant) and isinstance(each.value, str))
    return found


def test_every_code_has_a_golden() -> None:
    shown = set()
    for file in GOLDEN.rglob("*.txt"):
        shown.update(re.findall(r"^error\[([a-z0-9-]+)\]", file.read_text(encoding="utf-8"), re.MULTILINE))
    codes = set().union(*(_codes(each) for each in [*(_SOURCE / "resolve").glob("*.py"), _SOURCE / "loader.py"]))
    assert len(codes) >= 60
    assert codes <= shown, f"without a golden: {sorted(codes - shown)}"


def test_every_code_of_other_modules_is_tested_by_name() -> None:
    tests = "".join(each.read_text(encoding="utf-8") for each in Path(__file__).parent.glob("test_*.py"))
    named = set(re.findall(r"\"([a-z0-9]+(?:-[a-z0-9]+)+)\"", tests))
    shown = {code for each in GOLDEN.rglob("*.txt") for code in re.findall(r"error\[([a-z0-9-]+)\]", each.read_text(encoding="utf-8"))}
    codes = set().union(*(_codes(each) for each in _SOURCE.rglob("*.py")))
    assert codes <= named | shown, f"untested: {sorted(codes - named - shown)}"


def test_codes_that_need_values_exist() -> None:
    from nsa_dsl.resolve.problems import NEEDS_VALUES

    codes = set().union(*(_codes(each) for each in (_SOURCE / "resolve").glob("*.py")))
    assert codes >= NEEDS_VALUES


def test_five_independent_errors_are_five_diagnostics() -> None:
    with pytest.raises(SpecError) as caught:
        load_spec(CASES["not-affine-and-more"])
    assert len(caught.value.diagnostics) == 7
    lines = [each.primary.span.line for each in caught.value.diagnostics]
    assert lines == sorted(lines)


def test_without_defaults_names_are_checked_and_values_are_not() -> None:
    load_spec("relation r(s) = { i, j : (i - j) % (s - 1) == 0 }\npattern p(w) { output attend(tokens, window(w - 1)) }\n")
    keep = "keep = { i, j, h : j == h }"
    load_spec(f"pattern p(s, m) {{ output attend(tokens, top(m, block = m, by = m, share = s, queries = m, {keep}), scale = m) }}\n")
    with pytest.raises(SpecError) as caught:
        load_spec("pattern p(w) {\n    near = attend(tokens, windw(w))\n    output gate(near, far)\n}\n")
    assert [each.code for each in caught.value.diagnostics] == ["unknown-name", "unknown-name"]


def test_an_error_in_a_called_relation_is_reported_once() -> None:
    text = "relation r(s) = { i, j : j // s < 4 }\npattern p { output attend(tokens, r(0) | r(0) & first(4) | causal & r(0)) }\n"
    with pytest.raises(SpecError) as caught:
        load_spec(text)
    assert [each.code for each in caught.value.diagnostics] == ["not-positive"]
    assert caught.value.diagnostics[0].context[0].text == "called here with s = 0"


@pytest.mark.parametrize(
    "text",
    [
        "relation r = " + " | ".join(f"first({n})" for n in range(1, 150)) + "\n",
        "relation r = { i, j : " + " + ".join(["i"] * 150) + " < j }\n",
        "relation r0 = causal\n" + "".join(f"relation r{n + 1} = (r{n} | first({n + 1})) & window({n + 1})\n" for n in range(45)),
        "relation r = " + "(" * 60 + "causal" + ")" * 60 + "\n",
        "relation r = { i, j : " + "not " * 50 + "i < j }\n",
        "".join(f"relation r{n} = r{n + 1} & r{n + 1}\n" for n in range(45)) + "relation r45 = causal\n",
    ],
)
def test_large_but_sound_texts_resolve(text: str) -> None:
    spec = load_spec(text)
    assert spec.relation(spec.relations[0]) is not None


@pytest.mark.parametrize(
    "text",
    [
        "relation r0 = first(1)\n" + "".join(f"relation r{n + 1} = r{n} & first({n}) | r{n} - window({n + 1})\n" for n in range(400)),
        "relation r = " + " - (causal" * 300 + ")" * 300 + "\n",
        "relation r = { i, j : " + "-" * 5000 + "i < j }\n",
        "".join(f"relation r{n} = r{n + 1}\n" for n in range(2000)) + "relation r2000 = r0\n",
        "relation r = union a in 0..1000 union b in 0..1000 union c in 0..1000 first(a + b + c + 1)\n",
    ],
)
def test_hostile_texts_are_refused_without_a_recursion_error(text: str) -> None:
    with pytest.raises(SpecError):
        load_spec(text)
