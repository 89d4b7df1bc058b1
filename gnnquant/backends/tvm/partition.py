"""Which kernel computes which node.

Nodes of one *family* (a kind of kernel over the rows of one space) that read no other rows are
computed together. What reads rows of another space, or other rows of its own, must wait until they are
finished: it is computed by a later kernel. Kernels run in the order of their *levels*, and within one
level in the order of their kinds.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, NamedTuple

from gnnquant.errors import BackendError
from gnnquant.integer_graph import ELEMENTWISE, IndexNode, origin

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gnnquant.integer_graph import IntegerGraph, Node

VIRTUAL = frozenset({"input", "constant", "from_index", "lookup", "reshape", "gather"})
"""Operations that no kernel computes: whoever reads them reads what they stand for."""
FEATURES, EDGE_ROWS, EDGE_VALUES, ROWS, TOTALS = range(-1, 4)
"""Kinds of kernels: blocks of an input's rows, of edges, values of one edge after the other, blocks of rows,
sums over all."""
BEHIND, AFTER = 8, 64
"""Zeros behind the weights of a destination's edges, and behind all, where these are kept as bytes."""
NARROW = 16
"""Most columns of an elementwise value that is computed edge after edge beside a softmax."""


class Family(NamedTuple):
    """Nodes that one kernel may compute together; families of one level run in this order.

    Attributes:
        kind: ``FEATURES``, ``EDGE_ROWS``, ``EDGE_VALUES``, ``ROWS`` or ``TOTALS``.
        moving: Whether an input's values reach them; the others follow from the index program alone.
        rows: Their space.
    """

    kind: int
    moving: bool
    rows: str


@dataclass
class Stage:
    """One kernel: the nodes that it computes, in order, and what others need of them.

    ``inlined`` are stages of edges whose only export one of its aggregations reads: they are computed row
    by row where it is.
    """

    level: int
    family: Family
    nodes: list[Node] = field(default_factory=list)
    exports: list[str] = field(default_factory=list)
    inlined: list[Stage] = field(default_factory=list)


def stages(graph: IntegerGraph, *, features: bool = False) -> list[Stage]:
    """Kernels in execution order; with ``features`` the input is quantized by kernels of its own.

    What leaves a kernel is exported: values that others read, and outputs that a kernel of another
    kind has to copy (see :func:`written_in_place`).
    """
    partition = _Partition(graph, quantized_features(graph) if features else frozenset())
    partition.sink()
    found: dict[tuple[int, Family], Stage] = {}
    for node in partition.computed:
        key = partition.level[node.name], partition.family[node.name]
        found.setdefault(key, Stage(*key)).nodes.append(node)
    home = {node.name: stage for stage in found.values() for node in stage.nodes}
    for node in partition.computed:
        for source, elsewhere in partition.reads[node.name]:
            stage = home[source.name]
            crosses = elsewhere or stage is not home[node.name]
            if crosses and source.name not in stage.exports:
                stage.exports.append(source.name)
    for name in graph.outputs:
        origin = resolve(graph, name)
        source_name = gathered(graph, origin)
        stage_ = home.get(source_name)
        if stage_ is None or source_name in stage_.exports:
            continue
        if source_name != origin or not written_in_place(stage_, origin):
            stage_.exports.append(source_name)
    inlined = [stage for stage in found.values() if _inline(partition, stage, home)]
    return [found[key] for key in sorted(found) if found[key] not in inlined]


def _inline(partition: _Partition, stage: Stage, home: dict[str, Stage]) -> bool:
    """Whether the stage was put into the one that alone reads it, as the edge weight of an aggregation."""
    of_graphs = not stage.family.moving or any(node.op == "gcn_norm" for node in stage.nodes)
    if stage.family.kind != EDGE_VALUES or of_graphs or len(stage.exports) != 1:
        return False
    graph, (export,) = partition.graph, stage.exports
    readers = [
        node
        for node in partition.computed
        if home[node.name] is not stage and any(read.name == export for read, _ in partition.reads[node.name])
    ]
    if len(readers) != 1 or any(gathered(graph, name) == export for name in graph.outputs):
        return False
    (reader,) = readers
    weights = [resolve(graph, name) for name in reader.inputs[1:]]
    if not reader.op.endswith("spmm") or weights != [export] or reader.attrs["graph"] != stage.family.rows:
        return False
    home[reader.name].inlined.append(stage)
    return True


