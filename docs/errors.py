"""Writes the second half of ``docs/errors.md``: every error text of the kit, from its source.

``python docs/errors.py`` replaces what stands below `MARK` and leaves the rest, which people
write. A text belongs to the public names that lead to it; its values show as names in <brackets>.
"""

from __future__ import annotations

import ast
import os
import re
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = Path(__file__).with_suffix(".md")
MARK = "<!-- From here on this page is written by docs/errors.py; edit the messages in the code. -->"
# Ways out that carry no message for anybody; `Wrong` is a checker's result, which `check` shows.
SILENT = ("Enough", "NotImplementedError", "SystemExit", "Wrong", "wrong", "StopIteration")
# Calls that show what they are given.
TRANSPARENT = ("list", "sorted", "repr", "str", "float", "int", "tuple", "set", "map", "abs", "_plain")
SIGNS = {ast.Add: "+", ast.Sub: "-", ast.Mult: "times", ast.Div: "/"}
SHOWN = 3  # public names for one message

Function = ast.FunctionDef | ast.AsyncFunctionDef
REST = "Set-up, notebooks and exercises"
# What the modules of a group have in common: why their errors come, and what to do.
GROUPS = {
    "Models, weights and adapters": (
        ("kit.base", "kit.models", "kit.data"),
        "A model that is not there or not whole, or one that lacks what is asked of it. "
        "`kit doctor` looks at the embedded one, `kit fetch` makes it again.",
    ),
    "Vectors, steering and generation": (
        ("kit.steering",),
        "An argument of another shape, layer, range or model than this call can use. Nothing was "
        "generated and no hook stays; mend the argument and call again.",
    ),
    "Searches for directions": (
        ("kit.search", "course.studies"),
        "A setting out of its range, or a model and prompts on which the method has nothing to "
        "find. Runs that were stopped keep what was whole.",
    ),
    "Dictionaries": (
        ("kit.sae",),
        "A dictionary, its model and its text have to belong together: same width, same weights, "
        "same tokens. Where they do, the text says which number is out of range.",
    ),
    "Figures": (("kit.plots",), "Arrays that do not fit each other."),
    "Views in notebooks": (
        ("kit.widgets",),
        "Most of these show as a line in the view itself: what to switch, fill in or stop first.",
    ),
    "Workshops": (
        ("course.room", "course.site"),
        "What the host or a file of the room lacks. Nothing that a learner did is lost.",
    ),
    REST: (
        (),
        "What the machine, a command line or a file of the course lacks; `kit doctor` names "
        "the command that mends most of it.",
    ),
}


@dataclass(frozen=True)
class Message:
    """One error text. ``names``: the public names that lead to it, relative to the module;
    ``known``: their arguments; ``valued``: whether the text holds a value of the run."""

    module: str
    error: str
    text: str
    names: tuple[str, ...]
    known: frozenset[str]
    valued: bool


def readable(node: ast.expr) -> str:
    """A short name for the value of an expression."""
    match node:
        case ast.Name(id=name):
            return name.strip("_").lower() if name.isupper() else name.lstrip("_")
        case ast.Attribute(value=inner, attr="__name__"):
            return readable(inner)
        case ast.Attribute(value=inner, attr="shape" | "dtype" | "name" as attr):
            return f"{attr} of {readable(inner)}" if readable(inner) != "self" else attr
        case ast.Attribute(attr=attr):
            return attr.lstrip("_")
        case ast.Call(func=ast.Name(id="len"), args=[inner, *_]):
            return f"number of {readable(inner)}"
        case ast.Call(func=ast.Name(id=name), args=[*_, inner]) if name in TRANSPARENT:
            return readable(inner)
        case ast.Call(func=ast.Attribute(attr="join"), args=[inner]):
            return readable(inner)
        case ast.Call(func=ast.Attribute(value=inner, attr="numel")):
            return f"size of {readable(inner)}"
        case ast.Call(func=ast.Attribute(attr="get"), args=[ast.Constant(value=str(key)), *_]):
            return key
        case ast.Call(func=ast.Attribute(value=inner), args=[]):
            return readable(inner)
        case ast.Call(func=function, args=[]):
            return readable(function)
        case ast.Call(func=function, args=[inner, *_]):
            return f"{readable(function)} of {readable(inner)}"
        case ast.Subscript(value=inner) | ast.Starred(value=inner) | ast.Await(value=inner):
            return readable(inner)
        case ast.ListComp(generators=[loop, *_]) | ast.GeneratorExp(generators=[loop, *_]):
            return readable(loop.iter)
        case ast.NamedExpr(target=name):
            return name.id
        case ast.IfExp(body=one, orelse=other):
            return " or ".join(filter(None, (readable(one), readable(other))))
        case ast.BoolOp(values=[one, *_]):
            return readable(one)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in SIGNS:
            return f"{readable(left)} {SIGNS[type(op)]} {readable(right)}"
        case ast.Constant(value=value):
            return str(value).strip()
        case ast.JoinedStr():
            return literal(node) or ""
    return ast.unparse(node)


def literal(node: ast.expr) -> str | None:
    """The text of a string expression with its values as names; None for any other expression."""
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.JoinedStr(values=parts):
            return "".join(
                f"<{readable(p.value)}>" if isinstance(p, ast.FormattedValue) else str(p.value) for p in parts
            )
        case ast.BinOp(op=ast.Add(), left=left, right=right):
            pair = literal(left), literal(right)
            return None if None in pair else "".join(map(str, pair))
        case ast.IfExp(body=one, orelse=other):
            pair = literal(one), literal(other)
            return None if None in pair else "".join(f"<{p.strip()}>" for p in map(str, pair) if p)
    return None


