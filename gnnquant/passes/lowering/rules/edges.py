"""PyG's functions on edge lists, and everything that aggregates by an index."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch_geometric import utils
from torch_geometric.nn.conv.gcn_conv import gcn_norm
from torch_geometric.utils.num_nodes import maybe_num_nodes

from gnnquant import ir
from gnnquant.integer_graph import ONE
from gnnquant.passes.lowering.operands import as_rows, elementwise, float_operand, normal_axis
from gnnquant.passes.lowering.rules.creation import device_of, dtype_of, filled, identity
from gnnquant.passes.lowering.rules.elementwise import integers, where
from gnnquant.passes.lowering.rules.parts import set_item
from gnnquant.passes.lowering.rules.shapes import cat
from gnnquant.passes.lowering.rules.sites import sparse_product
from gnnquant.passes.lowering.values import Adjacency, Index, Rows, Size
from gnnquant.tracing import graph_ops

if TYPE_CHECKING:
    from collections.abc import Callable

    from gnnquant.passes.lowering.program import Program

    Rule = Callable[..., Any]

REDUCTIONS = {
    "sum": "sum",
    "add": "sum",
    "mean": "mean",
    "max": "max",
    "min": "min",
    "mul": "mul",
    "any": "sum",
}


def edges_of(program: Program, value: Any) -> Index:
    """``value`` as an edge list."""
    if not isinstance(value, Index) or not value.is_edges:
        raise program.refuse("its edge list is not an integer tensor [2, E] that depends on the inputs")
    return value


def number_of_nodes(program: Program, edges: Any, num_nodes: Any = None) -> Any:
    """PyG's ``maybe_num_nodes``: what it was given, or the largest index plus one."""
    if num_nodes is not None:
        return num_nodes
    if isinstance(edges, Adjacency):
        return program.arithmetic("max", *edges.extents)
    return program.size("extent", (program.join(list(edges_of(program, edges).ends)),))


# ---------------------------------------------------------------- self-loops


def changed_loops(
    program: Program, edges: Index, mode: str, nodes: Size | int | None, *, compose: bool = True
) -> tuple[Index, str]:
    """An edge list with changed self-loops, and where its edges stood before (-1: a new loop).

    With ``compose``, loops that are added where they were just removed are one step, so that one graph does
    both; positions are then those before the removal.
    """
    source, target = edges.ends
    first = program.index[source]
    if first.op == "loop_part" and mode == "add" and compose:
        inner = program.index[first.inputs[0]]
        if (
            inner.attrs["mode"] == "remove"
            and (source, target) == _parts(program, inner.name, inner.inputs[0])[:2]
        ):
            source, target = inner.inputs[:2]
            mode = "replace"
    operands = [source, target] + ([] if nodes is None else [program.size_of(nodes)])
    # Not an op of the integer graph: a graph that is made of the list knows it, or `assemble` writes it out.
    loops = program.array("loops", operands, "", mode=mode)
    parts = np.empty(2, dtype=object)
    parts[0], parts[1], edge_id = _parts(program, loops, operands[0])
    return program.pair(Index(parts, program.spaces[str(parts[0])], axis=1)), edge_id


def _parts(program: Program, loops: str, source: str) -> tuple[str, str, str]:
    node = program.index[loops]
    names = [
        program.array("loop_part", (loops,), "", name=f"{loops}_{part}", part=part)
        for part in ("src", "dst", "edge_id")
    ]
    if not program.spaces[names[0]]:
        if node.attrs["mode"] == "add":
            total = program.arithmetic("add", Size(program.spaces[source]), Size(node.inputs[2]))
            rows = program.size_of(total)
        else:
            rows = program.size("length", (names[0],)).name
        program.spaces.update(dict.fromkeys(names, rows))
    return names[0], names[1], names[2]


