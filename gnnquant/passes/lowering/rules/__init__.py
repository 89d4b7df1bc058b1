"""One rule per torch function, method or module: how it is written as a program.

A rule takes the program and the call's own arguments, in which everything that depends on the inputs is
one of ``lowering.values``; it writes nodes and returns a value. What has no place in a compiled model it
refuses, with ``raise program.refuse(why)``. Calls on constants alone never reach a rule.

Every file has tables: ``NAMES`` (functions of torch and operator, and methods of tensors, by their name
without underscores: ``add`` serves ``torch.add``, ``x + y``, ``x.add_(y)``), ``FUNCTIONS`` (other
functions, by themselves) and ``MODULES`` (by class; a rule takes the module before its arguments).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gnnquant.passes.lowering.rules import (
    creation,
    edges,
    elementwise,
    modules,
    parts,
    reductions,
    refused,
    shapes,
    sites,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

    Rule = Callable[..., Any]

NAMES: dict[str, Rule] = {
    **refused.NAMES,
    **elementwise.NAMES,
    **creation.NAMES,
    **shapes.NAMES,
    **parts.NAMES,
    **reductions.NAMES,
    **sites.NAMES,
    **modules.NAMES,
    **edges.NAMES,
}
FUNCTIONS: dict[Any, Rule] = {
    **refused.FUNCTIONS,
    **reductions.FUNCTIONS,
    **sites.FUNCTIONS,
    **edges.FUNCTIONS,
}
MODULES: dict[type, Rule] = {**refused.MODULES, **modules.MODULES, **sites.MODULES}
_TORCH = ("torch", "operator", "_operator", "builtins", "math")


def find_method_rule(name: str) -> Rule | None:
    """The rule for a method of tensors."""
    return NAMES.get(name.strip("_"))


def find_function_rule(function: Any) -> Rule | None:
    """The rule for a function."""
    rule = FUNCTIONS.get(function)
    if rule is not None:
        return rule
    home = str(getattr(function, "__module__", None) or "torch").partition(".")[0]
    return find_method_rule(getattr(function, "__name__", "")) if home in _TORCH else None


def find_module_rule(layer: nn.Module) -> Rule | None:
    """The rule for a module: its class's, or that of a class that it inherits its forward from."""
    for cls in type(layer).__mro__:
        if cls in MODULES:
            return MODULES[cls]
        if "forward" in vars(cls):
            return None
    return None
