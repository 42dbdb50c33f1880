"""Property tests for specs: one assertion, strategies for hypothesis, and a pytest plugin that collects `*.nsa` files.

    from nsa_dsl.testing import assert_correct

    def test_my_spec() -> None:
        assert_correct("my.nsa")

Names are imported when they are first used, so that the plugin costs a test run nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nsa_dsl.testing.patterns import patterns
    from nsa_dsl.testing.relations import relations
    from nsa_dsl.testing.search import assert_correct, verify_random

_HOMES = {"assert_correct": "search", "patterns": "patterns", "relations": "relations", "verify_random": "search"}

__all__ = ["assert_correct", "patterns", "relations", "verify_random"]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
