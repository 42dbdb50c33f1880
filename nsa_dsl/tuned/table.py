"""Tables of measured decisions as JSON, with a sum over their contents: a damaged table is no table."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from nsa_dsl.launch import Pin, Tiles

_FORMAT = 2
_SIZES = (16, 32, 64, 128, 192, 256)
_WARPS = (1, 2, 4, 8, 12, 16)
_STAGES = range(1, 9)


@dataclass(frozen=True, slots=True)
class Entry:
    """What was measured of a kernel, and the decision. kernel: as it is called in the pattern that was tuned; default: the schedule's own
    tiles; best: the fastest of the candidates, None if none was timed; *_ms: medians, at `tokens` tokens; wins: whether `best` is used;
    tried: candidates that were timed; refused: why `best` is not used although it is faster; versions: what was measured."""

    kernel: str
    default: Pin
    default_ms: float
    best: Pin | None
    best_ms: float | None
    wins: bool
    tokens: int
    tried: int = 0
    refused: str = ""
    versions: str = ""

    @property
    def pin(self) -> Pin | None:
        """The decision; None leaves it to the schedule, so that the kernel is the one that nobody has tuned."""
        return self.best if self.wins else None


@dataclass(frozen=True, slots=True)
class Table:
    """The decisions for one card. triton: the version that compiled the newest; templates: SHA-256 of the templates that were measured
    last."""

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
    return {
        "kernel": entry.kernel,
        "choice": "best" if entry.wins else "default",
        "default": _pin_to_plain(entry.default),
        "default_ms": entry.default_ms,
        "best": None if entry.best is None else _pin_to_plain(entry.best),
        "best_ms": entry.best_ms,
        "tried": entry.tried,
        "refused": entry.refused,
        "tokens": entry.tokens,
        "versions": entry.versions,
    }


def _from_plain(value: Mapping[str, Any]) -> Entry:
    """Raises ValueError for tiles that no kernel can have, and for a choice of what was not measured."""
    best = None if value["best"] is None else _pin_from_plain(value["best"])
    wins = value["choice"] == "best"
    if value["choice"] not in ("best", "default") or (wins and best is None):
        raise ValueError("no such choice")
    return Entry(
        str(value["kernel"]),
        _pin_from_plain(value["default"]),
        float(value["default_ms"]),
        best,
        None if value["best_ms"] is None else float(value["best_ms"]),
        wins,
        int(value["tokens"]),
        int(value["tried"]),
        str(value["refused"]),
        str(value["versions"]),
    )


def _pin_to_plain(pin: Pin) -> dict[str, Any]:
    tiles = pin.tiles
    return {"rows": tiles.rows, "cols": tiles.cols, "warps": tiles.warps, "stages": tiles.stages, "hopper": pin.hopper}


def _pin_from_plain(value: Mapping[str, Any]) -> Pin:
    tiles = Tiles(*(value[name] for name in ("rows", "cols", "warps", "stages")))
    known = tiles.rows in _SIZES and tiles.cols in _SIZES and tiles.warps in _WARPS and tiles.stages in _STAGES
    if not known or value["hopper"] not in (True, False, None):
        raise ValueError("no such tiles")
    return Pin(tiles, value["hopper"])
