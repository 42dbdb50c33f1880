"""Tables of measured decisions as JSON, with a sum over their contents: a damaged table is no table."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from nsa_dsl.launch import Pin, Tiles

_FORMAT = 1
_SIZES = tuple(1 << each for each in range(4, 9))
_WARPS = (1, 2, 4, 8, 16)
_STAGES = range(1, 9)


@dataclass(frozen=True, slots=True)
class Entry:
    """One decision. ms: of the kernel with these tiles; default_ms: with those of the schedule; both medians, at `tokens` tokens."""

    pin: Pin
    ms: float
    default_ms: float
    tokens: int


@dataclass(frozen=True, slots=True)
class Table:
    """The decisions for one card. triton: the version that compiled; templates: SHA-256 of the templates that were measured."""

    card: str
    triton: str
    templates: str
    entries: Mapping[str, Entry]

    def with_entries(self, entries: Mapping[str, Entry]) -> Table:
        """This table with more entries; new ones replace old ones of the same key."""
        return replace(self, entries={**self.entries, **entries})


def to_json(table: Table) -> str:
    """The table as text, one entry a line."""
    content = {"format": _FORMAT, "card": table.card, "triton": table.triton, "templates": table.templates}
    entries = {key: _to_plain(table.entries[key]) for key in sorted(table.entries)}
    head = [f' "{name}": {json.dumps(value)},' for name, value in {**content, "sha256": _sum(content, entries)}.items()]
    lines = ",\n".join(f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in entries.items())
    return "\n".join(("{", *head, ' "entries": {', *([lines] if lines else []), " }", "}")) + "\n"


def from_json(text: str) -> Table | None:
    """The table in a text; None if it is damaged, of another format, or holds tiles that no kernel can have."""
    try:
        found = json.loads(text)
        entries, content = found["entries"], {name: found[name] for name in ("format", "card", "triton", "templates")}
        if content["format"] != _FORMAT or found["sha256"] != _sum(content, entries):
            return None
        made = {key: _from_plain(value) for key, value in entries.items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    return Table(content["card"], content["triton"], content["templates"], made)


def _sum(content: Mapping[str, Any], entries: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps([content, entries], sort_keys=True).encode()).hexdigest()


def _to_plain(entry: Entry) -> dict[str, Any]:
    tiles = entry.pin.tiles
    return {
        "rows": tiles.rows, "cols": tiles.cols, "warps": tiles.warps, "stages": tiles.stages, "hopper": entry.pin.hopper,
        "ms": entry.ms, "default_ms": entry.default_ms, "tokens": entry.tokens,
    }  # fmt: skip


def _from_plain(value: Mapping[str, Any]) -> Entry:
    """Raises ValueError for tiles that no kernel can have."""
    tiles = Tiles(*(value[name] for name in ("rows", "cols", "warps", "stages")))
    known = tiles.rows in _SIZES and tiles.cols in _SIZES and tiles.warps in _WARPS and tiles.stages in _STAGES
    if not known or value["hopper"] not in (True, False, None):
        raise ValueError("no such tiles")
    return Entry(Pin(tiles, value["hopper"]), float(value["ms"]), float(value["default_ms"]), int(value["tokens"]))
