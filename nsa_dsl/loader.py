"""From a path or a text to a checked `Spec`: reading files, following `use`, adding the prelude."""

from __future__ import annotations

import os
import stat
from functools import cache
from importlib import resources

from nsa_dsl.diagnostics import Diagnostic, Label, Span, SpecError
from nsa_dsl.limits import MAX_BYTES
from nsa_dsl.parser import parse
from nsa_dsl.resolve.prelude_limits import PRELUDE
from nsa_dsl.resolve.spec import Spec, make_spec
from nsa_dsl.syntax import SpecFile, Use

MAX_USE_DEPTH = 8
MAX_FILES = 64
_TEXT = "<text>"


def load_spec(path_or_text: str | bytes | os.PathLike[str]) -> Spec:
    """The checked spec in a file or a text.

    path_or_text: the text itself if it holds a line break or a brace, or is bytes; otherwise the path of a file, whose
    `use` lines are followed inside its folder's tree. Raises SpecError with every error found.
    """
    if isinstance(path_or_text, bytes):
        return _from_text(path_or_text)
    if isinstance(path_or_text, str) and any(mark in path_or_text for mark in "\n{"):
        return _from_text(path_or_text)
    return _from_path(os.fspath(path_or_text))


@cache
def prelude() -> SpecFile:
    """The prelude's syntax tree."""
    return parse(_prelude_text(), PRELUDE)


@cache
def _prelude_text() -> str:
    return (resources.files("nsa_dsl") / "grammar" / "prelude.nsa").read_text(encoding="ascii")


def _from_text(text: str | bytes) -> Spec:
    file = parse(text, _TEXT)
    shown = text.decode() if isinstance(text, bytes) else text
    sources = {_TEXT: shown, PRELUDE: _prelude_text()}
    uses = [each for each in file.declarations if isinstance(each, Use)]
    if uses:
        help = ("put the spec into a file beside the one it uses",)
        refused = (Diagnostic("use-in-text", "only a file can use another", Label(each.span), help=help) for each in uses)
        raise SpecError(refused, sources)
    return make_spec(_TEXT, (prelude(), file), sources)


def _from_path(path: str) -> Spec:
    reader = _Reader(path)
    reader.read(path, _real(path), Span(path, 0, 0, 1, 1))
    if reader.problems:
        raise SpecError(reader.problems, reader.sources)
    return make_spec(path, (prelude(), *reader.files.values()), {PRELUDE: _prelude_text(), **reader.sources})


def read_spec(path: str | os.PathLike[str]) -> bytes:
    """The bytes of a spec file, at most one more than a spec may have. Raises SpecError if it is no regular file."""
    name = os.fspath(path)
    content = _content(name, _real(name), Span(name, 0, 0, 1, 1))
    if isinstance(content, Diagnostic):
        raise SpecError([content], {})
    return content


def _real(path: str) -> str:
    """The path without links; one that no file system can hold stays as it is, for `_content` to refuse."""
    return path if "\0" in path else os.path.realpath(path)


def _content(name: str, real: str, asked: Span) -> bytes | Diagnostic:
    """The file's bytes, or why there are none. O_NONBLOCK: opening a pipe must not wait for its writer. O_NOFOLLOW: `real` holds
    no link unless one was put there since."""
    try:
        descriptor = os.open(real, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return Diagnostic("file-not-found", f"no such file: {name}", Label(asked))
    except OSError as error:
        return Diagnostic("unreadable-file", f"{name} cannot be read: {error.strerror}", Label(asked))
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        return Diagnostic("not-a-file", f"{name} is not a regular file", Label(asked))
    with os.fdopen(descriptor, "rb") as file:
        return file.read(MAX_BYTES + 1)


class _Reader:
    """Follows `use` from one top file, depth first; files in the order in which they are needed."""

    def __init__(self, top: str) -> None:
        self.problems: list[Diagnostic] = []
        self.sources: dict[str, str] = {}
        self.files: dict[str, SpecFile] = {}
        self._root = os.path.dirname(_real(top))
        self._open: list[tuple[str, str]] = []
        self._seen: set[str] = set()

    def read(self, name: str, real: str, asked: Span) -> None:
        """Read one file and all that it uses. name: as diagnostics call it; real: its path without links; asked: by whom."""
        self._seen.add(real)
        if len(self._seen) > MAX_FILES:
            self._report("too-many-files", f"a spec has at most {MAX_FILES} files", asked, "one file too many")
            return
        content = _content(name, real, asked)
        if isinstance(content, Diagnostic):
            self.problems.append(content)
            return
        self.sources[name] = content.decode("utf-8", "replace")
        try:
            file = parse(content, name)
        except SpecError as error:
            self.problems.extend(error.diagnostics)
            return
        self._open.append((real, name))
        for each in file.declarations:
            if isinstance(each, Use):
                self._follow(each, name)
        self._open.pop()
        self.files[real] = file

    def _follow(self, use: Use, user: str) -> None:
        if not use.path or os.path.isabs(use.path) or any(mark in use.path for mark in "\0\\"):
            self._report("bad-use-path", "`use` takes a relative path with forward slashes", use.span, "not such a path")
            return
        name = os.path.normpath(os.path.join(os.path.dirname(user), use.path))
        real = os.path.realpath(os.path.join(os.path.dirname(self._open[-1][0]), use.path))
        if os.path.commonpath([self._root, real]) != self._root:
            self._report("use-outside", "a spec uses only files in its own folder and below", use.span, "leads out of the folder")
            return
        open_files = [each for each, _ in self._open]
        if real in open_files:
            circle = [each for _, each in self._open[open_files.index(real) :]]
            circle.append(circle[0])
            self._report("use-cycle", f"files use each other in a circle: {' -> '.join(circle)}", use.span, "comes back here")
        elif len(self._open) > MAX_USE_DEPTH:
            self._report("use-too-deep", f"files use each other more than {MAX_USE_DEPTH} levels deep", use.span, "level too many")
        elif real not in self._seen:
            self.read(name, real, use.span)

    def _report(self, code: str, title: str, span: Span, label: str = "") -> None:
        self.problems.append(Diagnostic(code, title, Label(span, label)))
