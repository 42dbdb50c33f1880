"""The documents show specs that load, codes that exist and modules that are there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from golden_files import GOLDEN

from nsa_dsl.diagnostics import SpecError
from nsa_dsl.loader import load_spec

ROOT = Path(__file__).parent.parent
DOCUMENTS = (*sorted((ROOT / "docs").glob("*.md")), ROOT / "README.md")
TEXTS = {each.name: each.read_text(encoding="utf-8") for each in DOCUMENTS}


def is_spec(language: str, text: str) -> bool:
    """Marked as one, or unmarked text that begins like one."""
    return language == "nsa" or (not language and re.match(r"(#.*\n)*(pattern|relation|model)\b", text) is not None)


FENCES = [(name, *found) for name, text in TEXTS.items() for found in re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)]
SPECS = [(name, text) for name, language, text in FENCES if is_spec(language, text)]


def test_the_documents_show_specs() -> None:
    assert [name for name, _ in SPECS] == [*["language.md"] * 4, "README.md"]


@pytest.mark.parametrize("text", [text for _, text in SPECS])
def test_every_spec_shown_loads_whole(text: str) -> None:
    spec = load_spec(text)
    assert spec.patterns
    for name in spec.patterns:
        spec.pattern(name)
    for name in spec.models:
        spec.model(name)


def test_codes_shown_exist() -> None:
    known = {code for each in GOLDEN.rglob("*.txt") for code in re.findall(r"error\[([a-z0-9-]+)\]", each.read_text(encoding="utf-8"))}
    shown = {code for text in TEXTS.values() for code in re.findall(r"error\[([a-z0-9-]+)\]", text)}
    assert shown
    assert shown <= known


def test_the_message_in_the_language_page_is_the_one_printed() -> None:
    (message,) = re.findall(r"```\n(error\[selection-misaligned.*?)\n```", TEXTS["language.md"], re.DOTALL)
    lines = ["pattern p {", "    s = compress(block = 32, stride = 16, by = mean)", "    c = attend(s, causal)"]
    lines += ["    f = attend(tokens, causal & top(4, block = 40, by = c, share = group))", "    output gate(c, f)", "}", ""]
    with pytest.raises(SpecError) as refused:
        load_spec("\n".join(lines))
    assert str(refused.value).replace("<text>", "nsa.nsa") == message


def test_modules_named_in_the_architecture_exist() -> None:
    folders = [ROOT, ROOT / "nsa_dsl", ROOT / "codegen", ROOT / "nsa_dsl" / "resolve", ROOT / "nsa_dsl" / "cli"]
    named = re.findall(r"`([a-z_/]+(?:\.py|\.lark|\.nsa|/))`", TEXTS["architecture.md"])
    assert len(named) > 40
    assert [each for each in named if not any((folder / each).exists() for folder in folders)] == []


def test_every_module_stands_in_the_architecture() -> None:
    modules = {each.stem for each in (ROOT / "nsa_dsl").glob("*.py")} - {"__init__", "__main__", "version", "diagnostics"}
    assert sorted(each for each in modules if not re.search(rf"`(nsa_dsl/)?{each}(\.py)?`", TEXTS["architecture.md"])) == []


def test_limits_named_are_the_limits() -> None:
    from nsa_dsl import limits, loader
    from nsa_dsl.resolve import choice_checks, claims, conditions, integers, relations, terms

    page = TEXTS["language.md"].split("## Limits")[1]
    numbers = (
        limits.MAX_NESTING, limits.MAX_TERMS, limits.MAX_CHAIN, limits.MAX_NAME, limits.MAX_DIGITS, loader.MAX_FILES, loader.MAX_USE_DEPTH,
        conditions.MAX_NODES, conditions.MAX_CONDITION_DEPTH, relations.MAX_UNION, integers.MAX_LAYERS, claims.MAX_ASSERTIONS,
        claims.MAX_LENGTH, choice_checks.MAX_AMONG,
    )  # fmt: skip
    assert [each for each in numbers if f"{each:,}" not in page] == []
    assert limits.MAX_BYTES == 64 * 1024
    assert terms.GREATEST == 2**31 - 1