def _before_removal(program: Program, value: Rows, edges: Index) -> Rows | None:
    """The rows of all edges, where ``value`` is what ``remove_self_loops`` left of them to ``edges``."""
    node, end = program.nodes[value.name], program.index[edges.ends[0]]
    if node.op != "gather" or end.op != "loop_part":
        return None
    moved = program.index[node.attrs["index"]]
    if moved.op != "loop_part" or moved.inputs != end.inputs or moved.attrs["part"] != "edge_id":
        return None
    if program.index[moved.inputs[0]].attrs["mode"] != "remove":
        return None
    base = program.nodes[node.inputs[0]]
    return Rows(base.name, base.shape, base.rows, value.axis)


def remove_self_loops(program: Program, edge_index: Any, edge_attr: Any = None) -> tuple[Any, Any]:
    """``utils.remove_self_loops``."""
    if isinstance(edge_index, Adjacency):
        edges, edge_id = changed_loops(program, edge_index.edges, "remove", None)
        weight = program.gather(edge_index.weight, edge_id, safe=True)
        return Adjacency(edges, weight, edge_index.extents), None
    edges, edge_id = changed_loops(program, edges_of(program, edge_index), "remove", None)
    if edge_attr is None:
        return edges, None
    program.unify(edge_attr.rows, edge_index.rows)
    return edges, _moved_attribute(program, edge_attr, edge_id, edges)


def _moved_attribute(program: Program, value: Any, edge_id: str, edges: Index) -> Any:
    if isinstance(value, Index):
        parts = np.empty(value.shape, dtype=object)
        for place in np.ndindex(*value.shape):
            parts[place] = program.take(str(value.parts[place]), edge_id)
        return Index(parts, edges.rows, value.axis, value.boolean)
    value = as_rows(program, value)
    return program.gather(value, edge_id, value.axis, safe=True)


def _adds_loops(mode: str) -> Rule:
    def rule(
        program: Program,
        edge_index: Any,
        edge_attr: Any = None,
        fill_value: Any = None,
        num_nodes: Any = None,
    ) -> tuple[Any, Any]:
        if isinstance(num_nodes, (tuple, list)):
            num_nodes = program.arithmetic("min", *num_nodes)
        if isinstance(edge_index, Adjacency):
            nodes = edge_index.extents[0] if num_nodes is None else num_nodes
            edges, edge_id = changed_loops(program, edge_index.edges, mode, nodes)
            fill = 1.0 if fill_value is None else float(fill_value)
            return Adjacency(
                edges, program.gather(edge_index.weight, edge_id, fill=fill), edge_index.extents
            ), None
        old = edges_of(program, edge_index)
        nodes = number_of_nodes(program, old, num_nodes)
        if edge_attr is None:
            return changed_loops(program, old, mode, nodes)[0], None
        value = as_rows(program, edge_attr)
        program.unify(value.rows, old.rows)
        base = _before_removal(program, value, old) if mode == "add" else None
        edges, edge_id = changed_loops(program, old, mode, nodes, compose=base is not None)
        return edges, _with_loops(program, value, base or value, old, edges, edge_id, nodes, fill_value)

    return rule


def _with_loops(
    program: Program,
    value: Rows,
    base: Rows,
    old: Index,
    edges: Index,
    edge_id: str,
    nodes: Any,
    fill_value: Any,
) -> Rows:
    """Edge features ``value`` after loops were added; ``base`` are those that ``edge_id`` points into."""
    if fill_value is None or isinstance(fill_value, (int, float)):
        fill_value = 1.0 if fill_value is None else fill_value
        return program.gather(base, edge_id, base.axis, fill=float(fill_value))
    kept = program.gather(base, edge_id, base.axis, fill=0.0)
    if isinstance(fill_value, str):
        sums = program.scatter(value, old.ends[1], program.size_of(nodes), REDUCTIONS[fill_value])
        fill: Any = program.gather(sums, edges.ends[1])
    else:
        fill = as_rows(program, fill_value)
        if fill.axis is None:
            fill = replace(program.reshape(fill, value.shape), axis=None)
    is_new = program.combine("eq", edge_id, -1, edges.rows)
    mask = Rows(program.write("from_index", (), (), edges.rows, index=is_new), (), edges.rows, 0)
    mask = program.reshape(mask, [1] * len(kept.shape))
    return elementwise(program, "where", mask, fill, kept)


