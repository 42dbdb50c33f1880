"""What an op needs of a pattern: its signature and its kernels' sources, from the disk if an earlier process made them.

The compiler, and isl and the templates with it, is imported when something has to be made.
"""

from __future__ import annotations

import json
from functools import lru_cache

from nsa_dsl.cache import key_of, read_or_make
from nsa_dsl.launch import LaunchShape
from nsa_dsl.notices import explained
from nsa_dsl.pattern import Pattern
from nsa_dsl.signature import Signature, from_names, names_of

_SOURCE = "module.py"


@lru_cache(maxsize=256)
def compile_source(pattern: Pattern, shape: LaunchShape) -> str:
    """`compiler.compile_source`, kept on disk. Raises what that raises."""
    return read_or_make("sources", key_of("forward", pattern, shape), lambda: {_SOURCE: _compile(pattern, shape)})[_SOURCE]


@lru_cache(maxsize=256)
def compile_backward(pattern: Pattern, shape: LaunchShape) -> str:
    """`compiler.compile_backward`, kept on disk. Raises what that raises."""
    return read_or_make("sources", key_of("backward", pattern, shape), lambda: {_SOURCE: _compile_backward(pattern, shape)})[_SOURCE]


@lru_cache(maxsize=256)
def sign(pattern: Pattern) -> Signature:
    """`signing.sign`, kept on disk. Raises what that raises."""
    made = read_or_make("signatures", key_of("signature", pattern), lambda: {"signature.json": json.dumps(names_of(_sign(pattern)))})
    return from_names(pattern, json.loads(made["signature.json"]))


def _compile(pattern: Pattern, shape: LaunchShape) -> str:
    from nsa_dsl.compiler import compile_source as compile_now

    with explained(lambda: f"generating kernels of {pattern.name}"):
        return compile_now(pattern, shape)


def _compile_backward(pattern: Pattern, shape: LaunchShape) -> str:
    from nsa_dsl.compiler import compile_backward as compile_now

    with explained(lambda: f"generating kernels of {pattern.name}'s gradients"):
        return compile_now(pattern, shape)


def _sign(pattern: Pattern) -> Signature:
    from nsa_dsl.signing import sign as sign_now

    return sign_now(pattern)
