"""A compiler for sparse attention: a spec says which keys each query sees; kernels, reference and proofs follow from it.

    op = nsa_dsl.load("nsa.nsa").pattern("nsa", n=8).compile()
    out = op(q, k, v, gates=gates)

Names are imported when they are first used, so that `import nsa_dsl` takes no time and needs no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from nsa_dsl import version

if TYPE_CHECKING:
    from nsa_dsl.arguments import ArgumentError
    from nsa_dsl.diagnostics import SpecError
    from nsa_dsl.op import AttentionOp
    from nsa_dsl.pattern import NotSupported
    from nsa_dsl.program import AttentionPattern, LayeredModel, Program, load
    from nsa_dsl.verify import verify_pattern, verify_spec

__version__ = version.VERSION

_HOMES = {
    "ArgumentError": "arguments",
    "AttentionOp": "op",
    "AttentionPattern": "program",
    "LayeredModel": "program",
    "NotSupported": "pattern",
    "Program": "program",
    "SpecError": "diagnostics",
    "load": "program",
    "verify_pattern": "verify",
    "verify_spec": "verify",
}

__all__ = [
    "ArgumentError",
    "AttentionOp",
    "AttentionPattern",
    "LayeredModel",
    "NotSupported",
    "Program",
    "SpecError",
    "__version__",
    "load",
    "verify_pattern",
    "verify_spec",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
