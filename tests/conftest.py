"""What all tests share: no cache on disk, and hypothesis profiles: `repeatable` tries the same examples every time, `search` new ones."""

from __future__ import annotations

import os

from hypothesis import settings

# What a test plants must not come from, or end in, the user's cache.
os.environ["NSA_CACHE_DIR"] = ""
settings.register_profile("repeatable", derandomize=True, deadline=None, database=None)
settings.register_profile("search", deadline=None, max_examples=1000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))
