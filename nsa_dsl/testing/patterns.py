"""Random patterns as text: what a user could have written, small enough to show its structure at short lengths."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import strategies as st

from nsa_dsl.testing.relations import relations

_NAMES = ("a", "b", "c")


@dataclass(slots=True)
class _Draft:
    """What has been drawn so far. scoring: a compressed branch and its stride, for choices; sunk: whether some branch has a sink."""

    lines: list[str] = field(default_factory=list)
    memories: list[tuple[str, int]] = field(default_factory=list)
    scoring: list[tuple[str, int]] = field(default_factory=list)
    sunk: bool = False


@st.composite
def patterns(draw: st.DrawFn, *, name: str = "drawn") -> str:
    """The text of a pattern with this name that has kernels: relations, memories, choices, outputs and options in any combination.

    It shrinks towards one causal branch. What the language refuses only after a proof (a merge whose branches may share a key)
    is drawn in forms that pass it.
    """
    draft = _Draft()
    kind = draw(st.sampled_from(("single", "gate", "mix", "merge")))
    for index in range(draw(st.integers(0, 2))):
        block, stride = draw(st.integers(1, 8)), draw(st.integers(1, 5))
        by = draw(st.sampled_from(("mean", "max", "weighted", "mlp")))
        draft.memories.append((f"m{index}", stride))
        draft.lines.append(f"m{index} = compress(block = {block}, stride = {stride}, by = {by})")
    anything = (_Where(()),)
    wheres = draw(_disjoint(draft)) if kind == "merge" else anything * (1 if kind == "single" else draw(st.integers(2, 3)))
    output = [draw(_branch(draft, each, merged=kind == "merge", choices=draw(st.booleans()))) for each in wheres]
    if draw(st.integers(0, 3)) == 3:
        draft.lines.insert(0, "kv per branch")
    draft.lines.append(f"output {output[0]}" if kind == "single" else f"output {kind}({', '.join(output)})")
    return f"pattern {name} {{\n" + "".join(f"    {line}\n" for line in draft.lines) + "}\n"


@dataclass(frozen=True, slots=True)
class _Where:
    """The relation of a branch to be: static parts joined by `&` (none: any), and which memory it is for (None: any)."""

    parts: tuple[str, ...]
    memory: str | None = None


@st.composite
def _disjoint(draw: st.DrawFn, draft: _Draft) -> tuple[_Where, ...]:
    """Branches that share no key: a relation cut in two, or different memories."""
    if len(draft.memories) > 0 and draw(st.booleans()):
        return (_Where((), "tokens"), *(_Where((), name) for name, _ in draft.memories))
    cut = draw(st.sampled_from(("first(5)", "window(7)", "blocks(6)", "stride(3)")))
    where = draw(st.sampled_from(("causal", "full", "window(20)", "around(9, 4)")))
    return _Where((where, cut), "tokens"), _Where((f"({where} - {cut})",), "tokens")


@st.composite
def _branch(draw: st.DrawFn, draft: _Draft, where: _Where, *, merged: bool, choices: bool) -> str:
    """Add one branch to the draft, after a branch that scores for it if it needs one; returns its name."""
    memory = where.memory or draw(st.sampled_from(("tokens", "tokens", *(name for name, _ in draft.memories))))
    parts = list(where.parts or (draw(relations()),))
    if memory == "tokens" and draw(st.integers(0, 4)) == 4:
        parts.insert(0, "document")
    if memory == "tokens" and choices:
        parts.append(_chosen_part(draw, draft))
    name = f"b{sum(' = attend(' in line for line in draft.lines)}"
    options = "".join(draw(_options(draft, merged)))
    draft.lines.append(f"{name} = attend({memory}, {' & '.join(parts)}{options})")
    if memory != "tokens":
        draft.scoring.append((name, dict(draft.memories)[memory]))
    return name


@st.composite
def _options(draw: st.DrawFn, draft: _Draft, merged: bool) -> list[str]:
    """`, softcap = 5.0` and the like. Of merged branches only one may have a sink."""
    options = []
    if draw(st.integers(0, 3)) == 3:
        options.append(f", scale = {draw(st.sampled_from(('0.25', '1.0', '0.7')))}")
    if draw(st.integers(0, 3)) == 3:
        options.append(f", softcap = {draw(st.sampled_from(('2.0', '15.0')))}")
    if draw(st.integers(0, 3)) == 3:
        options.append(", bias = alibi")
    if draw(st.integers(0, 3)) == 3 and not (merged and draft.sunk):
        draft.sunk = True
        options.append(", sink = learned")
    return options


def _chosen_part(draw: st.DrawFn, draft: _Draft) -> str:
    """A relation with one or two choices in it."""
    chosen = draw(_choice(draft))
    form = draw(st.integers(0, 4))
    match form:
        case 0 | 1:
            return chosen
        case 2:
            return f"({draw(relations())} | {chosen})"
        case 3:
            return f"(full - {chosen})"
        case _:
            return f"({chosen} | {draw(_choice(draft))})"


@st.composite
def _choice(draw: st.DrawFn, draft: _Draft) -> str:
    """`top(...)`, by whatever may score it."""
    by = draw(st.sampled_from(("mean", "max", "minmax", "scores", "indices", "branch")))
    step = 1
    if by == "branch":
        by, step = _scoring(draw, draft)
    block = step * draw(st.integers(1, max(1, 8 // step)))
    count = draw(st.integers(1, 4))
    text = f"top({count}, block = {block}, by = {by}, share = {draw(st.sampled_from(('group', 'head', 'all')))}"
    text += draw(st.sampled_from(("", "", ", reduce = max", ", reduce = mean")))
    every = draw(st.sampled_from((1, 1, 4, 6)))
    text += f", every = {every}" if every > 1 else ""
    kept = draw(st.sampled_from(("", "", "first(1)", "window(1)", "first(1) | window(1)")))
    if kept:
        inside = count > 1 and draw(st.booleans())
        text += f", {'keep' if inside else 'keep_extra'} = {kept}"
    return text + ")"


def _scoring(draw: st.DrawFn, draft: _Draft) -> tuple[str, int]:
    """A compressed branch that scores, and its stride; a new one if there is none yet, seen by no output."""
    if len(draft.scoring) > 0 and draw(st.booleans()):
        return draw(st.sampled_from(draft.scoring))
    if not draft.memories:
        draft.memories.append(("m0", 2))
        draft.lines.append("m0 = compress(block = 4, stride = 2, by = mean)")
    memory, stride = draw(st.sampled_from(draft.memories))
    name = f"b{sum(' = attend(' in line for line in draft.lines)}"
    draft.lines.append(f"{name} = attend({memory}, {draw(st.sampled_from(('causal', 'window(30)')))})")
    draft.scoring.append((name, stride))
    return name, stride
