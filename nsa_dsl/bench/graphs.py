"""Calls captured as CUDA graphs: a replay is one launch, so its time is the card's, however long the host takes for a call.

Short calls need this. A pass of NSA launches some thirty kernels, which at 8,192 tokens take the card as long as they take the host to
launch; models at such lengths are trained from graphs (`torch.cuda.graph`, `torch.compile(mode="reduce-overhead")`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from nsa_dsl.bench.contender import Prepared, Refused

WARMUPS = 2
"""Calls before a capture: to compile kernels and to make libraries' workspaces is not allowed within."""


def warm(call: Callable[[], Any]) -> None:
    """Call on a stream that is not the default one, as captures ask for: what autograd remembers of streams must not be the default."""
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARMUPS):
            call()
    torch.cuda.current_stream().wait_stream(stream)


def capture(call: Callable[[], Any], pool: Any = None) -> tuple[Any, Any]:
    """A CUDA graph of a call that has been warmed, and what the call returned: memory of the graph that every replay writes anew.
    pool: of an earlier graph whose tensors this one reads. Raises RuntimeError for a call that waits for the device."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool):
        kept = call()
    return graph, kept


def capture_both(prepared: Prepared) -> tuple[Any, Any, Any]:
    """The graphs of a contender's two passes, and what must be held while they are replayed: backward's reads what forward's last replay
    left, as often as it is replayed, and memory that nobody holds goes to what is captured next. Raises Refused for a contender whose
    backward pass works once."""
    if prepared.once:
        raise Refused("its backward pass takes over what forward made, so that no graph of it alone can be replayed")
    warm(prepared.both)
    forward, out = capture(prepared.forward)
    backward, made = capture(lambda: torch.autograd.grad(out, prepared.leaves, prepared.cotangent, retain_graph=True), forward.pool())
    return forward, backward, (out, made)