# ---------------------------------------------------------------- normalisation


def lower_gcn_norm(
    program: Program,
    edge_index: Any,
    edge_weight: Any = None,
    num_nodes: Any = None,
    improved: bool = False,
    add_self_loops: bool = True,
    flow: str = "source_to_target",
    dtype: Any = None,
) -> tuple[Any, Any]:
    """PyG's symmetric normalisation with self-loops."""
    fill = 2.0 if improved else 1.0
    if isinstance(edge_index, Adjacency):
        extents = edge_index.extents
        if add_self_loops:
            edge_index, _ = _adds_loops("add")(program, edge_index, None, fill, num_nodes)
        nodes = extents[0] if num_nodes is None else num_nodes
        entries = _normalised(program, edge_index.edges, edge_index.weight, nodes)
        return Adjacency(edge_index.edges, entries, extents), None
    edges = edges_of(program, edge_index)
    nodes = number_of_nodes(program, edges, num_nodes)
    weight: Rows | None = None if edge_weight is None else as_rows(program, edge_weight)
    program.unify(edges.rows, ONE if weight is None else weight.rows)
    if add_self_loops:
        # Without weights PyG gives the loops 1 like all edges, improved or not.
        edges, edge_id = changed_loops(program, edges, "remaining", nodes)
        weight = None if weight is None else program.gather(weight, edge_id, fill=fill)
    if flow == "source_to_target":
        return edges, _normalised(program, edges, weight, nodes)
    if weight is None:
        weight = program.expand(program.constant(torch.ones(())), edges.rows)
    degrees = program.scatter(weight, edges.ends[0], program.size_of(nodes), "sum")
    roots = _inverse(program, program.local("sqrt", degrees))
    first, second = (program.gather(roots, end) for end in edges.ends)
    return edges, elementwise(program, "mul", elementwise(program, "mul", first, weight), second)


def _normalised(program: Program, edges: Index, weight: Rows | None, nodes: Any) -> Rows:
    if weight is not None and weight.rows == ONE:
        weight = program.expand(weight, edges.rows)
    operands = [] if weight is None else [weight]
    source, target = edges.ends
    size = program.size_of(nodes)
    name = program.write("gcn_norm", operands, (), edges.rows, src=source, dst=target, size=size, fill=1.0)
    return Rows(name, (), edges.rows, 0)


def _inverse(program: Program, x: Rows) -> Rows:
    """``1 / x``, and 0 where that is infinite."""
    inverse = program.local("rdiv", x, scalar=1.0)
    return elementwise(program, "where", elementwise(program, "eq", inverse, math.inf), 0.0, inverse)


def lower_laplacian(
    program: Program,
    edge_index: Any,
    edge_weight: Any = None,
    normalization: Any = None,
    dtype: Any = None,
    num_nodes: Any = None,
) -> tuple[Index, Rows]:
    """``utils.get_laplacian``: ``D - A``, or one of its normalised forms, with a loop at every node."""
    edges = edges_of(program, edge_index)
    nodes = number_of_nodes(program, edges, num_nodes)
    into = program.size_of(nodes)
    kept, kept_id = changed_loops(program, edges, "remove", None)
    weight = None
    if edge_weight is None:
        count = program.array("count", (kept.ends[0], into), into)
        degrees = Rows(program.write("from_index", (), (), into, index=count), (), into, 0)
    else:
        weight = as_rows(program, edge_weight)
        program.unify(weight.rows, edges.rows)
        degrees = program.scatter(program.gather(weight, kept_id, safe=True), kept.ends[0], into, "sum")
    result, edge_id = changed_loops(program, kept, "add", nodes)
    if weight is None:
        values: Any = program.constant(torch.ones(()))
    else:
        values = program.gather(weight, edge_id, fill=0.0)
    if normalization == "sym":
        first, second = (
            program.gather(_inverse(program, program.local("sqrt", degrees)), end) for end in result.ends
        )
        values = elementwise(program, "mul", elementwise(program, "mul", first, values), second)
    elif normalization == "rw":
        inverse = program.gather(_inverse(program, degrees), result.ends[0])
        values = elementwise(program, "mul", inverse, values)
    diagonal: Any = program.gather(degrees, result.ends[1]) if normalization is None else 1.0
    is_new = program.combine("eq", edge_id, -1, result.rows)
    mask = Rows(program.write("from_index", (), (), result.rows, index=is_new), (), result.rows, 0)
    return result, elementwise(program, "where", mask, diagonal, program.local("neg", values))


