"""One process of a distributed program tunes; the others wait for what it found and keep it, too."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.distributed as dist

from nsa_dsl.tuned.table import Table, from_json, to_json


def tune_on_first_rank(make: Callable[[], Table], group: Any = None) -> Table:
    """What `make` returns in rank 0 of the group (default: all), in every rank; without torch.distributed simply what it returns.

    Must be called by all ranks. If rank 0 fails the others raise RuntimeError with its reason, instead of waiting for ever.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return make()
    sent: list[str | None] = [None, None]
    failure: BaseException | None = None
    if dist.get_rank(group) == 0:
        try:
            sent[0] = to_json(make())
        except BaseException as problem:  # the others wait, so they must hear of it whatever it is
            failure, sent[1] = problem, f"{type(problem).__name__}: {problem}"
    dist.broadcast_object_list(sent, src=dist.get_global_rank(group, 0) if group is not None else 0, group=group)
    if failure is not None:
        raise failure
    if sent[0] is None:
        raise RuntimeError(f"rank 0 could not tune: {sent[1]}")
    found = from_json(sent[0])
    assert found is not None
    return found
