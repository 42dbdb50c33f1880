"""From a plan to template contexts: every decision is already taken, this prints it."""

from __future__ import annotations

from collections.abc import Sequence

from nsa_dsl.codegen import contexts as ctx
from nsa_dsl.codegen.expressions import print_condition, print_term
from nsa_dsl.launch import LaunchShape
from nsa_dsl.lift import key_positions
from nsa_dsl.pattern import Branch, BranchScore, Choice, Compress, GivenIndices, GivenScores, PooledScore
from nsa_dsl.relation import (
    EMPTY,
    FULL,
    Chosen,
    Condition,
    SameDocument,
    Term,
    Var,
    choices,
    conjunction,
    negate,
    rewrite,
    walk,
)
from nsa_dsl.schedule import ChooseStep, ChosenStep, StaticStep, monotone
from nsa_dsl.terms import MOST_TOKENS
from nsa_dsl.tiles import Piece, Side, tiling

SCALARS = {"tile": "tile", "N": "n_tokens", "h": "head", "heads": "heads", "kv_heads": "kv_heads"}
"""How a kernel calls the symbols that are one number for the whole program."""

TILES = (0, MOST_TOKENS // 16)
"""The range of a tile's index: a tile has at least 16 positions."""

MOST_LOOPS = 3
"""More loops of one kind than this become one loop over pieces, so that the kernel's body does not grow with the relation."""


def ends_of_documents(ok: str, ends: Sequence[str]) -> tuple[str, ...]:
    """Statements that load the documents of a tile's keys. ends: the tokens whose documents decide (first and last, for slots)."""
    lines = [f"key_document_{n} = tl.load(document_ptr + {end}, mask={ok}, other=-2)" for n, end in enumerate(ends)]
    tests = [f"(row_document[:, None] == key_document_{n}[None, :])" for n, _ in enumerate(ends)]
    return (*lines, f"same_document = {' & '.join(tests)}")


def has_document(condition: Condition) -> bool:
    """Whether visibility asks for documents."""
    return any(isinstance(each, SameDocument) for each in walk(condition))


def print_walks(
    relation: Condition, rows: int, cols: int, keys: Term, all_partial: bool = False, over: Side = "keys"
) -> tuple[ctx.Walk, ...]:
    """The loops over the key tiles that a query tile needs, or over the query tiles that need a key tile: full tiles first, then
    partial ones. over: which side the loops run over."""
    document = has_document(relation)
    pieces = tiling(rewrite(relation, {}, {SameDocument(): FULL}), rows, cols, keys=keys, over=over).pieces
    full = tuple(each for each in pieces if each.full and not document and not all_partial)
    partial = tuple(each for each in pieces if each not in full)
    index = "key_tile" if over == "keys" else "query_tile"
    walks = (
        _print_group("Full tiles: every pair is visible, no mask.", True, full, index),
        _print_group("Partial tiles: masked.", False, partial, index),
    )
    return tuple(each for group in walks for each in group)


def _print_group(note: str, full: bool, pieces: Sequence[Piece], index: str) -> tuple[ctx.Walk, ...]:
    plain = tuple(_print_piece(each, full, index) for each in pieces if each.inner is None)
    guarded = tuple(_print_piece(each, full, index) for each in pieces if each.inner is not None)
    groups = [ctx.Walk(note, full, len(plain) > MOST_LOOPS, plain)] if plain else []
    if guarded:
        groups.append(ctx.Walk(note, full, False, guarded))
    return tuple(groups)


def _print_piece(piece: Piece, full: bool, index: str) -> ctx.PieceText:
    """full: print it without masks; a piece that is full in the relation may still have to be masked by documents. index: how the
    kernel calls the loop's tile."""

    def term(value: Term) -> str:
        return print_term(value, SCALARS, {})

    def condition(value: Condition | None, names: dict[str, str]) -> str | None:
        return None if value is None else print_condition(value, names, {"j": TILES})

    return ctx.PieceText(
        low=term(piece.low),
        high=term(piece.high),
        step=piece.step,
        full=full,
        guard=condition(piece.guard, SCALARS),
        inner=condition(piece.inner, {**SCALARS, "j": index}),
    )


def slot_document_ends(memory: Compress, slots: str) -> tuple[str, str]:
    """First and last token of a slot: documents are contiguous, so these two decide."""
    return f"{slots} * {memory.stride}", f"{slots} * {memory.stride} + {memory.block - 1}"


def static_attend(step: StaticStep) -> ctx.StaticAttend:
    """The context of attention over a static relation."""
    branch, memory = step.branch, step.branch.memory
    relation = step.relation
    document = has_document(relation)
    compressed = isinstance(memory, Compress)
    ends = slot_document_ends(memory, "cols") if isinstance(memory, Compress) else ("cols",)
    names = {**SCALARS, "i": "rows[:, None]", "j": "cols[None, :]", "same_document": "same_document"}
    keys = key_positions(branch)
    return ctx.StaticAttend(
        name=f"attend_{branch.name}",
        doc=f"Branch {branch.name}: attention over {'slots of ' + memory.name if isinstance(memory, Compress) else 'tokens'}.",
        fast=step.hopper is not None,
        softcap=branch.softcap,
        alibi=branch.bias == "alibi",
        sink=branch.sink,
        document=document,
        tile_m=step.tiles.rows,
        tile_n=step.tiles.cols,
        mask=print_condition(relation, names, {}),
        key_position=f"({ends[-1]})[None, :]" if compressed else "cols[None, :]",
        load_key_documents=ends_of_documents("in_range", ends) if document else (),
        walks=print_walks(relation, step.tiles.rows, step.tiles.cols, keys),
    )


def chosen_attend(step: ChosenStep) -> ctx.ChosenAttend:
    """The context of attention over chosen blocks.

    With F the condition when nothing is chosen: the static walk takes the pairs of F, and list k the pairs outside F that no
    earlier list has. Every visible pair is met exactly once. Where the condition only grows with the choices, F is visible
    whatever they are, and the static walk asks no list.
    """
    branch = step.branch
    atoms = {each.name: Chosen(each.name) for each in branch.choices}
    nothing = rewrite(step.where, {}, dict.fromkeys(atoms.values(), EMPTY))
    growing = all(monotone(step.where, each) for each in atoms)
    static = nothing if growing else conjunction(nothing, step.where)
    return ctx.ChosenAttend(
        name=f"attend_{branch.name}",
        doc=f"Branch {branch.name}: attention over chosen blocks.",
        softcap=branch.softcap,
        alibi=branch.bias == "alibi",
        sink=branch.sink,
        document=has_document(step.where),
        run=step.run,
        per_head=step.per_head,
        tile_n=step.tiles.cols,
        walks=() if nothing == EMPTY else print_walks(nothing, step.run, step.tiles.cols, Var("N"), all_partial=True),
        static_mask=_print_chosen_mask(static),
        static_members=tuple(_member(each) for each in branch.choices if each.name in choices(static)),
        lists=tuple(_list_walk(step, n, nothing) for n, _ in enumerate(branch.choices)),
    )


def _list_walk(step: ChosenStep, place: int, nothing: Condition) -> ctx.ListWalk:
    choice = step.branch.choices[place]
    earlier = step.branch.choices[:place]
    taken: dict[Condition, Condition] = {Chosen(choice.name): FULL, **{Chosen(each.name): EMPTY for each in earlier}}
    mask = conjunction(rewrite(step.where, {}, taken), negate(nothing), *(negate(Chosen(each.name)) for each in earlier))
    width = choice.count or 0
    tile = step.tiles.cols
    whole = choice.block >= 16
    return ctx.ListWalk(
        choice=choice.name,
        pointer=f"list_{choice.name}",
        units={"group": "kv_heads", "head": "heads", "all": "1"}[choice.share],
        unit={"group": "kv_head", "head": "first_head", "all": "0"}[choice.share],
        every=choice.every,
        width=width,
        padded_width=max(2, 1 << (width - 1).bit_length()),
        block=choice.block,
        tiles=-(-choice.block // tile),
        whole_tiles=whole,
        ragged=choice.block % tile != 0,
        mask=_print_chosen_mask(mask),
        members=tuple(_member(each) for each in step.branch.choices if each.name in choices(mask)),
    )


def _member(choice: Choice) -> ctx.Member:
    width = choice.count or 0
    return ctx.Member(f"member_{choice.name}", f"list_{choice.name}", choice.block, width, min(32, max(2, 1 << (width - 1).bit_length())))


def _print_chosen_mask(condition: Condition) -> str:
    members = {f"chosen:{each}": f"member_{each}[None, :]" for each in choices(condition)}
    names = {**SCALARS, "i": "tokens[:, None]", "j": "cols[None, :]", "same_document": "same_document", **members}
    return print_condition(condition, names, {})


def score(step: ChooseStep) -> ctx.Score:
    """The context of the scores of a choice that the layer computes."""
    choice, branch = step.choice, step.scored_branch
    memory = branch.memory if branch is not None and isinstance(branch.memory, Compress) else None
    relation = step.relation if step.relation is not None else FULL
    document = has_document(relation)
    names = {**SCALARS, "i": "positions[:, None]", "j": "slots[None, :]", "same_document": "same_document"}
    block, stride = (memory.block, memory.stride) if memory else (choice.block, choice.block)
    kind = choice.score.by if isinstance(choice.score, PooledScore) else "slots"
    first, last = -((block - 1) // stride), choice.block // stride - 1
    ends = slot_document_ends(memory, "slots") if memory else ()
    return ctx.Score(
        name=f"score_{choice.name}",
        doc=f"Choice {choice.name}: scores of key blocks of {choice.block}.",
        kind=kind,
        softcap=branch.softcap if branch else None,
        alibi=branch is not None and branch.bias == "alibi",
        document=document,
        every=choice.every,
        block=choice.block,
        reduce=choice.reduce,
        hoist_keys=choice.share != "all" and choice.reduce != "max",
        tile_m=step.tiles.rows,
        tile_b=step.tiles.cols,
        slots_per_block=choice.block // stride,
        first_tap=first,
        last_tap=last,
        tap_weight=_tap_weight(block, stride, choice.block),
        stride=stride,
        block_slots=block,
        mask=print_condition(relation, names, {}),
        load_key_documents=ends_of_documents("slot_ok", ends) if document else (),
    )


def slot_score(step: ChooseStep) -> ctx.SlotScore:
    """The context of the scores of a choice whose slots are scored once each (`step.slots_once`). Raises ValueError for another."""
    choice, branch = step.choice, step.scored_branch
    if branch is None or not isinstance(branch.memory, Compress):
        raise ValueError(f"choice {choice.name} scores no slots")
    memory, relation = branch.memory, step.relation if step.relation is not None else FULL
    document = has_document(relation)
    names = {**SCALARS, "i": "positions[:, None]", "j": "slots[None, :]", "same_document": "same_document"}
    slots_per_block = choice.block // memory.stride
    return ctx.SlotScore(
        name=f"score_{choice.name}",
        doc=f"Choice {choice.name}: scores of key blocks of {choice.block}, from slots scored once each.",
        softcap=branch.softcap,
        alibi=branch.bias == "alibi",
        document=document,
        every=choice.every,
        block=choice.block,
        reduce=choice.reduce,
        tile_m=step.tiles.rows,
        tile_n=step.tiles.cols,
        tile_b=step.tiles.cols // slots_per_block,
        slots_per_block=slots_per_block,
        stride=memory.stride,
        block_slots=memory.block,
        edges=memory.block > memory.stride,
        mask=print_condition(relation, names, {}),
        load_key_documents=ends_of_documents("slot_ok", slot_document_ends(memory, "slots")) if document else (),
    )


def _tap_weight(block: int, stride: int, chosen: int) -> str:
    """The overlap of slot [tap * stride, tap * stride + block) with [0, chosen), over the stride, as an expression in `tap`."""
    overlap = f"(min(tap * {stride} + {block}, {chosen}) - max(tap * {stride}, 0))"
    return f"({overlap} / {stride})"


def top(choice: Choice, edge_blocks: int = 0) -> ctx.Top:
    """The context of the search for the best blocks. edge_blocks: blocks a tile of a score kernel that left edges."""
    # A choice whose kept blocks differ by head is made for each head alone: its unit is the head.
    names = {**SCALARS, "i": "query_block", "j": "blocks", "N": "n_blocks", "h": "unit"}

    def blocks(relation: Condition | None) -> str | None:
        return None if relation is None else print_condition(relation, names, {})

    return ctx.Top(
        name=f"choose_{choice.name}",
        doc=f"Choice {choice.name}: the {choice.count} best blocks of {choice.block} keys.",
        block=choice.block,
        every=choice.every,
        whole_blocks=isinstance(choice.score, PooledScore),
        given=not computes_scores(choice),
        signed=not isinstance(choice.score, BranchScore),
        edge_blocks=edge_blocks,
        rank_bits=(choice.count or 0).bit_length(),
        keep=blocks(choice.keep),
        exclude=blocks(choice.keep_extra),
    )


def computes_scores(choice: Choice) -> bool:
    """Whether the layer computes the scores itself."""
    return not isinstance(choice.score, GivenScores | GivenIndices)


def shared(branches: Sequence[Branch], shape: LaunchShape, gradient: bool = False, gathers: bool = False) -> ctx.Shared:
    """What the kernels of these branches share. gradient: the kernels of the backward pass; gathers: one of the forward calls load_at."""
    several = any(len(each.choices) > 1 or not all(monotone(each.where, one.name) for one in each.choices) for each in branches)
    return ctx.Shared(
        gradient=gradient,
        gathers=gathers or (gradient and any(each.choices for each in branches)),
        lists=gradient and several,
        acc="float64" if shape.dtype == "fp64" else "float32",
        softcap=any(each.softcap is not None for each in branches),
        alibi=any(each.bias == "alibi" for each in branches),
        members=several,
    )
