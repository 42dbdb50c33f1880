"""Generated source to a live module, without a file on disk and only if it is made of what generated modules are made of."""

from __future__ import annotations

import ast
import hashlib
import linecache
import types

_IMPORTS = {
    "torch", "triton", "triton.language", "triton.experimental.gluon", "triton.experimental.gluon.language",
    "triton.experimental.gluon.language.nvidia.hopper", "triton.experimental.gluon.nvidia.hopper",
}  # fmt: skip
_NODES = (
    ast.Module, ast.Import, ast.alias, ast.FunctionDef, ast.arguments, ast.arg, ast.Return, ast.Assign, ast.AugAssign, ast.AnnAssign,
    ast.For, ast.While, ast.If, ast.Expr, ast.BoolOp, ast.BinOp, ast.UnaryOp, ast.IfExp, ast.Dict, ast.Compare, ast.Call, ast.keyword,
    ast.Constant, ast.Attribute, ast.Subscript, ast.Starred, ast.Name, ast.List, ast.Tuple, ast.Slice, ast.GeneratorExp, ast.comprehension,
    ast.Load, ast.Store, ast.And, ast.Or, ast.operator, ast.unaryop, ast.cmpop,
)  # fmt: skip
_FORBIDDEN_NAMES = {"eval", "exec", "compile", "open", "getattr", "setattr", "delattr", "globals", "locals", "vars", "input", "breakpoint"}
_FORBIDDEN_ATTRIBUTES = {"load_inline", "hub", "utils", "serialization", "os", "sys", "tools"}


class UnsafeModuleError(Exception):
    """Generated source holds something that no template writes. A defect of the compiler or a tampered source."""


def check_source(source: str) -> ast.Module:
    """The syntax tree of generated source. Raises UnsafeModuleError if a node, name or import is not on the list."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        where = f"line {getattr(node, 'lineno', '?')}"
        if not isinstance(node, _NODES):
            raise UnsafeModuleError(f"{where}: {type(node).__name__} is not allowed")
        if isinstance(node, ast.Import) and any(each.name not in _IMPORTS for each in node.names):
            raise UnsafeModuleError(f"{where}: import of {node.names[0].name} is not allowed")
        if isinstance(node, ast.Name) and (node.id in _FORBIDDEN_NAMES or node.id.startswith("__")):
            raise UnsafeModuleError(f"{where}: name {node.id} is not allowed")
        if isinstance(node, ast.Attribute) and (node.attr.startswith("_") or node.attr in _FORBIDDEN_ATTRIBUTES):
            raise UnsafeModuleError(f"{where}: attribute {node.attr} is not allowed")
    return tree


def load_module(source: str, title: str) -> types.ModuleType:
    """A live module of checked source. title: what tracebacks call it. Triton reads the source through linecache."""
    tree = check_source(source)
    digest = hashlib.sha256(source.encode()).hexdigest()[:16]
    filename = f"<nsa_dsl {title} {digest}>"
    linecache.cache[filename] = (len(source), None, source.splitlines(keepends=True), filename)
    module = types.ModuleType(f"nsa_dsl_generated_{digest}")
    module.__file__ = filename
    exec(compile(tree, filename, "exec"), module.__dict__)  # the source is our own templates' and has passed the list above
    return module
