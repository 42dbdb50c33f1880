"""How a command ends: exit statuses, messages on standard error, files written whole or not at all."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread

import typer

from nsa_dsl.diagnostics import SpecError
from nsa_dsl.pattern import NotSupported

CHECK_FAILED = 1
REFUSED = 2
PATIENCE = 1.5
"""Seconds of silence after which a command says what it is doing."""
REMINDER = 10.0
"""Seconds until it says so again."""


class UserError(Exception):
    """Something the user can put right; its text says what and how. Exit status 2."""


REFUSALS = (SpecError, UserError, NotSupported, OSError)
"""What a user can cause and put right. Anything else is our own bug and keeps its traceback."""


def explain(problem: SpecError | UserError | NotSupported | OSError) -> str:
    """The message for one of REFUSALS."""
    if isinstance(problem, SpecError):
        return str(problem)
    if isinstance(problem, OSError) and problem.strerror:
        return f"error: {problem.filename}: {problem.strerror}" if problem.filename else f"error: {problem.strerror}"
    return f"error: {problem}"


def for_each_file(files: Iterable[Path], work: Callable[[Path], bool]) -> None:
    """Run `work` on every file, so that one bad file does not hide the next; then exit with the worst status.

    work: returns whether the file's checks hold; may raise any of REFUSALS.
    """
    status = 0
    for file in files:
        try:
            held = work(file)
        except REFUSALS as problem:
            typer.echo(explain(problem), err=True)
            status = REFUSED
        else:
            status = status if held else max(status, CHECK_FAILED)
    if status:
        raise typer.Exit(status)


@contextmanager
def busy(what: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
    """While the block runs, say on standard error what it does: a spinner, or a bar if there is a total, on a terminal;
    elsewhere a line once the block has been silent for a while, and again from time to time.

    Yields a function to call with how many of the total are done.
    """
    with (_bar if sys.stderr.isatty() else _lines)(what, total) as advance:
        yield advance


@contextmanager
def _bar(what: str, total: int | None) -> Iterator[Callable[[int], None]]:
    # Imported here because it takes longer than most commands run.
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    counted = (BarColumn(), MofNCompleteColumn()) if total is not None else ()
    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), *counted, TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(what, total=total)
        yield lambda done: progress.update(task, completed=done)


@contextmanager
def _lines(what: str, total: int | None) -> Iterator[Callable[[int], None]]:
    done, over = 0, Event()

    def advance(count: int) -> None:
        nonlocal done
        done = count

    def talk() -> None:
        wait = PATIENCE
        while not over.wait(wait):
            typer.echo(f"{what} ..." if total is None else f"{what}: {done} of {total} ...", err=True)
            wait = REMINDER

    talker = Thread(target=talk, daemon=True)
    talker.start()
    try:
        yield advance
    finally:
        over.set()
        talker.join()


def write_whole(path: Path, text: str) -> None:
    """Write a file so that a reader finds the old content or the new, never a part. A link stays a link,
    and a file that is replaced keeps its permissions."""
    path = path.resolve()
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with aside.open("x", encoding="utf-8", newline="\n") as stream:
            stream.write(text)
        if path.exists():
            aside.chmod(stat.S_IMODE(path.stat().st_mode))
        os.replace(aside, path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
