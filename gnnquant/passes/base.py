"""What a pass is, and the pipeline that runs passes and checks the graph after every one."""

from __future__ import annotations

import operator
import os
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from gnnquant.errors import GnnQuantError, PassError

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import fx


@dataclass(frozen=True)
class PassResult:
    """What a pass did.

    Attributes:
        changed: How many places it rewrote.
        notes: One line for every place where its rule did not fire, with the reason.
    """

    changed: int
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Pass(ABC):
    """A rewrite of a graph module, in place.

    Options are fields of the (frozen) dataclass. ``requires`` and ``provides`` are names of
    properties in :data:`PROPERTIES`.
    """

    name: ClassVar[str]
    requires: ClassVar[frozenset[str]] = frozenset()
    provides: ClassVar[frozenset[str]] = frozenset()

    @abstractmethod
    def run(self, module: fx.GraphModule) -> PassResult:
        """Rewrite ``module`` in place."""


def _every_quantizer_is_used_once(module: fx.GraphModule) -> str:
    from gnnquant.quantizers.modules import Quantizer

    calls: dict[str, int] = {}
    for node in module.graph.nodes:
        if node.op == "call_module":
            calls[str(node.target)] = calls.get(str(node.target), 0) + 1
    for name, child in module.named_modules():
        if isinstance(child, Quantizer) and calls.get(name, 0) != 1:
            return f"quantizer {name!r} is called {calls.get(name, 0)} times, not once"
    return ""


def _no_linear_modules(module: fx.GraphModule) -> str:
    from torch import nn

    for node in module.graph.nodes:
        if node.op == "call_module" and isinstance(module.get_submodule(str(node.target)), nn.Linear):
            return f"{node.name!r} still calls the linear module {node.target!r}"
    return ""


PROPERTIES: dict[str, Callable[[fx.GraphModule], str]] = {
    "linears-explicit": _no_linear_modules,
    "sites-quantized-once": _every_quantizer_is_used_once,
}
"""Property of a graph -> check that returns what breaks it, or an empty string."""


@dataclass(frozen=True)
class Pipeline:
    """Passes in order; the graph is verified after each.

    Attributes:
        passes: What to run.
        check: Called with the module after every pass; returns what is wrong, or ``""``.
    """

    passes: tuple[Pass, ...]
    check: Callable[[fx.GraphModule], str] | None = None

    def run(self, module: fx.GraphModule, upto: int | None = None) -> list[PassResult]:
        """Run the passes on ``module`` in place.

        Args:
            module: The graph to rewrite.
            upto: Run only this many passes.

        Returns:
            One result for each pass that ran.

        Raises:
            PassError: Naming the pass, the rule that it broke and what to do.
        """
        held: frozenset[str] = frozenset()
        results = []
        total = len(self.passes)
        for index, step in enumerate(self.passes[:upto], start=1):
            where = f"pass {index}/{total} {step.name!r}"
            missing = step.requires - held
            if missing:
                raise PassError(f"{where} needs {sorted(missing)}: run the passes that provide it first")
            results.append(step.run(module))
            held |= step.provides
            self._verify(module, where, held)
            _dump(module, index, step.name)
        return results

    def _verify(self, module: fx.GraphModule, where: str, held: frozenset[str]) -> None:
        try:
            module.graph.lint()
        except GnnQuantError:
            raise
        except Exception as error:
            raise PassError(f"{where} left an invalid graph: {error}") from error
        module.recompile()
        for name in sorted(held):
            wrong = PROPERTIES[name](module)
            if wrong:
                raise PassError(f"{where} broke {name!r}: {wrong}")
        if self.check is not None:
            wrong = self.check(module)
            if wrong:
                raise PassError(f"{where} changed the model: {wrong}")

    def bisect(self, make: Callable[[], fx.GraphModule], ok: Callable[[fx.GraphModule], bool]) -> str:
        """Name of the first pass after which ``ok`` is false; ``""`` if it never is.

        Args:
            make: Creates a fresh module.
            ok: The test.
        """
        for count, step in enumerate(self.passes, start=1):
            module = make()
            self.run(module, upto=count)
            if not ok(module):
                return step.name
        return ""


def remove_dead_nodes(module: fx.GraphModule) -> None:
    """Erase nodes without users, except those that work in place: their users read what they wrote.

    ``fx.Graph.eliminate_dead_code`` does not know which methods and modules work in place.
    """
    for node in reversed(list(module.graph.nodes)):
        if not node.users and node.op not in ("placeholder", "output") and not works_in_place(module, node):
            module.graph.erase_node(node)


def works_in_place(module: fx.GraphModule, node: fx.Node) -> bool:
    """Whether ``node`` changes an operand."""
    if node.op == "call_module":
        return bool(getattr(module.get_submodule(str(node.target)), "inplace", False))
    if node.target in _INPLACE_OPERATORS:
        return True
    name = str(getattr(node.target, "__name__", node.target))
    is_operator = getattr(node.target, "__module__", "") == "_operator"  # and_ and or_ are no such names
    changes_operand = name.endswith("_") and not name.endswith("__") and not is_operator
    given_place = node.kwargs.get("inplace") or node.kwargs.get("out") is not None
    return changes_operand or bool(given_place)


_INPLACE_OPERATORS = frozenset(
    getattr(operator, f"i{name}")
    for name in (
        *("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul"),
        *("and", "or", "xor", "lshift", "rshift", "concat"),
    )
) | {operator.setitem}


def _dump(module: fx.GraphModule, index: int, name: str) -> None:
    """Write the graph to ``$GNNQUANT_DUMP/03-name.txt`` where that variable is set."""
    folder = os.environ.get("GNNQUANT_DUMP")
    if folder:
        path = Path(folder)
        path.mkdir(parents=True, exist_ok=True)
        (path / f"{index:02d}-{name}.txt").write_text(str(module.graph) + "\n")