def written_in_place(stage: Stage, name: str) -> bool:
    """Whether a kernel writes an output itself: it runs in every call, and has the output's rows."""
    if stage.family.kind not in (ROWS, EDGE_ROWS) or not stage.family.moving:
        return False
    return all(node.name != name or node.op != "segment_reduce" for node in stage.nodes)


def resolve(graph: IntegerGraph, name: str) -> str:
    """``name`` without reshapes: the node that has its columns."""
    return origin(graph, name, "reshape").name


def is_slice(node: Node) -> bool:
    """Whether there are ``columns``, and they lie side by side."""
    index = list(node.attrs["index"])
    return index != [] and index == list(range(index[0], index[0] + len(index)))


def gathered(graph: IntegerGraph, name: str) -> str:
    """``name`` without reshapes and gathers: the node whose rows it selects."""
    return origin(graph, name, "reshape", "gather").name


def weighed_rows(graph: IntegerGraph) -> dict[str, list[str]]:
    """By which numbers of a row, one for each list entry, sums multiply the scales of a quantized value.

    They are multiplied once, for all edges of a source.
    """
    found: dict[str, list[str]] = {}
    for node in graph.nodes:
        if node.op != "spmm" or node.attrs.get("per") != "source":
            continue
        quantizer, weight = (graph[resolve(graph, name)] for name in node.inputs)
        by_row = quantizer.op == "quantize" and quantizer.attrs["granularity"] == "row"
        if by_row and weight.rows == quantizer.rows:
            found.setdefault(quantizer.name, []).append(weight.name)
    return {name: list(dict.fromkeys(weights)) for name, weights in found.items()}


def weighed_beside(graph: IntegerGraph, features: frozenset[str] = frozenset()) -> dict[str, list[str]]:
    """Those of :func:`weighed_rows` that are known where the value is quantized.

    The numbers come first, and the value is no prepared feature, which knows no graph.
    """
    position = {node.name: index for index, node in enumerate(graph.nodes)}
    return {
        name: [weight for weight in weights if position[weight] < position[name]]
        for name, weights in weighed_rows(graph).items()
        if name not in features
    }


NOT_NEGATIVE = frozenset({"segment_softmax", "relu", "exp", "sigmoid", "abs", "sqrt"})
"""Operations whose results are not negative, whatever their operands are."""


def never_negative(graph: IntegerGraph, name: str) -> bool:
    """Whether it follows from the operations behind it that no number of ``name`` is below zero.

    Where one is NaN, or infinite, nothing is said of it.
    """
    node = graph[resolve(graph, name)]
    if node.op in NOT_NEGATIVE:
        return True
    if node.op == "constant":
        return bool((graph.constants[node.attrs["array"]] >= 0).all())
    if node.op == "from_index":
        # the index may also be a part of a graph, which is no node
        return any(item.name == node.attrs["index"] and item.op == "count" for item in graph.index)
    if node.op not in ("gcn_norm", "mul", "rdiv", "where"):
        return False
    factors = node.inputs[1:] if node.op == "where" else node.inputs
    given = [node.attrs[key] for key in ("fill", "scalar") if key in node.attrs]
    return all(value >= 0 for value in given) and all(never_negative(graph, factor) for factor in factors)


def moving(graph: IntegerGraph) -> dict[str, bool]:
    """Whether the float inputs reach a node; the others follow from constants and the index program alone."""
    found: dict[str, bool] = {}
    for node in graph.nodes:
        found[node.name] = node.op == "input" or any(found[name] for name in node.inputs)
    return found


class Known(NamedTuple):
    """Where the 8-bit weights of a graph's edges are.

    Attributes:
        size: The space of the codes: an entry of the index program.
        codes: Their buffer, int8 as uint8 [size].
        units: What they stand for, by destination, float32 [N].
        totals: Their sums, int32 [N].
    """

    size: str
    codes: str
    units: str
    totals: str


def known_codes(graph: IntegerGraph) -> tuple[IntegerGraph, dict[str, Known]]:
    """By sums of codes the 8-bit weights of their edges, where they follow from the graph.

    They are rounded once for all calls, and shared by the sums over the same edges with the same weights. How
    many bytes they take is computed by the index program of the graph that is returned.
    """
    moves = moving(graph)
    index = list(graph.index)
    found: dict[str, Known] = {}
    for node in graph.nodes:
        if node.op != "spmm" or not node.attrs.get("unscaled") or node.attrs["heads"] != 1:
            continue
        weight, edges = resolve(graph, node.inputs[1]), node.attrs["graph"]
        if not moves[weight]:
            parts = (f"edges.{part}.{edges}.{weight}" for part in Known._fields[1:])
            found[node.name] = Known(_padded_size(index, edges, node.rows), *parts)
    return replace(graph, index=index), found


