"""Names that a person can read: of nodes, of dimensions, of outputs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gnnquant.integer_graph import ONE
from gnnquant.runtime.indexing import SIZE, IndexProgram, tied_inputs
from gnnquant.runtime.trees import tree_key

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gnnquant.integer_graph import IntegerGraph, Node

Source = tuple[str, int]


def scopes_of(graph: IntegerGraph) -> dict[str, str]:
    """The path of each node of the row program: its module in the user's model, then its own name.

    ``conv1.lin`` from ``conv1:linear`` is ``conv1/lin``, ``conv1`` from ``conv1:propagate`` is
    ``conv1/propagate``, ``add`` from ``conv1:add`` is ``conv1/add``. The bias of a linear layer stays with
    its product.
    """
    products: dict[str, list[str]] = {}
    for node in graph.nodes:
        if node.op in ("gemm", "float_gemm"):
            products.setdefault(node.source, []).append(_scope(node))
    scopes = {}
    for node in graph.nodes:
        product = products.get(node.source, [])
        scopes[node.name] = product[0] if len(product) == 1 else _scope(node)
    return scopes


def _scope(node: Node) -> str:
    module, _, what = node.source.rpartition(":")
    if not module:
        return node.name.replace(".", "/")
    if node.name == module:
        return f"{module.replace('.', '/')}/{what}"
    own = node.name.removeprefix(f"{module}.")
    return f"{module.replace('.', '/')}/{own.replace('.', '/')}"


class Labels:
    """Names of dimensions: one name for all sizes that every call makes equal.

    ``nodes`` and ``edges`` where the model has one kind of each, else ``<input>_rows`` and
    ``<input>_edges``.

    Args:
        graph: The integer graph.
    """

    def __init__(self, graph: IntegerGraph) -> None:
        self._program = IndexProgram(graph.index, graph.inputs)
        self._graph = graph
        self._leader = tied_inputs(self._program)
        self._names = dict(self._choose())

    def of_input(self, name: str, axis: int = 0) -> str:
        """The label of the rows of an input (-1: of the entries of an adjacency)."""
        source = (name, axis)
        return self._names[self._leader.get(source, source)]

    def of(self, space: str) -> int | str:
        """The label of the rows of a space; 1 for ``ONE``."""
        if space == ONE:
            return 1
        if self._program.kinds[space] == SIZE:
            return self._name_of(self._program.size_source(space)) or space
        node = self._graph.index_node(space)
        kept = node.attrs["loops"] == "keep"
        source = self._program.length_source(node.inputs[0]) if kept else None
        return self._name_of(source) or f"{space}_edges"

    def _name_of(self, source: Source | None) -> str:
        """The label of a size of an input; nothing where it is none."""
        return "" if source is None else self._names.get(self._leader.get(source, source), "")

    def _sources(self) -> Iterator[tuple[Source, str]]:
        """Sizes of inputs, and whether they count edges, rows or nothing."""
        for item in self._graph.inputs:
            if item.kind == "adjacency":
                yield (item.name, -1), "edges"
                yield (item.name, 0), "rows"
                yield (item.name, 1), "rows"
            else:
                yield (item.name, 0), {"edges": "edges", "size": "number"}.get(item.kind, "rows")

    def _choose(self) -> Iterator[tuple[Source, str]]:
        groups: dict[Source, list[tuple[Source, str]]] = {}
        for source, kind in self._sources():
            groups.setdefault(self._leader.get(source, source), []).append((source, kind))
        kinds: dict[Source, str] = {}
        for leader, members in groups.items():
            found = {kind for _, kind in members}
            kinds[leader] = "edges" if "edges" in found else "rows" if "rows" in found else "number"
        for leader, kind in kinds.items():
            alone = list(kinds.values()).count(kind) == 1
            name = f"{leader[0]}_{kind}" if kind != "number" else leader[0]
            if leader[1] == 1:
                name = f"{leader[0]}_columns"
            plural = {"rows": "nodes", "edges": "edges"}.get(kind, name)
            yield leader, plural if alone else name


def output_names(graph: IntegerGraph) -> list[str]:
    """A name for every output, by its place in the result: ``output``, ``output[0]``, ``output[key]``."""
    found = dict(_places(graph.result, "output")) if graph.result is not None else {}
    taken = {item.name for item in graph.inputs}
    names = []
    for position in range(len(graph.outputs)):
        name = found.get(position, "output" if len(graph.outputs) == 1 else f"output[{position}]")
        while name in taken:
            name = f"{name}_"
        taken.add(name)
        names.append(name)
    return names


def _places(tree: Any, path: str) -> Iterator[tuple[int, str]]:
    if "output" in tree:
        yield tree["output"], path
        return
    ((kind, content),) = tree.items()
    if kind in ("tuple", "list"):
        for position, item in enumerate(content):
            yield from _places(item, f"{path}[{position}]")
    elif kind in ("dict", "data"):
        for written, item in content:
            key = tree_key(written)
            shown = ",".join(map(str, key)) if isinstance(key, tuple) else str(key)
            yield from _places(item, f"{path}[{shown}]")
