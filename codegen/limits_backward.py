"""What generated backward modules know of memory and of the length of programs, as names that a caller may change."""

from __future__ import annotations

ITEM_ROWS = 16384
"""Query rows that one program of the inverse index goes through: enough that parts of sums stay few, few enough that a block which
every query chose is shared by many programs."""

KEPT_ITEM_ROWS = 8192
"""The same, where slopes are kept and a launch takes some of the queries only."""

SLOPE_BYTES = 256 * 1024 * 1024
"""Most memory that kept slopes may take, a part at a time."""

ALL_SLOPE_BYTES = 1024 * 1024 * 1024
"""So much where that is all of them (NSA, 64 heads, 8,192 tokens): a short context's backward is bound by its launches."""

SUM_BYTES = 512 * 1024 * 1024
"""Most memory that the sum for the queries' gradient takes, as far as heads can be parted."""

PROGRAMS_WANTED = 264
"""Programs that fill a large GPU twice."""

LIMITS = f"""ITEM_ROWS = {ITEM_ROWS}
KEPT_ITEM_ROWS = {KEPT_ITEM_ROWS}
KEEP_SLOPES = True
SLOPE_BYTES = {SLOPE_BYTES}
ALL_SLOPE_BYTES = {ALL_SLOPE_BYTES}
SUM_BYTES = {SUM_BYTES}
PROGRAMS_WANTED = {PROGRAMS_WANTED}"""
"""What generated modules know of these."""
