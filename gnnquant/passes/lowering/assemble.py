"""From the rules' program to the integer graph: graphs, orders of edges, and what is needed at all.

A list of edges has one space, but its rows may be stored in several orders: as the list is given, or in
the CSR order of a graph. Rows of a list whose edges are aggregated live in the order of that graph (their
*home*), so that gathers, edge networks and aggregation fuse; they move where another order is asked for.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NamedTuple

from gnnquant.integer_graph import ONE, IndexNode, IntegerGraph, Node, origin, take_name
from gnnquant.passes.lowering.program import SIZES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gnnquant.integer_graph import Parameter
    from gnnquant.passes.lowering.program import Program
    from gnnquant.passes.lowering.values import Rows

GIVEN = ""
"""The order in which a list is given."""


def assemble(
    program: Program, parameters: list[Parameter], outputs: Sequence[Rows], result: Any
) -> IntegerGraph:
    """The integer graph of a program."""
    explicit: frozenset[str] = frozenset()
    while True:
        graph = _attempt(program, explicit, parameters, outputs, result)
        if isinstance(graph, IntegerGraph):
            return graph
        explicit |= {graph.loops}


def _attempt(
    program: Program,
    explicit: frozenset[str],
    parameters: list[Parameter],
    outputs: Sequence[Rows],
    result: Any,
) -> IntegerGraph | _NeedsList:
    """The integer graph with the lists ``explicit`` as arrays, or which list has to be one too."""
    try:
        return _Assembler(program, explicit).run(parameters, outputs, result)
    except _NeedsList as need:
        return need


class _NeedsList(Exception):  # noqa: N818 - not an error: it starts assembly anew
    """An edge list with changed self-loops is needed as arrays, not within a graph alone."""

    def __init__(self, loops: str) -> None:
        super().__init__(loops)
        self.loops = loops


class _Graph(NamedTuple):
    """A graph: its ends (arrays of the program), and the list that it makes of its input's loops."""

    source: str
    target: str
    loops: str | None


