"""Every example's kernels agree with the dense reference, with the papers' parameters and with some that show at short lengths."""

from __future__ import annotations

from pathlib import Path

import pytest

from nsa_dsl.verify import describe, patterns_to_try, verify_pattern

FILES = sorted((Path(__file__).parents[2] / "examples").glob("*.nsa"))
CASES = {
    f"{path.stem}.{describe(each)}": (each, 3 if place == 0 else 1)
    for path in FILES
    for group in patterns_to_try(path, scaled=True)
    for place, each in enumerate(group)
}
"""Name -> pattern and how many calls to try: fewer with parameters that hardly show at lengths the interpreter bears."""


def test_there_are_examples() -> None:
    assert len(FILES) >= 15
    assert len(CASES) > len(FILES)


@pytest.mark.parametrize("name", CASES)
def test_kernels_agree_with_the_reference(name: str) -> None:
    pattern, examples = CASES[name]
    report = verify_pattern(pattern, examples=examples, seed=list(CASES).index(name))
    assert report.ok, str(report)
    assert report.examples == examples
