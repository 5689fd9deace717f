"""Nobody has to read a body to know what can be given: public calls name all their arguments."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import kit

OPEN = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}
ALLOWED = {  # and why their arguments have no names that could be listed
    "course.exercises.check": "what else an exercise reads, the exercise names",
    "course.exercises.exercise.Exercise.cause": "the arguments are those of the learner's function",
    "course.exercises.exercise.Exercise.expect": "the arguments are those of the learner's function",
    "course.exercises.exercise.Exercise.expect_number": "the arguments are those of the learner's function",
    "course.exercises.exercise.Exercise.known": "the arguments are those of the learner's function",
    "course.exercises.patching.toy": "further keywords of a check, which the exercise names",
    "course.exercises.specs.call": "the arguments are those of the learner's function",
    "kit.base.checks.check_counts": "the names are those of the caller's arguments",
    "kit.base.checks.check_positive": "the names are those of the caller's arguments",
    "kit.base.shipped.path": "as many names as the path has parts",
    "kit.models.templates.apply": "options of the tokenizer's own method",
    "kit.models.unopened.Unopened.__call__": "the arguments are the bridge's",
    "kit.models.weights.from_hub_or_disk": "options of whichever loader it is given",
    "kit.sae.frozen_attention.Between.read": "as many further sites as one likes",
    "kit.sae.latents.Latents.check_latent": "as many latents as one likes",
    "kit.sae.tables.table": "the names are those of the columns",
    "kit.widgets.frame.Page": "traits of ipywidgets, handed on",
    "kit.widgets.frame.bar": "as many widgets as one likes",
    "kit.widgets.frame.head": "as many style sheets as one likes",
    "kit.widgets.frame.line": "traits of ipywidgets, handed on",
    "kit.widgets.frame.row": "as many widgets as one likes",
    "kit.widgets.frame.small": "traits of ipywidgets, handed on",
}


def modules() -> Iterator[ModuleType]:
    """The modules among kit's names, and those of its folders."""
    for name in kit.__all__:
        found = getattr(kit, name)
        if not inspect.ismodule(found):
            continue
        yield found
        for info in pkgutil.iter_modules(getattr(found, "__path__", [])):
            if not info.name.startswith("_"):
                yield importlib.import_module(f"{found.__name__}.{info.name}")


def calls() -> dict[str, Any]:
    """By full name: the functions and classes of kit, and the public methods that they define."""
    members = [getattr(kit, name) for name in kit.__all__]
    for module in modules():
        members += [
            value
            for name, value in vars(module).items()
            if not name.startswith("_") and getattr(value, "__module__", None) == module.__name__
        ]
    found = {}
    for one in members:
        if inspect.isclass(one):
            name = f"{one.__module__}.{one.__qualname__}"
            found[name] = one
            for method, value in vars(one).items():
                value = getattr(value, "__func__", value)  # of class and static methods
                if inspect.isfunction(value) and (not method.startswith("_") or method == "__call__"):
                    found[f"{name}.{method}"] = value
        elif inspect.isfunction(one):
            found[f"{one.__module__}.{one.__qualname__}"] = one
    return found


def hidden(call: Any) -> list[str]:
    """The arguments of a call that have no name: ``*args``, ``**options``."""
    exception = inspect.isclass(call) and issubclass(call, BaseException) and "__init__" not in vars(call)
    if exception or getattr(call, "_is_protocol", False):  # its class is Python's, or nobody calls it
        return []
    parameters = inspect.signature(call).parameters.values()
    return [OPEN[p.kind] + p.name for p in parameters if p.kind in OPEN]


def test_public_calls_name_all_their_arguments() -> None:
    found = {name: hidden(call) for name, call in calls().items() if name not in ALLOWED}
    assert {name: given for name, given in found.items() if given} == {}


def test_what_is_allowed_is_still_there_and_still_open() -> None:
    every = calls()
    assert {name for name in ALLOWED if name not in every or not hidden(every[name])} == set()


def test_a_hidden_argument_is_found() -> None:
    class Shape:
        def __init__(self, *sides: float) -> None: ...

    assert hidden(Shape) == ["*sides"]
    assert hidden(lambda model, **options: None) == ["**options"]
    assert hidden(lambda model, *, read=None: None) == []


def test_the_walk_reaches_functions_methods_and_folders() -> None:
    every = calls()
    for name in ("kit.search.dct.fit", "kit.search.features.Features.vectors", "kit.base.shards.work"):
        assert name in every
