"""What generated backward modules know of memory and of the length of programs, as names that a caller may change."""

from __future__ import annotations

ITEM_ROWS = 16384
"""Query rows that one program of the inverse index goes through: enough that parts of sums stay few, few enough that a block which
every query chose is shared by many programs."""

KEPT_ITEM_ROWS = 8192
"""The same, where slopes are kept and a launch takes some of the queries only."""

SLOPE_BYTES = 256 * 1024 * 1024
"""Memory that kept slopes take, a part at a time; more only by the next two."""

ALL_SLOPE_BYTES = 1024 * 1024 * 1024
"""So much where that is all of them (NSA, 64 heads, 8,192 tokens): a short context's backward is bound by its launches."""

SLOPE_CHUNKS = 8
"""Most parts that the queries of kept slopes are taken in, whatever room they take then: each part reads and writes the sums of all
blocks that its queries chose, a quadratic number of bytes in all. NSA is at 8 parts from 65,536 tokens on."""

SLOPE_NUMBERS = 2**30
"""Most slopes of a list that a part may have for that: their places are counted in 32 bits."""

SUM_BYTES = 512 * 1024 * 1024
"""Most memory that the sum for the queries' gradient takes, as far as heads can be parted."""

PROGRAMS_WANTED = 264
"""Programs that fill a large GPU twice."""

LIMITS = f"""ITEM_ROWS = {ITEM_ROWS}
KEPT_ITEM_ROWS = {KEPT_ITEM_ROWS}
KEEP_SLOPES = True
SLOPE_BYTES = {SLOPE_BYTES}
ALL_SLOPE_BYTES = {ALL_SLOPE_BYTES}
SLOPE_CHUNKS = {SLOPE_CHUNKS}
SLOPE_NUMBERS = {SLOPE_NUMBERS}
SUM_BYTES = {SUM_BYTES}
PROGRAMS_WANTED = {PROGRAMS_WANTED}"""
"""What generated modules know of these."""