# ---------------------------------------------------------------- aggregation


def vector(program: Program, index: Any) -> Index:
    """``index`` as a vector: one that was repeated over columns counts as such."""
    if isinstance(index, Index):
        names = {str(item) for item in index.parts.reshape(-1)}
        if len(names) == 1:
            return Index(np.array(names.pop(), dtype=object), index.rows, 0, index.boolean)
    raise program.refuse("it aggregates by something else than one index per row")


def aggregate(program: Program, x: Any, index: Any, dim: int, dim_size: Any, reduce: str) -> Rows:
    """``scatter`` of the rows of ``x``."""
    if reduce not in REDUCTIONS:
        raise program.refuse(f"an aggregation by {reduce!r}")
    index = vector(program, index)
    x = float_operand(program, x, "an aggregation") if not isinstance(x, Tensor) else as_rows(program, x)
    axis = normal_axis(program, dim, x.rank)
    if x.axis is None:
        x = program.expand(program.reshape(x, (*x.shape[:axis], *x.shape[axis + 1 :])), index.rows, axis)
    if axis != x.axis:
        raise program.refuse("it aggregates along another axis than that of the rows")
    if dim_size is None:
        dim_size = program.size("extent", (index.name,))
    return program.scatter(x, index.name, program.size_of(dim_size), REDUCTIONS[reduce])


def scatter(
    program: Program, src: Any, index: Any, dim: int = 0, dim_size: Any = None, reduce: str = "sum"
) -> Rows:
    """``utils.scatter``."""
    return aggregate(program, src, index, dim, dim_size, reduce)


def segment_softmax(
    program: Program, src: Any, index: Any = None, ptr: Any = None, num_nodes: Any = None, dim: int = 0
) -> Rows:
    """PyG's softmax over rows of one index."""
    if ptr is not None and index is None:
        raise program.refuse("a softmax over sorted segments")
    index = vector(program, index)
    x = float_operand(program, src, "a softmax")
    if x.axis is None or normal_axis(program, dim, x.rank) != x.axis:
        raise program.refuse("a softmax along another axis than that of the rows")
    program.unify(x.rows, index.rows)
    attrs = {"index": index.name}
    if num_nodes is not None:
        attrs["size"] = program.size_of(num_nodes)
    name = program.write("segment_softmax", (x,), x.shape, x.rows, **attrs)
    return Rows(name, x.shape, x.rows, x.axis)


def degree(program: Program, index: Any, num_nodes: Any = None, dtype: Any = None) -> Any:
    """``utils.degree``: how often every index occurs."""
    index = vector(program, index)
    size = program.size("extent", (index.name,)) if num_nodes is None else num_nodes
    into = program.size_of(size)
    count = Index(np.array(program.array("count", (index.name, into), into), dtype=object), into)
    return count if dtype is not None and not dtype.is_floating_point else as_rows(program, count)


def one_hot(program: Program, index: Any, num_classes: Any = None, dtype: Any = None) -> Any:
    """``utils.one_hot`` and ``F.one_hot``."""
    if not isinstance(num_classes, int) or num_classes < 1:
        raise program.refuse("one_hot with a number of classes that depends on the inputs")
    index = vector(program, index)
    column = Index(index.parts.reshape(1), index.rows)
    hot = integers(program, "eq", column, torch.arange(num_classes), boolean=True)
    if dtype is not None and not dtype.is_floating_point:
        return Index(hot.parts, hot.rows, hot.axis)
    return as_rows(program, hot)