def _padded_size(index: list[IndexNode], edges: str, rows: str) -> str:
    """A size with room for a byte an edge, ``BEHIND`` after each destination and ``AFTER`` at the end."""
    names = {node.name for node in index}
    size = f"{edges}.padded"
    if size in names:
        return size
    parts = (node.name for node in index if node.op == "part" and node.inputs == (edges,))
    entries = next(parts, f"{edges}.ends")
    if entries not in names:
        index.append(IndexNode(entries, "part", (edges,), {"part": "dst"}))
    index.append(IndexNode(f"{edges}.length", "length", (entries,)))
    index.append(IndexNode(f"{edges}.gaps", "size", (rows,), {"function": "mul", "right": BEHIND}))
    index.append(
        IndexNode(f"{edges}.bytes", "size", (f"{edges}.length", f"{edges}.gaps"), {"function": "add"})
    )
    index.append(IndexNode(size, "size", (f"{edges}.bytes",), {"function": "add", "right": AFTER}))
    return size


def quantized_features(graph: IntegerGraph) -> frozenset[str]:
    """The ``quantize`` nodes that read the float input, which nothing else reads.

    Raises:
        BackendError: There is not one float input, or something else reads it too.
    """
    inputs = [node for node in graph.nodes if node.op == "input"]
    if len(inputs) != 1 or any(item.kind == "adjacency" for item in graph.inputs):
        names = ", ".join(node.attrs["input"] for node in inputs) or "none"
        raise BackendError(f"tvm backend: only one float input can be prepared, and this model has {names}")
    found = set()
    for node in graph.nodes:
        if node.op in ("reshape", "gather"):
            continue
        for operand in node.inputs:
            if gathered(graph, operand) != inputs[0].name:
                continue
            if node.op != "quantize" or resolve(graph, operand) != inputs[0].name:
                raise BackendError(
                    f"tvm backend: {inputs[0].attrs['input']!r} cannot be prepared: {node.op} {node.name!r} "
                    "reads its floats; compile without prepared_features"
                )
            found.add(node.name)
    return frozenset(found)


