"""Which names a statement of a notebook reads, makes and changes, without running it.

Of one top-level statement :func:`effects` says which names of the notebook it reads before it
makes them itself, which it binds, and which it may change in place. In doubt it says yes: a
statement that is run without need costs time, one that is left out would make a later cell wrong.

What counts as a change in place: assignment to an attribute, an item or by ``+=``; a method called
as a statement of its own (its object); a method that is known to change its object (``append``,
``run``, ``fill_``, ...) anywhere; ``next(x)``, ``setattr(x, ...)`` and ``generator=x``. The last
expression of a cell is shown, so that it changes something only by a method that is known to. A
function of the notebook changes what its body changes, of the notebook's names and its arguments.
"""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass, field

from course.catch_up.names import (
    LOOPS,
    bound_in,
    called,
    element_of,
    names_in,
    own_nodes,
    pairs_of,
    roots,
    with_aliases,
)

# Methods that change their object wherever they stand.
MUTATORS = frozenset(
    "append extend insert remove pop popitem clear update setdefault add discard sort reverse "
    "appendleft run step train advance restore load_state_dict to_panel write backward "
    "add_hook reset_hooks send close partial_fit manual_seed shuffle seed set set_option "
    "eval to load requires_grad".split()
)
# Calls that only show or check, even where they are a statement of their own.
SHOWING = frozenset("print display check hint solution assert_clean HTML Markdown".split())
_FIRST = frozenset({"next", "setattr", "delattr", "shuffle"})  # these change their first argument
# Calls that set something of a whole module; other calls leave what was imported as it is.
_SETTING = re.compile(r"set_\w+|manual_seed|seed|update|simplefilter|filterwarnings|use|add_\w+")
Call = tuple[str, list[set[str]], dict[str, set[str]], bool]


@dataclass
class Function:
    """What a function of the notebook does when it is called.

    Attributes:
        reads: the notebook's names that its body reads; changes, settings: as of :class:`Effects`.
        params: its positional parameters in order; spoils: those of its parameters it may change.
        calls: what it calls by a plain name, as :attr:`Effects.calls`.
    """

    reads: set[str] = field(default_factory=set)
    changes: set[str] = field(default_factory=set)
    settings: set[str] = field(default_factory=set)
    params: tuple[str, ...] = ()
    spoils: set[str] = field(default_factory=set)
    calls: list[Call] = field(default_factory=list)


@dataclass
class Effects:
    """What one statement does to the notebook's names.

    Attributes:
        reads: read before the statement binds them. Builtins are among them.
        binds: bound or deleted, perhaps; kills: those that are bound or deleted in any case.
        changes: changed in place, perhaps; settings: those that change although they are imported.
        later: the functions that it makes, by every name that may lead to them.
        calls: (function, positional arguments' names, keyword arguments' names, whether the call
            is a statement of its own) of functions called by a plain name.
        aliases: pairs of names that may stand for one object afterwards.
        lent: pairs (what the called method belongs to, an argument) of calls as statements of their
            own; a function of a module may change its arguments.
        imports: names that stand for modules, or for what was imported from one.
        rebound: names that stand for something new afterwards, if their loops ran.
    """

    reads: set[str] = field(default_factory=set)
    binds: set[str] = field(default_factory=set)
    kills: set[str] = field(default_factory=set)
    changes: set[str] = field(default_factory=set)
    settings: set[str] = field(default_factory=set)
    later: dict[str, list[Function]] = field(default_factory=dict)
    calls: list[Call] = field(default_factory=list)
    aliases: set[tuple[str, str]] = field(default_factory=set)
    lent: set[tuple[str, str]] = field(default_factory=set)
    imports: set[str] = field(default_factory=set)
    rebound: set[str] = field(default_factory=set)


def effects(statement: ast.stmt, *, shown: bool = False) -> Effects:
    """Of a top-level statement.

    Args:
        shown: it is the last of its cell, so that an expression is there to be shown.
    """
    scan = _Scan()
    scan.shown = statement if shown else None
    scan.statement(statement)
    found = scan.found
    found.rebound |= found.kills
    for name in found.binds:  # a lambda in a dict is called through the dict
        found.later.setdefault(name, []).extend(scan.lambdas)
    return found


def given(call: Call, function: Function) -> dict[str, set[str]]:
    """What a call hands to a function's parameters, as names."""
    _, args, keywords, _ = call
    return dict(zip(function.params, args, strict=False)) | keywords


