"""A pattern's kernels as source text, with neither torch nor a GPU."""

from __future__ import annotations

from functools import lru_cache

from nsa_dsl.codegen.emit import emit_module
from nsa_dsl.codegen.emit_backward import emit_backward
from nsa_dsl.launch import LaunchShape
from nsa_dsl.lower import lower
from nsa_dsl.overlap import refuse_overlap
from nsa_dsl.passes import run_passes
from nsa_dsl.passes.differentiate import differentiate
from nsa_dsl.pattern import Pattern
from nsa_dsl.schedule import plan_graph
from nsa_dsl.schedule_backward import plan_backward

_USUAL = LaunchShape()


@lru_cache(maxsize=256)
def compile_source(pattern: Pattern, shape: LaunchShape = _USUAL) -> str:
    """The source of a module that computes the pattern: kernels, and a host function `run`; it needs torch and triton only.

    shape: what tiles are chosen for. Raises NotSupported for a construct that has no kernel yet, and for a merge
    whose branches may share a key.
    """
    refuse_overlap(pattern)
    return emit_module(plan_graph(pattern, run_passes(lower(pattern)), shape))


@lru_cache(maxsize=256)
def compile_backward(pattern: Pattern, shape: LaunchShape = _USUAL) -> str:
    """The source of a module that computes the pattern's gradients: kernels, and a host function `run_backward`; it needs torch and
    triton only.

    shape: what tiles are chosen for. Raises as compile_source.
    """
    refuse_overlap(pattern)
    graph = differentiate(run_passes(lower(pattern)))
    graph.verify()
    return emit_backward(plan_backward(pattern, graph, shape))
