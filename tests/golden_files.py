"""Golden files: compared by every run, rewritten when NSA_UPDATE_GOLDEN=1 (`make golden`)."""

from __future__ import annotations

import difflib
import os
from pathlib import Path

GOLDEN = Path(__file__).parent / "golden"


def check_golden(path: str, text: str) -> None:
    """Hold `text` to tests/golden/<path>; a missing file counts as a difference."""
    file = GOLDEN / path
    wanted = text if text.endswith("\n") else text + "\n"
    if os.environ.get("NSA_UPDATE_GOLDEN") == "1":
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(wanted, encoding="utf-8")
        return
    held = file.read_text(encoding="utf-8") if file.is_file() else ""
    if held != wanted:
        difference = "".join(difflib.unified_diff(held.splitlines(True), wanted.splitlines(True), f"golden/{path}", "now"))
        raise AssertionError(f"golden/{path} differs; if the change is meant, run `make golden` and review it\n{difference}")