class _Scan:
    """Walks a statement, or a function's body, in the order of evaluation."""

    def __init__(self, local: frozenset[str] = frozenset()) -> None:
        self.found = Effects()
        self.local = [local]  # names of the scopes around, which hide the notebook's
        self.lambdas: list[Function] = []
        self.shown: ast.stmt | None = None
        self.alone: ast.AST | None = None  # the call that is a statement

    # names

    def hidden(self, name: str) -> bool:
        return any(name in scope for scope in self.local)

    def read(self, name: str) -> None:
        if not self.hidden(name) and name not in self.found.kills:
            self.found.reads.add(name)

    def bind(self, name: str) -> None:
        if not self.hidden(name):
            self.found.binds.add(name)
            self.found.kills.add(name)

    def change(self, names: set[str], word: str = "") -> None:
        self.found.changes |= names  # hidden ones too: a function's parameters are sorted out later
        if not word or _SETTING.fullmatch(word):
            self.found.settings |= {name for name in names if not self.hidden(name)}

    # expressions

    def expression(self, node: ast.AST | None) -> None:
        if node is None:
            return
        if isinstance(node, ast.Name):
            self.read(node.id)
        elif isinstance(node, ast.Lambda):
            self.lambdas.append(self.function(node))
            self.found.reads |= self.lambdas[-1].reads - self.found.kills
        elif isinstance(node, LOOPS):
            self.comprehension(node)
        elif isinstance(node, ast.NamedExpr):
            self.expression(node.value)
            self.bind(node.target.id)
        else:
            for child in ast.iter_child_nodes(node):
                self.expression(child)
            if isinstance(node, ast.Call):
                self.call(node)

    def comprehension(self, node: ast.AST) -> None:
        generators = node.generators  # type: ignore[attr-defined]
        self.expression(generators[0].iter)
        targets = set().union(*(names_in(g.target) for g in generators))
        pairs = {p for g in generators for p in pairs_of(g.target, element_of(g.iter))}
        self.local.append(frozenset(targets))
        outside, self.found.changes = self.found.changes, set()
        n = len(self.found.calls)
        for i, g in enumerate(generators):
            for part in [*([g.iter] if i else []), *g.ifs]:
                self.expression(part)
        for name in ("key", "value", "elt"):
            self.expression(getattr(node, name, None))
        self.local.pop()

        def out(names: set[str]) -> set[str]:  # what the loop's own names stand for
            return with_aliases(names, pairs) - targets

        self.found.changes = outside | out(self.found.changes)
        self.found.calls[n:] = [
            (name, [*map(out, args)], {k: out(v) for k, v in keywords.items()}, lone)
            for name, args, keywords, lone in self.found.calls[n:]
        ]

    def call(self, node: ast.Call) -> None:
        word = called(node)
        if isinstance(node.func, ast.Attribute):
            in_place = word.endswith("_") and not word.startswith("_")
            if word in MUTATORS or in_place:
                self.change(roots(node.func.value), word)
        elif isinstance(node.func, ast.Name):
            keywords = {k.arg: roots(k.value) for k in node.keywords if k.arg}
            alone = node is self.alone
            self.found.calls.append((word, [*map(roots, node.args)], keywords, alone))
        if word in _FIRST and node.args:
            self.change(roots(node.args[0]), word)
        if word.startswith(("save", "write", "dump", "export", "to_")):
            for part in node.args:  # what lies at this path changes
                self.change(names_in(part), word)
        for keyword in node.keywords:
            if keyword.arg in ("generator", "rng"):
                self.change(roots(keyword.value), "generator")

    def function(self, node: ast.AST) -> Function:
        """A function or lambda: its body runs later, its defaults run now."""
        arguments: ast.arguments = node.args  # type: ignore[attr-defined]
        for default in [*arguments.defaults, *arguments.kw_defaults]:
            self.expression(default)
        positional = [a.arg for a in [*arguments.posonlyargs, *arguments.args]]
        every = {*positional, *(a.arg for a in arguments.kwonlyargs)}
        every |= {a.arg for a in (arguments.vararg, arguments.kwarg) if a}
        body = node.body if isinstance(node.body, list) else [ast.Expr(node.body)]  # type: ignore
        shared = {n for part in own_nodes(body) if isinstance(part, ast.Global) for n in part.names}
        inner = _Scan()
        inner.local = [*self.local, frozenset((every | bound_in(body)) - shared)]
        inner.shown = body[-1] if isinstance(node, ast.Lambda) else None
        inner.block(body)
        found = inner.found
        own = [f for functions in found.later.values() for f in functions] + inner.lambdas
        changes = with_aliases(found.changes, found.aliases)
        outside = {n for n in changes if not inner.hidden(n)}
        return Function(
            reads={n for f in own for n in f.reads} | found.reads,
            changes=outside | (found.binds & shared) | {n for f in own for n in f.changes},
            settings=found.settings | {n for f in own for n in f.settings},
            params=tuple(positional),
            spoils=changes & every,
            calls=found.calls + [c for f in own for c in f.calls],
        )

    # statements

    def statement(self, node: ast.stmt) -> None:
        kind = "try" if type(node).__name__ == "TryStar" else type(node).__name__.lower()
        handle = getattr(self, f"on_{kind.removeprefix('async')}", None)
        if handle:
            handle(node)
        else:  # return, raise, assert, pass, ...
            for child in ast.iter_child_nodes(node):
                self.expression(child)

    def block(self, body: list[ast.stmt]) -> None:
        for statement in body:
            self.statement(statement)

    def on_expr(self, node: ast.Expr) -> None:
        call = node.value
        lone = isinstance(call, ast.Call) and node is not self.shown
        self.alone = call if lone and called(call) not in SHOWING else None
        self.expression(call)
        lonely, self.alone = self.alone, None
        # A method called for its own sake changes something; why else is it there?
        if not isinstance(lonely, ast.Call) or not isinstance(lonely.func, ast.Attribute):
            return
        if ast.unparse(lonely.func) != "plt.show":
            self.change(roots(lonely.func.value), lonely.func.attr)
            parts = [*lonely.args, *(k.value for k in lonely.keywords)]
            lent = set().union(*map(roots, parts))
            self.found.lent |= {(name, one) for name in roots(lonely.func) for one in lent}

    def on_assign(self, node: ast.Assign) -> None:
        self.expression(node.value)
        for target in node.targets:
            self.target(target, node.value)
        if len(node.targets) > 1:  # a, b = c = ...: parts of one object
            names = [roots(target) for target in node.targets]
            self.found.aliases |= {
                (a, b) for one in names for other in names if one is not other for a in one for b in other - {a}
            }

    def on_annassign(self, node: ast.AnnAssign) -> None:
        self.expression(node.value)
        if node.value is not None or not isinstance(node.target, ast.Name):
            self.target(node.target, node.value)

    def on_augassign(self, node: ast.AugAssign) -> None:
        self.expression(node.value)
        for name in roots(node.target):
            self.read(name)
            self.change({name})
        self.target(node.target, None)

    def on_delete(self, node: ast.Delete) -> None:
        for target in node.targets:
            self.target(target, None)

    def on_import(self, node: ast.Import | ast.ImportFrom) -> None:
        for alias in node.names:
            name = alias.asname or alias.name.split(".")[0]
            self.bind(name)
            self.found.imports.add(name)

    on_importfrom = on_import

    def on_functiondef(self, node: ast.FunctionDef) -> None:
        for part in node.decorator_list:
            self.expression(part)
        function = self.function(node)
        self.bind(node.name)
        self.found.later.setdefault(node.name, []).append(function)

    def on_classdef(self, node: ast.ClassDef) -> None:
        for part in [*node.decorator_list, *node.bases, *(k.value for k in node.keywords)]:
            self.expression(part)
        inner = _Scan()
        inner.local = list(self.local)
        inner.found.kills = set(self.found.kills)
        inner.block(node.body)  # runs now; what it binds are attributes
        self.found.reads |= inner.found.reads
        self.change(inner.found.changes - inner.found.binds)
        functions = [f for some in inner.found.later.values() for f in some] + inner.lambdas
        self.bind(node.name)
        self.found.later.setdefault(node.name, []).extend(functions)

    def on_for(self, node: ast.For) -> None:
        self.expression(node.iter)
        before = set(self.found.kills)
        self.target(node.target, element_of(node.iter))
        self.found.rebound |= self.found.kills - before
        self.block(node.body)
        self.found.kills = set(before)  # it may not have run once
        self.block(node.orelse)
        self.found.kills = before

    def on_while(self, node: ast.While) -> None:
        self.expression(node.test)
        before = set(self.found.kills)
        for body in (node.body, node.orelse):
            self.block(body)
            self.found.kills = set(before)

    def on_if(self, node: ast.If) -> None:
        self.expression(node.test)
        before = set(self.found.kills)
        self.block(node.body)
        first, self.found.kills = self.found.kills, before
        self.block(node.orelse)
        self.found.kills &= first

    def on_with(self, node: ast.With) -> None:
        for item in node.items:
            self.expression(item.context_expr)
            if item.optional_vars is not None:
                self.target(item.optional_vars, item.context_expr)
        self.block(node.body)

    def on_try(self, node: ast.Try) -> None:
        before = set(self.found.kills)
        for part in [node.body, *node.handlers, node.orelse]:
            if isinstance(part, ast.ExceptHandler):
                self.expression(part.type)
                if part.name:
                    self.bind(part.name)
            self.block(part.body if isinstance(part, ast.ExceptHandler) else part)
            self.found.kills = set(before)
        self.block(node.finalbody)

    def on_match(self, node: ast.Match) -> None:
        self.expression(node.subject)
        before = set(self.found.kills)
        for case in node.cases:
            for part in ast.walk(case.pattern):
                self.expression(getattr(part, "cls", None))
                if isinstance(part, ast.MatchValue):
                    self.expression(part.value)
                if name := getattr(part, "name", None) or getattr(part, "rest", None):
                    self.bind(name)
            self.expression(case.guard)
            self.block(case.body)
            self.found.kills = set(before)

    def target(self, node: ast.AST, value: ast.AST | None) -> None:
        self.found.aliases |= pairs_of(node, value)
        if isinstance(node, ast.Name):
            self.bind(node.id)
        elif isinstance(node, ast.Tuple | ast.List):
            for element in node.elts:
                self.target(element, None)
        elif isinstance(node, ast.Starred):
            self.target(node.value, None)
        else:  # an attribute or an item: its object changes, and may now hold the value
            for child in ast.iter_child_nodes(node):
                self.expression(child)
            self.change(roots(node))
            self.found.aliases |= {(a, b) for a in roots(node) for b in roots(value) - {a}}