class _Assembler:
    def __init__(self, program: Program, explicit: frozenset[str]) -> None:
        self.program = program
        self.explicit = explicit
        self.index: list[IndexNode] = []
        self.nodes: list[Node] = []
        self.graphs: dict[str, _Graph] = {}
        self.roots: set[str] = set()
        for node in list(program.nodes.values()):
            if node.op in {"scatter", "segment_softmax"}:
                program.arange(program.find(program.spaces[node.attrs["index"]]))
        self._names = set(program.index) | set(program.nodes) | set(program.constants) | set(program.weights)
        self._written: dict[str, str] = {}
        self._arrays: dict[str, str] = {}
        self._placed: set[str] = set()
        self._homes: dict[str, str] = {}
        self._versions: dict[tuple[str, str], str] = {}
        self._ends: dict[str, str] = {}
        self._canonical: dict[str, str] = {}

    def run(self, parameters: list[Parameter], outputs: Sequence[Rows], result: Any) -> IntegerGraph:
        program = self.program
        live = self._live([output.name for output in outputs])
        self._unify_ends(live)
        self._find_ends(live)
        self._choose_orders(live)
        for check in program.checks:
            self.roots.add(self._array(check))
        for node in live:
            self._place(node)
        names = [
            self._version(output.name, GIVEN) if output.rows != ONE else self._single(output.name)
            for output in outputs
        ]
        graph = IntegerGraph(program.inputs, parameters, [], [], names, result)
        self._keep_what_is_used(graph)
        graph.verify()
        return graph

    # ---------------------------------------------------------------- what the program says

    def _live(self, outputs: Sequence[str]) -> list[Node]:
        wanted = set(outputs)
        for node in reversed(self.program.nodes.values()):
            if node.name in wanted:
                wanted.update(node.inputs)
        return [node for node in self.program.nodes.values() if node.name in wanted]

    def _space(self, array: str) -> str:
        return self.program.find(self.program.spaces[array])

    def _unify_ends(self, live: list[Node]) -> None:
        """Inputs that are read by one end of an edge list are about the same nodes."""
        read: dict[str, list[str]] = {}
        for node in live:
            index = node.attrs.get("index")
            if node.op == "gather" and index in self.program.partners:
                space = self.program.find(self.program.nodes[node.inputs[0]].rows)
                if space != ONE and self.program.index[space].op == "rows":
                    read.setdefault(index, []).append(space)
        for index, spaces in read.items():
            self.program.node = None
            self.program.unify(*spaces, where=f"both are read by {self._label(index)!r}")

    def _find_ends(self, live: list[Node]) -> None:
        """Which space the entries of every index array point into, as its first use says."""
        find, nodes = self.program.find, self.program.nodes
        late: list[tuple[str, str]] = []
        for node in live:
            attrs = node.attrs
            if node.op == "propagate":
                self._ends.setdefault(attrs["dst"], find(node.rows))
                late.append((attrs["src"], nodes[node.inputs[0]].rows))
            elif node.op == "scatter":
                self._ends.setdefault(attrs["index"], find(node.rows))
            elif node.op == "segment_softmax" and "size" in attrs:
                self._ends.setdefault(attrs["index"], find(attrs["size"]))
            elif node.op == "gcn_norm":
                self._ends.setdefault(attrs["src"], find(attrs["size"]))
                self._ends.setdefault(attrs["dst"], find(attrs["size"]))
            elif node.op == "gather" and "fill" not in attrs:
                late.append((attrs["index"], nodes[node.inputs[0]].rows))
        for array, space in late:
            if space != ONE:
                self._ends.setdefault(array, find(space))
        for array, space in list(self._ends.items()):
            # Other lists with changed loops of the same edges point there too.
            self._ends.setdefault(self._before_loops(array), space)

    def _choose_orders(self, live: list[Node]) -> None:
        """The graph in whose order the rows of every edge list live: that of its first aggregation.

        Spaces that edges point into keep their order: reordering nodes gains nothing.
        """
        pointed = set(self._ends.values())
        for node in live:
            if (node.op == "propagate" and len(node.inputs) == 2) or node.op == "gcn_norm":
                source, target = node.attrs["src"], node.attrs["dst"]
            elif node.op in {"scatter", "segment_softmax"}:
                target = node.attrs["index"]
                partner = self.program.partners.get(target)
                if partner is None:
                    continue
                source = partner
            else:
                continue
            space = self._space(target)
            if space in pointed or space in self._canonical:
                continue
            self._canonical[space] = self._graph(source, target)

    def _end(self, array: str) -> str:
        """Name of the size of the space that ``array`` points into; just large enough where none is read."""
        known = self._ends.get(array) or self._ends.get(self._before_loops(array))
        return self._size(known) if known else self._write_index("extent", (self._array(array),))

    def _before_loops(self, array: str) -> str:
        """The array that an end of an edge list with changed self-loops was made of."""
        node = self.program.index[array]
        if node.op != "loop_part":
            return array
        return self.program.index[node.inputs[0]].inputs[0 if node.attrs["part"] == "src" else 1]

    def _graph(self, source: str, target: str, sources: str = "", destinations: str = "") -> str:
        """The graph with these ends (arrays of the program)."""
        sources = sources or self._end(source)
        destinations = destinations or self._end(target)
        loops = self._native_loops(source, target, sources, destinations)
        if loops is None:
            inputs = (self._array(source), self._array(target), sources, destinations)
            name = self._write_index("graph", inputs, "csr", label=self._label(source), loops="keep")
        else:
            ends = {"src": loops.inputs[0], "dst": loops.inputs[1]}
            first = ends[self.program.index[source].attrs["part"]]
            second = ends[self.program.index[target].attrs["part"]]
            inputs = (self._array(first), self._array(second), sources, destinations)
            name = self._write_index(
                "graph", inputs, "csr", label=self._label(first), loops=loops.attrs["mode"]
            )
        self.graphs[name] = _Graph(source, target, loops.name if loops else None)
        return name

    def _native_loops(self, source: str, target: str, sources: str, destinations: str) -> IndexNode | None:
        """The edge list with changed loops that a graph with these ends can make by itself."""
        parts = [self.program.index[item] for item in (source, target)]
        if any(part.op != "loop_part" for part in parts) or parts[0].inputs != parts[1].inputs:
            return None
        if {part.attrs["part"] for part in parts} != {"src", "dst"}:
            return None
        loops = self.program.index[parts[0].inputs[0]]
        if loops.name in self.explicit:
            return None
        if sources != destinations or any(self._size(nodes) != sources for nodes in loops.inputs[2:]):
            raise _NeedsList(loops.name)
        return loops

    def _label(self, array: str) -> str:
        node = self.program.index[array]
        while "input" not in node.attrs and node.inputs:
            node = self.program.index[node.inputs[0]]
        return str(node.attrs.get("input", array))

    # ---------------------------------------------------------------- the index program

    def _write_index(self, op: str, inputs: Sequence[str], name: str = "", **attrs: Any) -> str:
        key = json.dumps([op, list(inputs), attrs], sort_keys=True)
        if key not in self._written:
            written = self._unique(name or op)
            self.index.append(IndexNode(written, op, tuple(inputs), attrs))
            self._written[key] = written
        return self._written[key]

    def _unique(self, name: str) -> str:
        return take_name(name, self._names)

    def _size(self, name: str) -> str:
        return self._array(self.program.find(name))

    def _array(self, name: str) -> str:
        """Write a node of the program's index program as it is; arrays come in the given order."""
        if name not in self._arrays:
            node = self.program.index[name]
            if node.op == "loop_part":
                self._arrays[name] = self._loop_part(node)
            elif node.op == "length" and self._is_hidden(node.inputs[0]):
                part = self.program.index[node.inputs[0]]
                graph = self._loops_graph(part.inputs[0])
                self._arrays[name] = self._write_index("length", (self._part(graph, "src"),), name)
            else:
                self._arrays[name] = self._plain(node)
        return self._arrays[name]

    def _plain(self, node: IndexNode) -> str:
        """Write a node whose operation is one of the integer graph."""
        checks = node.op == "same_size"
        inputs = [
            self._array(item) if checks or self.program.index[item].op not in SIZES else self._size(item)
            for item in node.inputs
        ]
        if node.attrs.get("function") in {"min", "max"} and len(inputs) == 2 and inputs[0] == inputs[1]:
            return inputs[0]  # spaces that turned out to be the same
        key = json.dumps([node.op, inputs, node.attrs], sort_keys=True)
        if key not in self._written:
            self.index.append(IndexNode(node.name, node.op, tuple(inputs), node.attrs))
            self._written[key] = node.name
        return self._written[key]

    def _is_hidden(self, array: str) -> bool:
        node = self.program.index[array]
        return node.op == "loop_part" and node.inputs[0] not in self.explicit

    def _loops_graph(self, loops: str) -> str:
        """A graph that makes the list ``loops``."""
        for name, graph in self.graphs.items():
            if graph.loops == loops:
                return name
        raise _NeedsList(loops)

    def _loop_part(self, node: IndexNode) -> str:
        """One array of an edge list with changed self-loops, in the given order: kept edges, then loops."""
        loops = self.program.index[node.inputs[0]]
        if loops.name not in self.explicit:
            raise _NeedsList(loops.name)
        write, mode, part = self._write_index, loops.attrs["mode"], node.attrs["part"]
        source, target = (self._array(item) for item in loops.inputs[:2])
        count = self._size(self.program.spaces[loops.inputs[0]])
        everything = write("arange", (count,))
        kept, array = everything, {"src": source, "dst": target, "edge_id": everything}[part]
        differ = write("combine", (source, target), "no_loop", function="ne")
        if mode != "add":
            kept = write("nonzero", (differ,))
            array = write("take", (array, kept)) if part != "edge_id" else kept
        if mode == "remove":
            return array
        nodes = self._size(loops.inputs[2])
        added = write("arange", (nodes,))
        if part == "edge_id":
            added = write("full", (nodes,), value=-1)
            if mode == "remaining":
                old = write("nonzero", (write("not", (differ,)),))
                added = write("put", (added, write("take", (source, old)), old))
        return write("join", (array, added), f"{loops.name}_{part}")

    def _part(self, graph: str, part: str) -> str:
        return self._write_index("part", (graph,), f"{graph}_{part}", part=part)

    def _in_order(self, array: str, order: str) -> str:
        """An array of the program in an order, as an attribute ``index`` names it."""
        if order == GIVEN:
            return self._array(array)
        graph, node = self.graphs[order], self.program.index[array]
        ends = {graph.source: f"{order}.src", graph.target: f"{order}.dst"}
        if array in ends:
            return ends[array]
        if node.op == "full":
            return self._write_index("full", (self._edges(order),), **node.attrs)
        if graph.loops is not None:
            return self._in_order_of_loops(array, order, graph.loops)
        if node.op == "arange":
            return f"{order}.edge_id"
        return self._write_index("take", (self._array(array), self._part(order, "edge_id")))

    def _in_order_of_loops(self, array: str, order: str, loops: str) -> str:
        """The same for a graph that makes its list: what is computed entry by entry is computed anew."""
        node = self.program.index[array]
        if node.op == "loop_part" and node.inputs[0] == loops and node.attrs["part"] == "edge_id":
            return f"{order}.edge_id"
        if node.op in {"combine", "not"}:
            inputs = [
                self._size(item) if self.program.index[item].op in SIZES else self._ordered(item, order)
                for item in node.inputs
            ]
            return self._write_index(node.op, inputs, **node.attrs)
        if node.op == "take":
            table, index = node.inputs
            return self._write_index("take", (self._array(table), self._ordered(index, order)))
        raise _NeedsList(loops)

    def _ordered(self, array: str, order: str) -> str:
        """The same as a node of the index program."""
        name = self._in_order(array, order)
        graph, _, part = name.rpartition(".")
        return self._part(graph, part) if graph in self.graphs and graph == order else name

    def _edges(self, order: str) -> str:
        """Size of a graph's edges."""
        return self._write_index("length", (self._part(order, "src"),), f"{order}_edges")

    def _check_bounds(self, array: str, rows: str) -> None:
        """Demand that entries lie in ``0 .. rows - 1``."""
        node = self.program.index[array]
        if node.op == "loop_part":
            # Of a list with changed loops: the entries that it was made of, and the nodes that got a loop.
            array = self._before_loops(array)
            for nodes in self.program.index[node.inputs[0]].inputs[2:]:
                if self._size(nodes) != self._size(rows):
                    looped = self._write_index("arange", (self._size(nodes),))
                    self.roots.add(
                        self._write_index("bounded", (looped, self._size(rows)), label="self-loops")
                    )
        label = self._label(array)
        self.roots.add(
            self._write_index("bounded", (self._array(array), self._size(rows)), "bounded", label=label)
        )

    # ---------------------------------------------------------------- the row program

    def _write(self, node: Node, op: str, inputs: Sequence[str], rows: str, **attrs: Any) -> str:
        key = json.dumps([op, list(inputs), list(node.shape), rows, attrs], sort_keys=True)
        if key not in self._written:
            written = self._unique(op) if node.name in self._placed else node.name
            self._placed.add(written)
            self.nodes.append(Node(written, op, tuple(inputs), attrs, node.shape, rows, node.source))
            self._written[key] = written
        return self._written[key]

    def _store(self, node: Node, order: str, name: str) -> None:
        self._homes.setdefault(node.name, order)
        self._versions[node.name, order] = name

    def _rows(self, node: Node, order: str) -> str:
        if node.rows == ONE:
            return ONE
        return order or self._size(node.rows)

    def _place(self, node: Node) -> None:
        """Write a node of the program."""
        special = getattr(self, f"_place_{node.op}", None)
        if special is not None:
            special(node)
            return
        order = self._order_of(node)
        inputs = [self._operand(item, order) for item in node.inputs]
        self._store(node, order, self._write(node, node.op, inputs, self._rows(node, order), **node.attrs))

    def _order_of(self, node: Node) -> str:
        """The order in which an operation within rows runs: home, or another in which all operands are."""
        if node.rows == ONE:
            return GIVEN
        home = self._canonical.get(self.program.find(node.rows), GIVEN)
        common: set[str] | None = None
        for item in node.inputs:
            operand = self.program.nodes[item]
            if operand.rows == ONE or operand.op == "expand":
                continue
            orders = {order for (name, order) in self._versions if name == item}
            common = orders if common is None else common & orders
        if not common or home in common:
            return home
        elsewhere = sorted(common - {GIVEN})
        return elsewhere[0] if elsewhere else home

    def _operand(self, name: str, order: str) -> str:
        """An operand of an operation within rows: a single row stands for all."""
        node = self.program.nodes[name]
        if node.rows == ONE or node.op == "expand":
            return self._single(name)
        return self._version(name, order)

    def _single(self, name: str) -> str:
        return self._versions[origin(self.program.nodes, name, "expand").name, GIVEN]

    def _version(self, name: str, order: str) -> str:
        """A value in an order; moved there where it is not."""
        if (name, order) in self._versions:
            return self._versions[name, order]
        node = self.program.nodes[name]
        if node.rows == ONE:
            return self._single(name)
        if node.op == "expand":
            zeros = self._write_index(
                "full", (self._edges(order) if order else self._size(node.rows),), value=0
            )
            moved = self._write(node, "gather", (self._single(name),), self._rows(node, order), index=zeros)
        else:
            home = self._homes[name]
            moved = self._write(
                node,
                "gather",
                (self._versions[name, home],),
                self._rows(node, order),
                index=self._move(home, order),
            )
        self._versions[name, order] = moved
        return moved

    def _move(self, old: str, new: str) -> str:
        """For every row in one order, its place in another."""
        for order in (old, new):
            loops = self.graphs[order].loops if order else None
            if loops is not None:
                raise _NeedsList(loops)
        if old == GIVEN:
            return f"{new}.edge_id"
        edge_id = self._part(old, "edge_id")
        everything = self._write_index("arange", (self._edges(old),))
        inverse = self._write_index("put", (everything, edge_id, everything), f"{old}_place")
        if new == GIVEN:
            return inverse
        return self._write_index("take", (inverse, self._part(new, "edge_id")))

    def _place_expand(self, _: Node) -> None:
        """Nothing: those who need it repeated write it."""

    def _place_gather(self, node: Node) -> None:
        index, x = node.attrs["index"], self.program.nodes[node.inputs[0]]
        order = self._canonical.get(self._space(index), GIVEN)
        placed = self._in_order(index, order)
        attrs = {"fill": node.attrs["fill"]} if "fill" in node.attrs else {}
        if "checked" in node.attrs:
            rows = self.program.find(x.rows)
            if self._end_of(placed, order) != self._size(rows):
                self._check_bounds(index, rows)
        operand = self._version(x.name, GIVEN)
        self._store(
            node,
            order,
            self._write(node, "gather", (operand,), self._rows(node, order), index=placed, **attrs),
        )

    def _end_of(self, placed: str, order: str) -> str | None:
        """Size of the space that an end of a graph is checked to point into."""
        for position, part in ((2, "src"), (3, "dst")):
            if order and placed == f"{order}.{part}":
                graph = next(item for item in self.index if item.name == order)
                return graph.inputs[position]
        return None

    def _graph_to(self, index: str) -> str:
        """A graph whose destinations are ``index``: the edge list's, or one from every row."""
        partner = self.program.partners.get(index)
        target = self._end(index)
        if partner is not None:
            return self._graph(partner, index, destinations=target)
        space = self._space(index)
        everything = self.program.arange(space)
        return self._graph(everything, index, self._size(space), target)

    def _place_scatter(self, node: Node) -> None:
        x, index, reduce = node.inputs[0], node.attrs["index"], node.attrs["reduce"]
        rows = self._size(node.rows)
        for order in [order for (name, order) in self._versions if name == x and order]:
            if self.graphs[order].target == index and self._end_of(f"{order}.dst", order) == rows:
                self._reduce(node, x, order)
                return
        home = self._homes.get(x, self._canonical.get(self._space(index), GIVEN))
        if home == GIVEN and reduce != "mul":
            space = self._space(index)
            graph = self._graph(self.program.arange(space), index, self._size(space), rows)
            operand = self._version(x, GIVEN)
            attrs = {"graph": graph, "reduce": reduce, "heads": 1}
            self._store(node, GIVEN, self._write(node, "float_spmm", (operand,), rows, **attrs))
            return
        partner = self.program.partners.get(index)
        if partner is None:
            space = self._space(index)
            graph = self._graph(self.program.arange(space), index, self._size(space), rows)
        else:
            graph = self._graph(partner, index, destinations=rows)
        self._reduce(node, x, graph)

    def _reduce(self, node: Node, x: str, graph: str) -> None:
        operand = self._version(x, graph)
        attrs = {"graph": graph, "reduce": node.attrs["reduce"]}
        self._store(
            node, GIVEN, self._write(node, "segment_reduce", (operand,), self._size(node.rows), **attrs)
        )

    def _place_segment_softmax(self, node: Node) -> None:
        x, index = node.inputs[0], node.attrs["index"]
        orders = [order for (name, order) in self._versions if name == x and order]
        orders += [self._canonical[space] for space in (self._space(index),) if space in self._canonical]
        found = [order for order in orders if self.graphs[order].target == index]
        graph = found[0] if found else self._graph_to(index)
        written = self._write(node, "segment_softmax", (self._version(x, graph),), graph)
        self._store(node, graph, written)

    def _place_gcn_norm(self, node: Node) -> None:
        graph = self._graph(node.attrs["src"], node.attrs["dst"])
        inputs = [self._version(item, graph) for item in node.inputs]
        attrs = {"fill": node.attrs["fill"]}
        self._store(node, graph, self._write(node, "gcn_norm", inputs, graph, **attrs))

    def _place_propagate(self, node: Node) -> None:
        x = self.program.nodes[node.inputs[0]]
        graph = self._graph(node.attrs["src"], node.attrs["dst"], self._size(x.rows), self._size(node.rows))
        inputs = [self._version(x.name, GIVEN)]
        inputs += [self._version(item, graph) for item in node.inputs[1:]]
        op, reduce, heads = (node.attrs[key] for key in ("product", "reduce", "heads"))
        attrs = {"graph": graph, "reduce": reduce, "heads": heads}
        self._store(node, GIVEN, self._write(node, op, inputs, self._size(node.rows), **attrs))

    def _place_row_reduce(self, node: Node) -> None:
        x = self.program.nodes[node.inputs[0]]
        home = self._homes.get(x.name, GIVEN)
        self._store(
            node, GIVEN, self._write(node, "row_reduce", (self._version(x.name, home),), ONE, **node.attrs)
        )

    def _place_from_index(self, node: Node) -> None:
        self._place_source(node)

    def _place_lookup(self, node: Node) -> None:
        if node.attrs.get("checked"):
            table = self.program.constants[node.attrs["array"]]
            count = self._write_index("size", (), "number", function="add", left=int(table.shape[0]), right=0)
            label = self._label(node.attrs["index"])
            array = self._array(node.attrs["index"])
            self.roots.add(self._write_index("bounded", (array, count), "bounded", label=label))
        self._place_source(node)

    def _place_source(self, node: Node) -> None:
        index = node.attrs["index"]
        order = GIVEN if node.rows == ONE else self._canonical.get(self._space(index), GIVEN)
        attrs = {key: item for key, item in node.attrs.items() if key != "checked"}
        attrs["index"] = self._in_order(index, order)
        self._store(node, order, self._write(node, node.op, (), self._rows(node, order), **attrs))

    def _place_input(self, node: Node) -> None:
        self._store(node, GIVEN, self._write(node, "input", (), self._rows(node, GIVEN), **node.attrs))

    # ---------------------------------------------------------------- what is used

    def _keep_what_is_used(self, graph: IntegerGraph) -> None:
        live = set(graph.outputs)
        for node in reversed(self.nodes):
            if node.name in live:
                live.update(node.inputs)
        graph.nodes = [node for node in self.nodes if node.name in live]
        wanted = set(self.roots)
        for node in graph.nodes:
            wanted.add(node.rows)
            for key in ("index", "graph"):
                name = node.attrs.get(key)
                if isinstance(name, str):
                    base = name.rpartition(".")[0]
                    wanted.add(base if base in self.graphs else name)
        for item in reversed(self.index):
            if item.name in wanted:
                wanted.update(item.inputs)
        graph.index = [item for item in self.index if item.name in wanted]
        arrays = {node.attrs["array"] for node in graph.nodes if "array" in node.attrs}
        weights = {node.attrs["weight"] for node in graph.nodes if "weight" in node.attrs}
        program = self.program
        graph.constants = {name: item for name, item in program.constants.items() if name in arrays}
        graph.weights = {name: item for name, item in program.weights.items() if name in weights}