def torch_one_hot(program: Program, index: Any, num_classes: Any = -1) -> Any:
    """``F.one_hot``, which gives integers."""
    return one_hot(program, index, num_classes, torch.int64)


def lower_spmm(program: Program, src: Any, other: Any, reduce: str = "sum") -> Rows:
    """``utils.spmm`` of a sparse matrix and rows."""
    if not isinstance(src, Adjacency):
        raise program.refuse("a sparse product of something else than a sparse matrix")
    return sparse_product(program, other, src.edges, src.weight, src.extents[0], REDUCTIONS[reduce])


def to_edge_index(program: Program, adjacency: Any) -> tuple[Index, Rows]:
    """``utils.to_edge_index``: the entries of a sparse matrix, its rows first."""
    if not isinstance(adjacency, Adjacency):
        raise program.refuse("it takes the entries of something else than a sparse matrix")
    edges = adjacency.edges
    return program.pair(Index(edges.parts[::-1].copy(), edges.rows, 1)), adjacency.weight


# ---------------------------------------------------------------- torch's own


def index_add(program: Program, x: Any, dim: int, index: Any, source: Any, alpha: Any = 1) -> Rows:
    """``x`` plus rows of ``source`` added at ``index``."""
    x = as_rows(program, x)
    source = as_rows(program, source)
    if alpha != 1:
        source = elementwise(program, "mul", source, alpha)
    if x.axis is None or normal_axis(program, dim, x.rank) != x.axis:
        raise program.refuse("it adds along another axis than that of the rows")
    return elementwise(program, "add", x, aggregate(program, source, index, dim, Size(x.rows), "sum"))


def scatter_add(program: Program, x: Any, dim: int, index: Any, src: Any) -> Rows:
    """``scatter_add``."""
    return index_add(program, x, dim, index, src)


def scatter_reduce(
    program: Program, x: Any, dim: int, index: Any, src: Any, reduce: str, *, include_self: bool = True
) -> Rows:
    """``scatter_reduce`` into zeros, or a sum."""
    names = {"sum": "sum", "mean": "mean", "amax": "max", "amin": "min", "prod": "mul"}
    x = as_rows(program, x)
    if x.axis is None or (include_self and reduce != "sum"):
        raise program.refuse(f"scatter_reduce with {reduce!r} and include_self={include_self}")
    into = Size(x.rows)
    found = aggregate(program, src, index, dim, into, names[reduce])
    if include_self:
        return elementwise(program, "add", x, found)
    node = program.nodes[x.name]
    constant = (
        program.constants.get(program.nodes[node.inputs[0]].attrs.get("array", "")) if node.inputs else None
    )
    if node.op == "expand" and constant is not None and not constant.any() and names[reduce] != "mul":
        return found
    raise program.refuse("scatter_reduce into something else than zeros")


def bincount(program: Program, index: Any, weights: Any = None, minlength: Any = 0) -> Any:
    """How often every index occurs."""
    index = vector(program, index)
    size = program.arithmetic("max", program.size("extent", (index.name,)), minlength)
    if weights is not None:
        return aggregate(program, weights, index, 0, size, "sum")
    return degree(program, index, size, torch.int64)


def argsort(
    program: Program, index: Any, dim: int = -1, descending: bool = False, stable: bool = False
) -> Index:
    """Positions that sort integers."""
    if not isinstance(index, Index) or not index.is_vector or descending:
        raise program.refuse(
            "it sorts by values that are computed from floats: an order must follow from integers"
        )
    return Index(np.array(program.array("argsort", (index.name,), index.rows), dtype=object), index.rows)


def sort(
    program: Program, index: Any, dim: int = -1, descending: bool = False, stable: bool = False
) -> tuple[Index, Index]:
    """Integers in order, and the positions that sort them."""
    order = argsort(program, index, dim, descending, stable)
    return Index(np.array(program.take(index.name, order.name), dtype=object), order.rows), order