class _Partition:
    """Families and levels of the nodes that kernels compute.

    Attributes:
        computed: These nodes.
        reads: What each reads of others: the node, and whether it must be finished.
        family: The family of each.
        level: The level of each.
        with_readers: Numbers of rows that follow from index arrays, and are computed where they are read.
    """

    def __init__(self, graph: IntegerGraph, features: frozenset[str] = frozenset()) -> None:
        self.graph = graph
        self.features = features
        self.nodes = {node.name: node for node in graph.nodes}
        self.graphs = {node.name for node in graph.index if node.op == "graph"}
        self.weighed = weighed_beside(graph, features)
        self.computed = [node for node in graph.nodes if node.op not in VIRTUAL]
        self.reads = {node.name: list(self._reads(node)) for node in self.computed}
        self.with_readers: set[str] = set()
        self.family = self._families()
        self.level: dict[str, int] = {}
        for node in self.computed:
            steps = [self._after(node, source, elsewhere) for source, elsewhere in self.reads[node.name]]
            self.level[node.name] = max(steps, default=0)

    def _reads(self, node: Node) -> Iterator[tuple[Node, bool]]:
        inputs = list(node.inputs)
        if node.op == "spmm" and node.attrs.get("per") == "source":
            quantizer, weight = (resolve(self.graph, name) for name in inputs)
            if weight in self.weighed.get(quantizer, ()):
                del inputs[1]  # the scales have it
        for position, operand in enumerate([*inputs, *self.weighed.get(node.name, ())]):
            # the degrees of a normalisation are summed before its edges are
            elsewhere = node.op == "gcn_norm" or (
                node.op in ("spmm", "float_spmm") and (position == 0 or node.attrs.get("per") == "source")
            )
            source = self.nodes[operand]
            while source.op in ("reshape", "gather"):
                elsewhere |= source.op == "gather"
                source = self.nodes[source.inputs[0]]
            if source.op not in VIRTUAL:
                yield source, elsewhere

    def _after(self, node: Node, source: Node, elsewhere: bool) -> int:
        """The lowest level of ``node``, given that of what it reads."""
        mine, its = self.family[node.name], self.family[source.name]
        if mine == its and not elsewhere:
            return self.level[source.name]
        return self.level[source.name] + int(its[:2] >= mine[:2])

    def _families(self) -> dict[str, Family]:
        moves = moving(self.graph)
        for node in reversed(self.computed):
            if not moves[node.name] and self._with_readers(node, moves):
                moves[node.name] = True
                self.with_readers.add(node.name)
        values = self._edge_values()
        found = {}
        for node in self.computed:
            kind, rows = ROWS, node.rows
            if node.name in self.features:
                kind = FEATURES
            elif node.op == "segment_reduce":
                kind, rows = EDGE_ROWS, node.attrs["graph"]
            elif node.op == "row_reduce":
                kind, rows = TOTALS, self.nodes[node.inputs[0]].rows
            elif node.rows in self.graphs:
                kind = EDGE_VALUES if node.name in values else EDGE_ROWS
            found[node.name] = Family(kind, moves[node.name], rows)
        return found

    def _with_readers(self, node: Node, moves: dict[str, bool]) -> bool:
        """Whether a number of a row is read in its row only, by what is computed in every call."""
        if node.op not in ELEMENTWISE or node.columns != 1 or node.rows in self.graphs:
            return False
        readers = [
            (user, elsewhere)
            for user in self.computed
            for source, elsewhere in self.reads[user.name]
            if source is node
        ]
        return bool(readers) and all(moves[user.name] and not away for user, away in readers)

    def _edge_values(self) -> set[str]:
        """Softmaxes and normalisations, and narrow values that only lead to or only follow from them."""

        def narrow(node: Node) -> bool:
            light = node.op in ELEMENTWISE or (node.op == "columns" and is_slice(node))
            return light and node.rows in self.graphs and node.columns <= NARROW

        found: set[str] = set()
        readers: dict[str, list[tuple[Node, bool]]] = {node.name: [] for node in self.computed}
        for node in self.computed:
            sources = [source for source, _ in self.reads[node.name]]
            for source, elsewhere in self.reads[node.name]:
                readers[source.name].append((node, elsewhere))
            follows = bool(sources) and all(
                source.name in found and source.rows == node.rows for source in sources
            )
            if node.op in ("gcn_norm", "segment_softmax") or (narrow(node) and follows):
                found.add(node.name)
        for node in reversed(self.computed):
            after = readers[node.name]
            leads = bool(after) and all(
                user.name in found and user.rows == node.rows and not elsewhere for user, elsewhere in after
            )
            if narrow(node) and leads:
                found.add(node.name)
        return found

    def sink(self) -> None:
        """Move nodes to the level of their first reader where less crosses kernels that way."""
        readers: dict[str, list[tuple[Node, bool]]] = {node.name: [] for node in self.computed}
        for node in self.computed:
            for source, elsewhere in self.reads[node.name]:
                away = elsewhere or self.family[source.name] != self.family[node.name]
                readers[source.name].append((node, away))
        outputs = {gathered(self.graph, name) for name in self.graph.outputs}

        def crosses(name: str, after: int) -> bool:
            """Whether ``name`` is stored for a reader at a level above ``after``."""
            return any(away or self.level[user.name] > after for user, away in readers[name])

        for node in reversed(self.computed):
            after = readers[node.name]
            pinned = node.name in outputs or node.op in ("segment_reduce", "row_reduce")
            if pinned or not after or any(away for _, away in after):
                continue
            first = min(self.level[user.name] for user, _ in after)
            if first <= self.level[node.name]:
                continue
            sources = {source.name: source for source, _ in self.reads[node.name]}
            cost = sum(_bytes(source) for source in sources.values() if not crosses(source.name, first - 1))
            cost += self._read_again(node, first)
            if node.name in self.with_readers or cost <= _bytes(node):
                self.level[node.name] = first

    def _read_again(self, node: Node, level: int) -> float:
        """What it costs that ``node``, at ``level``, reads inputs that others have read before.

        Half of their bytes: what is stored is written and read, these are only read.
        """
        cost = 0.0
        for source in {gathered(self.graph, operand) for operand in node.inputs}:
            users = (user for user in self.computed if user is not node and self.level[user.name] < level)
            if self.nodes[source].op == "input" and any(
                source in (gathered(self.graph, operand) for operand in user.inputs) for user in users
            ):
                cost += _bytes(self.nodes[source]) / 2
        return cost


def _bytes(node: Node) -> float:
    bits = node.attrs["bits"] if node.op == "quantize" else 32
    return float(node.columns * bits / 8)
