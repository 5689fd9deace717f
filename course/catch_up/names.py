"""What names an expression hands on, and which a function's body binds."""

from __future__ import annotations

import ast
from collections.abc import Iterator

LOOPS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
# Calls that hand on what they are given: a change of the result is one of the argument.
_HANDING = frozenset("iter enumerate zip reversed sorted list tuple dict values items".split())


def with_aliases(names: set[str], pairs: set[tuple[str, str]]) -> set[str]:
    """The names, and those that they may stand for by pairs (name, what it stands for)."""
    names = set(names)
    while more := {b for a, b in pairs if a in names} - names:
        names |= more
    return names


class _Each(ast.AST):
    """Something taken out of what ``value`` holds."""

    def __init__(self, value: ast.AST) -> None:
        super().__init__()
        self.value = value


def roots(node: ast.AST | None) -> set[str]:
    """Names whose object, or a part of it, an expression may hand on."""
    if isinstance(node, ast.Name):
        return {node.id}
    if isinstance(node, ast.Attribute | ast.Subscript | ast.Starred | ast.NamedExpr | _Each):
        return roots(node.value)
    if isinstance(node, ast.List | ast.Tuple | ast.Set):
        return set().union(*map(roots, node.elts))
    if isinstance(node, ast.Dict | ast.BoolOp):
        return set().union(*map(roots, node.values))
    if isinstance(node, ast.IfExp):
        return roots(node.body) | roots(node.orelse)
    if isinstance(node, ast.Call) and called(node) in _HANDING:
        own = node.func.value if isinstance(node.func, ast.Attribute) else None
        return roots(own).union(*map(roots, node.args))
    return set()


def element_of(node: ast.AST) -> ast.AST:
    """What a loop over an expression binds its target to, as far as names go."""
    if isinstance(node, ast.Call) and not any(isinstance(a, ast.Starred) for a in node.args):
        word = called(node)
        if word == "zip":
            return ast.Tuple([*map(element_of, node.args)], ast.Load())
        if word == "enumerate" and node.args:
            return ast.Tuple([ast.Constant(0), element_of(node.args[0])], ast.Load())
        if word == "items" and isinstance(node.func, ast.Attribute):
            return ast.Tuple([ast.Constant(0), element_of(node.func.value)], ast.Load())
    return _Each(node)


def pairs_of(target: ast.AST, value: ast.AST | None) -> set[tuple[str, str]]:
    """(name, what it may stand for) after a target was bound to a value."""
    if isinstance(target, ast.Name):
        return {(target.id, root) for root in roots(value) - {target.id}}
    if isinstance(target, ast.Starred):
        return pairs_of(target.value, value)
    if not isinstance(target, ast.Tuple | ast.List):
        return set()
    parts = value.elts if isinstance(value, ast.Tuple | ast.List) else []
    same = len(parts) == len(target.elts) and not any(isinstance(p, ast.Starred) for p in [*parts, *target.elts])
    return {p for i, one in enumerate(target.elts) for p in pairs_of(one, parts[i] if same else value)}


def called(call: ast.Call) -> str:
    """The last word of what is called."""
    if isinstance(call.func, ast.Attribute):
        return call.func.attr
    return call.func.id if isinstance(call.func, ast.Name) else ""


def names_in(node: ast.AST) -> set[str]:
    """Every name that stands in a piece of code, whatever is done with it."""
    return {part.id for part in ast.walk(node) if isinstance(part, ast.Name)}


def own_nodes(body: list[ast.stmt]) -> Iterator[ast.AST]:
    """The nodes of a function's body that belong to its own scope."""
    stack: list[ast.AST] = list(body)
    while stack:
        node = stack.pop()
        yield node
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda | ast.ClassDef):
            # A comprehension's targets are its own, but for those of a walrus.
            stack += [n for n in ast.iter_child_nodes(node) if not isinstance(node, LOOPS)] or [
                n for n in ast.walk(node) if isinstance(n, ast.NamedExpr) and isinstance(node, LOOPS)
            ]


def bound_in(body: list[ast.stmt]) -> set[str]:
    """Names that are local to a function because its body binds them."""
    found: set[str] = set()
    for node in own_nodes(body):
        if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
            found.add(node.id)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            found |= {a.asname or a.name.split(".")[0] for a in node.names}
        elif isinstance(node, ast.ExceptHandler | ast.MatchAs | ast.MatchStar) and node.name:
            found.add(node.name)
    return found