def cumsum(program: Program, index: Any, dim: int = 0, **_: Any) -> Index:
    """Running sums of integers."""
    if not isinstance(index, Index) or not index.is_vector:
        raise program.refuse("running sums of floats over rows")
    return Index(np.array(program.array("cumsum", (index.name,), index.rows), dtype=object), index.rows)


def nonzero(program: Program, mask: Any, *, as_tuple: bool = False) -> Any:
    """Positions where an index mask holds."""
    if not isinstance(mask, Index) or not mask.is_vector:
        raise program.refuse(
            "positions of nonzero floats: which rows there are must follow from integer inputs"
        )
    if not mask.boolean:
        mask = integers(program, "ne", mask, 0, boolean=True)
    array = program.where_true(mask.name)
    rows = program.spaces[array]
    if as_tuple:
        return (Index(np.array(array, dtype=object), rows),)
    return Index(np.array([array], dtype=object), rows)


def torch_where(program: Program, condition: Any, x: Any = None, y: Any = None) -> Any:
    """``torch.where`` with one or three arguments."""
    if x is None and y is None:
        return nonzero(program, condition, as_tuple=True)
    return where(program, condition, x, y)


def mask_to_index(program: Program, mask: Any) -> Any:
    """``utils.mask_to_index``."""
    return nonzero(program, mask, as_tuple=True)[0]


# ---------------------------------------------------------------- new edge lists


def distinct(program: Program, array: str) -> tuple[str, str]:
    """Positions of the distinct entries of an index array in order, and which of them each entry is."""
    rows = program.spaces[array]
    order = program.array("argsort", (array,), rows)
    ordered = program.take(array, order)
    everything = program.arange(rows)
    before = program.combine("max", program.combine("sub", everything, 1, rows), 0, rows)
    is_new = program.combine("ne", ordered, program.take(ordered, before), rows)
    is_new = program.combine("or", is_new, program.combine("eq", everything, 0, rows), rows)
    first = program.take(order, program.where_true(is_new))
    number = program.combine("sub", program.array("cumsum", (is_new,), rows), 1, rows)
    return first, program.array("put", (program.full(rows, 0), order, number), rows)


def unique(
    program: Program,
    index: Any,
    sorted: bool = True,
    return_inverse: bool = False,
    return_counts: bool = False,
    dim: Any = None,
) -> Any:
    """``torch.unique`` of integers."""
    if not isinstance(index, Index) or not index.is_vector or dim is not None:
        raise program.refuse(
            "distinct values of floats: which rows there are must follow from integer inputs"
        )
    first, place = distinct(program, index.name)
    rows = program.spaces[first]
    results = [Index(np.array(program.take(index.name, first), dtype=object), rows)]
    if return_inverse:
        results.append(Index(np.array(place, dtype=object), index.rows))
    if return_counts:
        count = program.array("count", (place, rows), rows)
        results.append(Index(np.array(count, dtype=object), rows))
    return tuple(results) if len(results) > 1 else results[0]


def coalesce(
    program: Program,
    edge_index: Any,
    edge_attr: Any = "",
    num_nodes: Any = None,
    reduce: str = "sum",
    is_sorted: bool = False,
    sort_by_row: bool = True,
) -> Any:
    """``utils.coalesce``: edges in order, those with equal ends as one."""
    edges = edges_of(program, edge_index)
    nodes = number_of_nodes(program, edges, num_nodes)
    major, minor = edges.ends if sort_by_row else edges.ends[::-1]
    scaled = program.combine("mul", major, nodes, edges.rows)
    first, place = distinct(program, program.combine("add", scaled, minor, edges.rows))
    parts = np.empty(2, dtype=object)
    parts[:] = [program.take(end, first) for end in edges.ends]
    merged = program.pair(Index(parts, program.spaces[first], axis=1))
    if isinstance(edge_attr, str):
        return merged
    if isinstance(edge_attr, (tuple, list)):
        return merged, [_merged(program, item, place, merged.rows, reduce) for item in edge_attr]
    return merged, None if edge_attr is None else _merged(program, edge_attr, place, merged.rows, reduce)


