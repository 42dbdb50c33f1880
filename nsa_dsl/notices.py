"""What the library says by itself: lines of the logger `nsa_dsl`, which reach standard error unless the program has set up logging."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from threading import Timer

LOG = logging.getLogger("nsa_dsl")


def notice(text: str, *values: object) -> None:
    """Say it at level INFO. text, values: as `logging` takes them."""
    _be_heard()
    LOG.info(text, *values)


_said: set[str] = set()


def notice_once(text: str, *values: object) -> None:
    """Say it the first time only, whatever the values are later."""
    if text not in _said:
        _said.add(text)
        notice(text, *values)


@contextmanager
def explained(what: Callable[[], str], patience: float = 1.0) -> Iterator[None]:
    """Say what takes so long if the block takes longer than `patience` seconds. what: asked then."""
    timer = Timer(patience, lambda: notice("%s", what()))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


@cache
def _be_heard() -> None:
    """Without any handler logging drops what is no warning: a program that set up nothing hears this library on standard error."""
    if LOG.hasHandlers() or LOG.level != logging.NOTSET:
        return
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(name)s: %(message)s"))
    LOG.addHandler(handler)
    LOG.setLevel(logging.INFO)
    LOG.propagate = False
