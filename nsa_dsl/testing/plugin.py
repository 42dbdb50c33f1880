"""The pytest plugin: `pytest --nsa` collects `*.nsa` files, one test a pattern, beside the tests that are there anyway."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from nsa_dsl.diagnostics import SpecError

if TYPE_CHECKING:
    from nsa_dsl.pattern import Pattern


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options."""
    group = parser.getgroup("nsa", "sparse-attention specs")
    group.addoption("--nsa", action="store_true", help="collect *.nsa files: verify each of their patterns, forward and backward")
    group.addoption("--nsa-examples", type=int, default=20, metavar="N", help="calls to try for each pattern (default: 20)")
    group.addoption("--nsa-seed", type=int, default=0, metavar="SEED", help="the same seed draws the same calls (default: 0)")


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> pytest.Collector | None:
    """Collect a spec, if specs are asked for."""
    if file_path.suffix != ".nsa" or not parent.config.getoption("nsa"):
        return None
    return SpecFile.from_parent(parent, path=file_path)


class SpecFile(pytest.File):
    """A spec's patterns, one item each. A spec that cannot be read fails to be collected, with its diagnostics."""

    def collect(self) -> Iterator[pytest.Item]:
        """Each pattern and each layer of a model once; without a GPU with parameters that show at short lengths, too."""
        from nsa_dsl.verify import describe, patterns_to_try, use_device

        try:
            groups = patterns_to_try(self.path, scaled=use_device().type == "cpu")
        except (SpecError, RuntimeError) as error:
            raise self.CollectError(str(error)) from None
        for pattern in (each for group in groups for each in group):
            yield PatternItem.from_parent(self, name=describe(pattern), verified=pattern)


class PatternItem(pytest.Item):
    """One pattern, verified on random calls."""

    def __init__(self, *, verified: Pattern, **rest: Any) -> None:
        super().__init__(**rest)
        self.verified = verified

    def runtest(self) -> None:
        """Fail with the smallest failing call."""
        from nsa_dsl.verify import verify_pattern

        options = self.config.option
        report = verify_pattern(self.verified, examples=options.nsa_examples, seed=options.nsa_seed)
        if not report.ok:
            pytest.fail(str(report), pytrace=False)

    def reportinfo(self) -> tuple[Path, None, str]:
        """Where the pattern stands, and its name."""
        return self.path, None, self.name