class Module:
    """Functions, classes and raises of one file."""

    def __init__(self, name: str, tree: ast.Module) -> None:
        self.name = name
        self.functions: dict[str, Function] = {}  # by qualified name; inner ones count as outer
        self.owner: dict[ast.AST, str] = {}
        self._enter(tree, "", False)
        self.users: dict[str, list[str]] = defaultdict(list)  # functions that mention a name
        for node, where in self.owner.items():
            if where and isinstance(node, ast.Name | ast.Attribute):
                self.users[node.id if isinstance(node, ast.Name) else node.attr].append(where)
        self.ways = {name: self.public(name) for name in ["", *self.functions]}

    def _enter(self, node: ast.AST, where: str, inside: bool) -> None:
        for child in ast.iter_child_nodes(node):
            self.owner[child] = where
            if isinstance(child, ast.ClassDef | Function) and not inside:
                name = f"{where}.{child.name}".lstrip(".")
                if isinstance(child, Function):
                    self.functions[name] = child
                self._enter(child, name, isinstance(child, Function))
            else:
                self._enter(child, where, inside)

    def public(self, name: str, seen: frozenset[str] = frozenset()) -> list[str]:
        """The public names through which one comes to a function of this module."""
        parts = [p for p in name.split(".") if not re.fullmatch(r"__\w+__", p)]
        if not any(p.startswith("_") for p in parts):
            return [".".join(parts)] if parts and parts[0] else []
        wanted = next(p for p in reversed(parts) if p.startswith("_"))
        found = []
        for where in dict.fromkeys(self.users[wanted]):
            if where not in seen | {name}:
                found += self.public(where, seen | {name})
        return list(dict.fromkeys(found))

    def messages(self) -> Iterator[Message]:
        """The error texts of the file, in its order."""
        for node, where in self.owner.items():
            texts: list[tuple[str, bool]] = []
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
                error = readable(node.exc.func)
                texts = [] if error in SILENT else self._texts(node.exc)
            elif isinstance(node, ast.Assert) and node.msg is not None:
                error, texts = "AssertionError", self._literals([node.msg])
            if texts:
                names = self.public(where)
                known = {
                    a.arg
                    for name, f in self.functions.items()
                    if name == where or self.ways[name] and self.ways[name][0] in names
                    for a in ast.walk(f.args)
                    if isinstance(a, ast.arg)
                }
                for text, valued in texts:
                    yield Message(
                        self.name,
                        error,
                        " ".join(text.split()),
                        tuple(names),
                        frozenset(known - {"self", "cls"}),
                        valued,
                    )

    def _texts(self, call: ast.Call) -> list[tuple[str, bool]]:
        """The literal texts of a raised call: its own, those that a function of this module
        returns, or the one that the error's class makes."""
        match call:
            case ast.Call(args=[ast.Call(func=ast.Name(id=name)), *_]) if name in self.functions:
                body = ast.walk(self.functions[name])
                nodes = [n.value for n in body if isinstance(n, ast.Return) and n.value]
            case ast.Call(func=ast.Name(id=name)) if f"{name}.__init__" in self.functions:
                body = ast.walk(self.functions[f"{name}.__init__"])
                nodes = [
                    n.args[0]
                    for n in body
                    if isinstance(n, ast.Call) and n.args and ast.unparse(n.func) == "super().__init__"
                ]
            case _:
                nodes = call.args[:1]
        return self._literals(nodes)

    @staticmethod
    def _literals(nodes: Sequence[ast.expr]) -> list[tuple[str, bool]]:
        texts = [(literal(n), any(isinstance(x, ast.FormattedValue) for x in ast.walk(n))) for n in nodes]
        return [(text, valued) for text, valued in texts if text is not None]


def messages(root: Path = ROOT) -> list[Message]:
    """Every error text of the kit and the course, in the order of their files."""
    found = []
    for file in sorted([*(root / "kit").rglob("*.py"), *(root / "course").rglob("*.py")]):
        name = ".".join(file.relative_to(root).with_suffix("").parts).removesuffix(".__init__")
        tree = ast.parse(file.read_text(encoding="utf-8"))
        found += Module(name, tree).messages()
    return list(dict.fromkeys(found))


def group(module: str) -> str:
    """The heading that a module's messages stand under."""
    folder = ".".join(module.split(".")[:2])
    return next((title for title, (names, _) in GROUPS.items() if folder in names), REST)


def generated(found: list[Message]) -> str:
    """The part of the page below the mark."""
    lines = [MARK, "", f"## Every message ({len(found)})", ""]
    for title, (_, why) in GROUPS.items():
        modules: dict[str, list[Message]] = defaultdict(list)
        for message in found:
            if group(message.module) == title:
                modules[message.module].append(message)
        if modules:
            lines += [f"### {title}", "", why, ""]
        for module in sorted(modules):
            lines += [f"**{module}**", ""]
            for m in modules[module]:
                names = [f"`{name}`" for name in m.names[:SHOWN]]
                more = [f"{len(m.names) - SHOWN} more"] * (len(m.names) > SHOWN)
                where = f", from {', '.join(names + more)}" if names else ""
                text = m.text.replace("`", "'")
                lines += [f"- `{text}`  ", f"  {m.error}{where}"]
            lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def main() -> int:
    """Replace the generated part of the page."""
    old = PAGE.read_text(encoding="utf-8")
    if MARK not in old:
        raise SystemExit(f"{PAGE} has no line that says where the written part ends: {MARK}")
    found = messages()
    partial = PAGE.with_name(f".{PAGE.name}.{os.getpid()}")
    partial.write_text(old.partition(MARK)[0] + generated(found), encoding="utf-8")
    os.replace(partial, PAGE)
    sys.stdout.write(f"{PAGE}: {len(found)} messages\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
