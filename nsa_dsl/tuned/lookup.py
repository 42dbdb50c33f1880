"""Decisions for a call: those in the user's cache, then those shipped for the card; where neither has one the schedule's own stand."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Literal, TypeAlias

from nsa_dsl.cache import cache_root, only_one, read_entry, templates_hash, write_entry
from nsa_dsl.launch import LaunchShape, Pin
from nsa_dsl.tuned.keys import Kernel, entry_key
from nsa_dsl.tuned.table import Entry, Table, from_json, to_json

Tune: TypeAlias = Literal["", "off", "assert"]
"""What NSA_TUNE, or an op's own argument, asks for. "": use what is measured; off: the schedule alone; assert: refuse a call of kernels
that nobody has measured."""

SHIPPED = {"NVIDIA H100 80GB HBM3": "h100", "NVIDIA H200": "h200"}
"""Cards that tables are shipped for, by the name that their driver gives them."""

_TABLE = "table.json"


class MissingTuningError(RuntimeError):
    """Tuned entries were asked for (NSA_TUNE=assert), and some are missing. The text says which, and how to make them."""


def tune_mode() -> Tune:
    """What NSA_TUNE says. Raises ValueError for what it cannot say."""
    match os.environ.get("NSA_TUNE", ""):
        case "" | "on":
            return ""
        case "off":
            return "off"
        case "assert":
            return "assert"
        case other:
            raise ValueError(f"NSA_TUNE={other}: write on, off or assert")


def find_decisions(
    kernels: tuple[Kernel, ...], shape: LaunchShape, tokens: int, heads: int, kv_heads: int, card: str, triton: str
) -> dict[str, Pin | None]:
    """The decisions for a call, by the kernels' names: None where nothing was found to be faster than the schedule's own tiles, no entry
    for a kernel that nobody has measured. card: as the driver names it; triton: its version."""
    tables = user_table(card, triton).entries, shipped_table(card).entries
    found: dict[str, Pin | None] = {}
    for kernel in kernels:
        key = entry_key(kernel, shape, tokens, heads, kv_heads)
        entry = next((each[key] for each in tables if key in each), None)
        if entry is not None:
            found[kernel.name] = entry.pin
    return found


@cache
def shipped_table(card: str) -> Table:
    """What the package knows of a card; nothing of most, other models of the same generation among them."""
    name = SHIPPED.get(card)
    file = files("nsa_dsl") / "tuned" / f"{name}.json"
    found = from_json(file.read_text(encoding="utf-8")) if name is not None and file.is_file() else None
    return found or Table(card, "", "", {})


_memory: dict[tuple[str, str], Table] = {}
"""The user's tables as this process knows them: all there is where the disk is not to be had."""


def user_table(card: str, triton: str) -> Table:
    """What was measured here for this card, this Triton and these templates."""
    if (card, triton) not in _memory:
        _memory[card, triton] = _read(card, triton)
    return _memory[card, triton]


def keep(card: str, triton: str, entries: Mapping[str, Entry]) -> Table:
    """Add entries to the user's table. Returns all of it; where the disk takes nothing it lasts as long as the process."""
    root = cache_root()
    if root is None:
        _memory[card, triton] = user_table(card, triton).with_entries(entries)
        return _memory[card, triton]
    with only_one(root, _name(card, triton)):
        table = _read(card, triton).with_entries({**user_table(card, triton).entries, **entries})
        _memory[card, triton] = table
        write_entry(root / "tuned" / _name(card, triton), {_TABLE: to_json(table)})
    return table


def forget() -> None:
    """Read the user's tables again when they are next asked for."""
    _memory.clear()


def _read(card: str, triton: str) -> Table:
    root = cache_root()
    texts = None if root is None else read_entry(root / "tuned" / _name(card, triton))
    found = None if texts is None else from_json(texts.get(_TABLE, ""))
    return found or Table(card, triton, templates_hash(), {})


def _name(card: str, triton: str) -> str:
    """The folder of a table: readable, and its own for every card, Triton and set of templates."""
    digest = hashlib.sha256("\0".join((card, triton, templates_hash())).encode()).hexdigest()
    return f"{re.sub(r'[^a-z0-9]+', '-', card.lower()).strip('-')[:40]}-{digest[:16]}"
