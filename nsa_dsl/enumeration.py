"""Tiles by brute force at one length: what the symbolic tiles of `nsa_dsl.tiles` are held to, and what pictures fall back on."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from nsa_dsl.relation import Condition, Term, Var, evaluate


def enumerate_tiles(
    relation: Condition,
    rows: int,
    cols: int,
    n: int,
    h: int,
    heads: int = 1,
    kv_heads: int = 1,
    *,
    keys: Term = Var("N"),  # noqa: B008
) -> npt.NDArray[np.int8]:
    """By brute force: an array (query tiles, key tiles) of 0 for empty, 1 for partial, 2 for full, in the sense of `tiles.Piece`."""
    environment = {"h": h, "N": n, "heads": heads, "kv_heads": kv_heads, "same_document": True}
    count = max(0, evaluate(keys, environment))
    query_tiles, key_tiles = -(-n // rows), -(-count // cols)
    kinds = np.zeros((query_tiles, key_tiles), np.int8)
    j = np.arange(key_tiles * cols)[None, :]
    for tile in range(query_tiles):
        i = np.arange(tile * rows, (tile + 1) * rows)[:, None]
        allowed = np.broadcast_to(evaluate(relation, {**environment, "i": i, "j": j}), (rows, key_tiles * cols)) & (j < count)
        by_tile = allowed.reshape(rows, key_tiles, cols)
        kinds[tile] = by_tile[: n - tile * rows].any(axis=(0, 2)).astype(np.int8) + by_tile.all(axis=(0, 2))
    return kinds
