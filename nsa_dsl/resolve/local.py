"""What the lines of a pattern have defined so far."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from nsa_dsl.diagnostics import Label, Span
from nsa_dsl.pattern import Branch, Choice, Compress
from nsa_dsl.resolve.kinds import wrong_kind
from nsa_dsl.resolve.problems import RefusedError
from nsa_dsl.resolve.scope import Context, Scope
from nsa_dsl.syntax import Name


@dataclass(slots=True)
class Local:
    """What a pattern has defined so far, and where: the names that its later lines may use."""

    defined: Mapping[str, Span]
    allow_lookahead: bool
    memories: dict[str, Compress] = field(default_factory=dict)
    strides: dict[str, Span] = field(default_factory=dict)
    branches: dict[str, Branch] = field(default_factory=dict)
    choices: dict[str, Choice] = field(default_factory=dict)
    failed: set[str] = field(default_factory=set)

    def free_choice_name(self, branch: str) -> str:
        """The branch's name for its first choice, then branch_2, branch_3 ..., passing over names that are taken."""
        if branch not in self.choices:
            return branch
        number = 2
        while (name := f"{branch}_{number}") in self.choices or name in self.defined:
            number += 1
        return name

    def branch(self, node: Name, wanted: str, candidates: Iterable[str], scope: Scope, context: Context) -> Branch:
        """The branch that the name means. Raises RefusedError: also when it is defined only later, or failed itself."""
        if node.text in self.branches:
            return self.branches[node.text]
        if node.text in self.failed:
            raise RefusedError
        if node.text in self.defined and node.text not in self.memories:
            raise context.problems.refusal(
                "used-before-definition",
                f"{node.text} is used before it is defined",
                node.span,
                "used here",
                context=(Label(self.defined[node.text], "defined here"),),
            )
        raise wrong_kind(node, wanted, candidates, scope, context)