def _merged(program: Program, value: Any, place: str, rows: str, reduce: str) -> Rows:
    return program.scatter(as_rows(program, value), place, rows, REDUCTIONS[reduce])


def to_undirected(
    program: Program, edge_index: Any, edge_attr: Any = "", num_nodes: Any = None, reduce: str = "sum"
) -> Any:
    """``utils.to_undirected``: every edge both ways, coalesced."""
    if isinstance(edge_attr, int):
        edge_attr, num_nodes = "", edge_attr
    edges = edges_of(program, edge_index)
    nodes = number_of_nodes(program, edges, num_nodes)
    both = cat(program, [edges, program.pair(Index(edges.parts[::-1].copy(), edges.rows, axis=1))], 1)
    if isinstance(edge_attr, (tuple, list)):
        values: Any = [cat(program, [item, item], 0) for item in edge_attr]
    elif isinstance(edge_attr, str) or edge_attr is None:
        values = edge_attr
    else:
        values = cat(program, [edge_attr, edge_attr], 0)
    return coalesce(program, both, values, nodes, reduce)


def index_sort(program: Program, inputs: Any, max_value: Any = None, stable: bool = False) -> Any:
    """``utils.index_sort``."""
    return sort(program, inputs)


def pointers(program: Program, index: Any, size: Any, out_int32: bool = False) -> Index:
    """Where the entries 0, 1, ... of a sorted index begin, and where the last end."""
    index = vector(program, index)
    into = program.size_of(size)
    counts = program.array("cumsum", (program.array("count", (index.name, into), into),), into)
    array = program.join([program.values([0]), counts])
    return Index(np.array(array, dtype=object), program.spaces[array])


# ---------------------------------------------------------------- what is off in eval mode


def _kept_edges(program: Program, edge_index: Any, *_: Any, **__: Any) -> Any:
    edges = edges_of(program, edge_index)
    return edges, filled(program, [Size(edges.rows)], True, torch.bool)


def _kept_nodes(
    program: Program, edge_index: Any, p: float = 0.5, num_nodes: Any = None, *_: Any, **__: Any
) -> Any:
    edges, mask = _kept_edges(program, edge_index)
    nodes = number_of_nodes(program, edges, num_nodes)
    return edges, mask, filled(program, [nodes], True, torch.bool)


OFF: dict[Any, Rule] = {
    utils.dropout_edge: _kept_edges,
    utils.dropout_path: _kept_edges,
    utils.dropout_node: _kept_nodes,
}
"""Functions that change nothing where ``training`` is false."""


FUNCTIONS: dict[Any, Rule] = {
    **dict.fromkeys(ir.ROLE_MARKERS.values(), identity),
    graph_ops.set_item: set_item,
    graph_ops.dtype_of: dtype_of,
    graph_ops.device_of: device_of,
    graph_ops.sorted_index: identity,
    gcn_norm: lower_gcn_norm,
    maybe_num_nodes: number_of_nodes,
    utils.remove_self_loops: remove_self_loops,
    utils.add_self_loops: _adds_loops("add"),
    utils.add_remaining_self_loops: _adds_loops("remaining"),
    utils.get_laplacian: lower_laplacian,
    utils.scatter: scatter,
    utils.softmax: segment_softmax,
    utils.degree: degree,
    utils.one_hot: one_hot,
    utils.spmm: lower_spmm,
    utils.to_edge_index: to_edge_index,
    utils.mask_to_index: mask_to_index,
    utils.coalesce: coalesce,
    utils.to_undirected: to_undirected,
    utils.index_sort: index_sort,
}
NAMES: dict[str, Rule] = {
    "one_hot": torch_one_hot,
    "index_add": index_add,
    "scatter_add": scatter_add,
    "scatter_reduce": scatter_reduce,
    "bincount": bincount,
    "argsort": argsort,
    "sort": sort,
    "unique": unique,
    "convert_indices_from_coo_to_csr": pointers,
    "cumsum": cumsum,
    "nonzero": nonzero,
    "where": torch_where,
}
