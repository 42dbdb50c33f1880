"""Text to syntax tree. Every error that can be told apart is reported at once."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

from nsa_dsl.diagnostics import Diagnostic, Label, SpecError
from nsa_dsl.limits import check_tokens, decode, place
from nsa_dsl.syntax import SpecFile

if TYPE_CHECKING:
    from nsa_dsl.tokens import LocatedToken

_DECLARING = frozenset(("USE", "RELATION", "PATTERN", "MODEL"))


def parse(text: str | bytes, name: str = "<text>") -> SpecFile:
    """The syntax tree of a spec.

    text: the spec, at most 64 KiB; bytes must be UTF-8. name: what diagnostics call it.
    Raises SpecError with every error found, in source order: unacceptable characters and sizes (`limits`), else syntax
    errors, at most 20, each statement that is wrong giving one.
    """
    decoded, errors = decode(text, name)
    if errors:
        raise _refusal(errors, decoded, name)
    # Importing lark takes longer than importing the rest of the front end: who only asks for the version need not wait.
    from nsa_dsl.comments import attach
    from nsa_dsl.recovery import MAX_ERRORS, parse_declaration
    from nsa_dsl.tokens import tokenize

    tokens, comments = tokenize(decoded, name)
    if not tokens:
        empty = Diagnostic(
            "empty-spec",
            "nothing is declared",
            Label(place(decoded, name, len(decoded), len(decoded)), "the text ends here"),
            help=("a spec declares a pattern: `pattern local { output attend(tokens, window(512)) }`",),
        )
        raise _refusal([empty], decoded, name)
    declarations = []
    for part in split_declarations(tokens):
        oversize = check_tokens(part)
        declaration, mistakes = (None, oversize) if oversize else parse_declaration(part, decoded)
        errors.extend(mistakes)
        if declaration is not None:
            declarations.append(declaration)
        if len(errors) >= MAX_ERRORS:
            break
    if errors:
        raise _refusal(errors[:MAX_ERRORS], decoded, name)
    return attach(SpecFile(tuple(declarations), name), comments, decoded)


def split_declarations(tokens: list[LocatedToken]) -> list[list[LocatedToken]]:
    """One run of tokens a declaration: the words that begin one are reserved, so they stand nowhere else."""
    borders = [index for index, token in enumerate(tokens) if token.type in _DECLARING and index > 0]
    return [tokens[low:high] for low, high in pairwise([0, *borders, len(tokens)])]


def _refusal(errors: list[Diagnostic], text: str, name: str) -> SpecError:
    return SpecError(sorted(errors, key=lambda each: each.primary.span.start), {name: text})
