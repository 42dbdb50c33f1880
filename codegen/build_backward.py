"""From a backward plan to the contexts of attention's gradient kernels."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from nsa_dsl.codegen import build
from nsa_dsl.codegen import contexts_backward as ctx
from nsa_dsl.codegen.expressions import print_condition
from nsa_dsl.lift import key_positions
from nsa_dsl.pattern import Choice, Compress
from nsa_dsl.relation import CAUSAL, EMPTY, FULL, Chosen, Condition, choices, conjunction, negate, rewrite, symbols
from nsa_dsl.schedule import StaticStep
from nsa_dsl.schedule_backward import ChosenKeysStep, QueriesStep, StaticKeysStep


def queries(step: QueriesStep) -> ctx.StaticQueries | ctx.ChosenQueries:
    """The context of one branch's share of the queries' gradient."""
    name, doc = f"attend_{step.attend.branch.name}_queries", f"Branch {step.attend.branch.name}: the gradient of its queries."
    if isinstance(step.attend, StaticStep):
        plain = {**_fields(build.static_attend(step.attend)), "name": name, "doc": doc, "fast": step.hopper is not None}
        return ctx.StaticQueries(**plain)
    return ctx.ChosenQueries(**{**_fields(build.chosen_attend(step.attend)), "name": name, "doc": doc})


def _fields(context: Any) -> dict[str, Any]:
    return {each.name: getattr(context, each.name) for each in fields(context)}


def static_keys(step: StaticKeysStep) -> ctx.StaticKeys:
    """The context of the gradients of keys and values over a static relation."""
    branch, memory = step.branch, step.branch.memory
    document = build.has_document(step.seen)
    compressed = memory if isinstance(memory, Compress) else None
    ends = build.slot_document_ends(compressed, "cols") if compressed else ("cols",)
    load, same = _documents(ends)
    made = tuple(each for each in branch.choices if each.name in choices(step.seen))
    members = {f"chosen:{each.name}": f"member_{each.name}" for each in made}
    names = {**build.SCALARS, "i": "rows[None, :]", "j": "cols[:, None]", "same_document": "same_document", **members}
    keys = key_positions(branch)
    return ctx.StaticKeys(
        name=f"attend_{branch.name}_keys",
        doc=f"Branch {branch.name}: the gradients of its keys and values{' over pairs that need no choice' if branch.choices else ''}.",
        fast=step.hopper is not None,
        softcap=branch.softcap,
        alibi=branch.bias == "alibi",
        document=document,
        by_head="h" in symbols(step.walked),
        tile_m=step.tiles.rows,
        tile_n=step.tiles.cols,
        mask=print_condition(step.seen, names, {}),
        key_position=f"({ends[-1]})[:, None]",
        load_key_documents=load if document else (),
        same_document=same if document else "",
        members=tuple(_member(each, "rows") for each in made),
        walks=build.print_walks(step.walked, step.tiles.rows, step.tiles.cols, keys, all_partial=bool(branch.choices), over="queries"),
    )


def _documents(ends: tuple[str, ...]) -> tuple[tuple[str, ...], str]:
    """Statements that load the documents of the keys of a program, and the one that compares them with its rows'."""
    load = tuple(f"key_document_{n} = tl.load(document_ptr + {end}, mask=col_ok, other=-2)" for n, end in enumerate(ends))
    tests = (f"(key_document_{n}[:, None] == row_document[None, :])" for n, _ in enumerate(ends))
    return load, f"same_document = {' & '.join(tests)}"


def chosen_keys(step: ChosenKeysStep) -> ctx.ChosenKeys:
    """The context of the gradients of keys and values from the pairs that one choice adds: outside what is visible when nothing is
    chosen, and outside earlier choices."""
    branch, where = step.attend.branch, step.attend.where
    choice, earlier = branch.choices[step.place], branch.choices[: step.place]
    nothing = rewrite(where, {}, {Chosen(each.name): EMPTY for each in branch.choices})
    taken: dict[Condition, Condition] = {Chosen(choice.name): FULL, **{Chosen(each.name): EMPTY for each in earlier}}
    mask = conjunction(rewrite(where, {}, taken), negate(nothing), *(negate(Chosen(each.name)) for each in earlier))
    made = tuple(each for each in branch.choices if each.name in choices(mask))
    members = {f"chosen:{each.name}": f"member_{each.name}" for each in made}
    names = {
        **build.SCALARS,
        "h": "head[None, :]",
        "i": "tokens[None, :]",
        "j": "cols[:, None]",
        "same_document": "same_document",
        **members,
    }
    return ctx.ChosenKeys(
        name=f"chosen_keys_{choice.name}",
        doc=f"Branch {branch.name}: the gradients of keys and values from the blocks of {choice.name}.",
        softcap=branch.softcap,
        alibi=branch.bias == "alibi",
        document=build.has_document(where),
        every=choice.every,
        block=choice.block,
        by_head=choice.share == "head",
        width=choice.count or 0,
        tiles=-(-choice.block // step.tiles.cols),
        tile_m=step.tiles.rows,
        tile_n=step.tiles.cols,
        first=step.attend.first,
        causal=mask == CAUSAL and choice.every == 1 and choice.share != "head",
        mask=print_condition(mask, names, {}),
        members=tuple(_member(each, "tokens") for each in made),
    )


def slopes_queries(step: ChosenKeysStep) -> ctx.SlopesQueries:
    """The context of the queries' gradient from kept slopes."""
    branch = step.attend.branch
    choice = branch.choices[step.place]
    doc = f"Branch {branch.name}: the gradient of its queries from slopes."
    return ctx.SlopesQueries(f"slopes_{branch.name}_queries", doc, choice.block, choice.count or 0, step.attend.first)


def _member(choice: Choice, tokens: str) -> ctx.ListMember:
    """tokens: what the kernel calls the positions of its rows."""
    width, pointer = choice.count or 0, f"list_{choice.name}"
    units, unit = {"group": ("kv_heads", "kv_head"), "head": ("heads", "head"), "all": ("1", "0")}[choice.share]
    lists = f"{pointer}_ptr + ((batch * {units} + {unit}) * tl.cdiv(n_tokens, {choice.every}) + {tokens} // {choice.every}) * {width}"
    return ctx.ListMember(f"member_{choice.name}", pointer, lists, choice.block, width, width.bit_length())


def sum_blocks(choice: Choice) -> ctx.SumBlocks:
    """The context of the sum over the parts of a choice's inverse index."""
    tile = max(16, min(32, 1 << (choice.block - 1).bit_length()))
    doc = f"Choice {choice.name}: gradients of its blocks, added up."
    return ctx.SumBlocks(f"add_parts_{choice.name}", doc, choice.block, tile, -(-choice.block // tile))
