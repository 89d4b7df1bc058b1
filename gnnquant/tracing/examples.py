"""Example graphs: one made up from the model alone, and a second one that differs in size.

Made-up graphs hold what real ones hold and tests forget: self-loops, duplicate edges, a hub with many
neighbours, and nodes without any edge. All of it is determined by the seed.
"""

from __future__ import annotations

import dataclasses
import inspect
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch_geometric import EdgeIndex
from torch_geometric.data import Data
from torch_geometric.nn import MessagePassing
from torch_geometric.nn.dense.linear import Linear as PyGLinear

from gnnquant.errors import TraceError
from gnnquant.tracing.copies import fixed_randomness, private_copy
from gnnquant.tracing.signature import Fields, call, forward_signature

if TYPE_CHECKING:
    from collections.abc import Sequence

REMEDY = "pass example_inputs=(x, edge_index, ...) with tensors of your own data"

_DATA_NAMES = ("data", "batch", "graph")
"""What users call a ``forward`` parameter that takes a whole ``Data``."""
_NUM_NODES, _NUM_EDGES = 20, 64
_SPARSE_LAYOUTS = (torch.sparse_coo, torch.sparse_csr, torch.sparse_csc)


def random_edges(num_nodes: int, num_edges: int, generator: torch.Generator) -> Tensor:
    """Edges [2, E] with a self-loop, a duplicate and a hub; the last two of many nodes stay isolated."""
    reachable = num_nodes - 2 if num_nodes > 4 else num_nodes
    edges = torch.randint(max(reachable, 1), (2, num_edges), generator=generator)
    if num_edges >= 8:
        edges[:, 1] = edges[:, 0]  # a duplicate
        edges[1, 2] = edges[0, 2]  # a self-loop
        edges[1, 3 : 3 + num_edges // 5] = 0  # a hub
    return edges


# --- an example from the model alone ----------------------------------------------------------------


def synthesize_inputs(model: nn.Module) -> dict[str, Any]:
    """Make a small random graph that ``model`` accepts.

    Only for models whose ``forward`` takes ``x``, ``edge_index`` and possibly ``edge_weight``,
    ``edge_attr`` and ``batch``, or one ``data`` that holds them; parameters with a default are left out.
    The width of ``x`` is the first width that the model runs with, among the ``in_channels`` of its layers
    in order of registration; that of ``edge_attr`` is the first ``edge_dim``.

    Returns:
        The inputs by parameter name: ``x`` [20, F] float, ``edge_index`` [2, 64] int64, ...

    Raises:
        TraceError: when the inputs cannot be guessed; it says which, and to pass ``example_inputs``.
    """
    signature = forward_signature(model)
    required = [
        name
        for name, p in signature.parameters.items()
        if p.default is inspect.Parameter.empty
        and p.kind not in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    ]
    known = ("x", "edge_index", "edge_weight", "edge_attr", "batch")
    holder = required[0] if len(required) == 1 and required[0] in _DATA_NAMES else None
    if holder is not None:
        has_edge_attr = any(_states_edge_width(module) for module in model.modules())
        required = [name for name in known if name != "edge_attr" or has_edge_attr]
    unknown = [name for name in required if name not in known]
    if unknown or not {"x", "edge_index"} <= set(required):
        raise TraceError(
            f"no example can be made for {type(model).__name__}.forward({', '.join(required)}): only "
            "x and edge_index, with edge_weight, edge_attr and batch, or one data object, are understood; "
            f"{REMEDY}"
        )
    generator = torch.Generator().manual_seed(0)
    floating = next((p for p in model.parameters() if p.is_floating_point()), torch.zeros(0))
    inputs: dict[str, Any] = {
        "edge_index": random_edges(_NUM_NODES, _NUM_EDGES, generator),
        "edge_weight": torch.rand(_NUM_EDGES, generator=generator, dtype=floating.dtype) + 0.1,
        "batch": torch.arange(_NUM_NODES) // (_NUM_NODES // 2),
    }
    if "edge_attr" in required:
        edge_width = _edge_width(model)
        inputs["edge_attr"] = torch.randn(_NUM_EDGES, edge_width, generator=generator, dtype=floating.dtype)
    inputs = {name: value.to(floating.device) for name, value in inputs.items() if name in required}
    failure: Exception | None = None
    for width in _candidate_widths(model):
        inputs["x"] = torch.randn(_NUM_NODES, width, generator=generator, dtype=floating.dtype).to(
            floating.device
        )
        ordered = {name: inputs[name] for name in required}
        if holder is not None:
            ordered = {holder: Data(**ordered)}
        try:
            with fixed_randomness(0), torch.no_grad():
                copied = private_copy(model)
                copied.eval()
                call(copied, signature, ordered)
        except TraceError:
            raise
        except Exception as error:
            failure = failure or error
        else:
            return ordered
    if failure is None:
        raise TraceError(
            f"the width of x cannot be found: no layer of {type(model).__name__} states a plain "
            f"in_channels or in_features; {REMEDY}"
        )
    raise TraceError(
        f"{type(model).__name__} failed on a made-up graph ({type(failure).__name__}: {failure}); {REMEDY}"
    ) from failure


def _candidate_widths(model: nn.Module) -> list[int]:
    """Input widths stated by the model's layers: by registration, outer layers before inner ones."""
    widths: dict[int, None] = {}
    for module in model.modules():
        if not isinstance(module, (MessagePassing, nn.Linear, PyGLinear)):
            width = getattr(module, "in_channels", None)
        else:
            width = getattr(module, "in_channels", getattr(module, "in_features", None))
        if isinstance(width, (tuple, list)) and len(set(width)) == 1:
            width = width[0]
        if isinstance(width, int) and width > 0:
            widths[width] = None
    # A function of both ends of an edge (EdgeConv) states twice the width.
    return list(dict.fromkeys([*widths, *(width // 2 for width in widths if width % 2 == 0)]))


def _edge_width(model: nn.Module) -> int:
    for module in model.modules():
        width = _states_edge_width(module)
        if width:
            return width
    raise TraceError(
        "the width of edge_attr cannot be found: no layer of "
        f"{type(model).__name__} states an edge_dim; {REMEDY}"
    )


def _states_edge_width(module: nn.Module) -> int:
    """The width of edge features that a layer states, 0 where it does not."""
    widths = (getattr(module, name, None) for name in ("edge_dim", "in_edge_channels"))
    return next((width for width in widths if isinstance(width, int) and width > 0), 0)


# --- a second example -------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Leaf:
    """One tensor or number of the inputs, with the keys that lead to it."""

    path: tuple[Any, ...]
    value: Any

    @property
    def name(self) -> str:
        return "_".join(str(key) for key in self.path).lower()

    @property
    def is_edge(self) -> bool:
        """Whether its name says that it belongs to edges (hyperedges count as nodes)."""
        return "edge" in self.name and "hyperedge" not in self.name

    @property
    def is_index(self) -> bool:
        """Whether it holds pairs of node numbers, [2, K]."""
        value = self.value
        return (
            isinstance(value, Tensor)
            and value.layout == torch.strided
            and value.dtype == torch.int64
            and value.dim() == 2
            and value.size(0) == 2
        )


def second_example(
    example_inputs: dict[str, Any], seed: int = 1, *, same_graphs: bool = False
) -> dict[str, Any]:
    """Draw inputs of the same kind for another graph: other numbers of nodes and edges.

    The number of nodes N is the length of ``x`` (else of the first 2-D float tensor), that of edges the
    length of an int64 [2, E] tensor. Node- and edge-level tensors get new rows, drawn from the old ones
    with noise that keeps the dtype and the range of every column (non-negative stays so). Index tensors
    get new pairs, with isolated nodes, self-loops and duplicates; sorted ``batch`` vectors stay sorted;
    square sparse matrices become others of the same layout; a number called ``num_nodes`` follows N.
    Everything else is passed on unchanged.

    Args:
        example_inputs: inputs by parameter name; tuples, lists, dicts and ``Fields`` are looked into.
        seed: determines the draw.
        same_graphs: whether ``batch`` goes on to name as many graphs as it does; otherwise one more.
    """
    return _Redraw(example_inputs, seed, same_graphs).run()


def doubled_example(example_inputs: dict[str, Any]) -> dict[str, Any]:
    """The disjoint union of the example with itself.

    A second graph for models that are picky about structure: sorted edges stay sorted, and ratios of
    sizes and ranges of types stay as they were.
    """
    return _Doubling(example_inputs, seed=0).run()


class _Redraw:
    """Draws a second example; one instance for one example."""

    def __init__(self, example: dict[str, Any], seed: int, same_graphs: bool = False) -> None:
        self.example = example
        self.generator = torch.Generator().manual_seed(seed)
        self.leaves = list(_leaves(example, ()))
        self.fixed_batch = same_graphs or any("batch_size" in leaf.name for leaf in self.leaves)
        self.entities = self._entity_sizes()
        edge_sizes = {leaf.value.size(1) for leaf in self.leaves if leaf.is_index}
        self.edge_sizes = edge_sizes - set(self.entities)
        self.ambiguous = edge_sizes & set(self.entities)
        taken = set(self.entities) | edge_sizes
        self.new_nodes = {n: self._other_size(n, n // 2 + 3, taken) for n in self.entities}
        for leaf in self.leaves:
            if isinstance(leaf.value, Tensor) and self._is_batch(leaf) and leaf.value.numel():
                graphs = int(leaf.value.max()) + 1
                if graphs in self.new_nodes and graphs != leaf.value.size(0):  # rows by graph
                    self.new_nodes[graphs] = self._other_graphs(graphs)
        self.new_edges = {e: self._other_size(e, e + 7, taken) for e in sorted(edge_sizes)}

    def run(self) -> dict[str, Any]:
        """The new inputs."""
        result: dict[str, Any] = self._rebuild(self.example, ())
        return result

    def _entity_sizes(self) -> list[int]:
        """Numbers of nodes (of every type), that of ``x`` first."""
        dense = [
            leaf
            for leaf in self.leaves
            if isinstance(leaf.value, Tensor)
            and not leaf.is_index
            and leaf.value.layout == torch.strided
            and leaf.value.dim() > 0
            and leaf.path[-1] != "ptr"
        ]
        index_sizes = {leaf.value.size(1) for leaf in self.leaves if leaf.is_index}
        first = [
            *(leaf for leaf in dense if not {"x", "x_dict"}.isdisjoint(leaf.path)),
            *(leaf for leaf in dense if leaf.value.dim() == 2 and leaf.value.is_floating_point()),
        ]
        nodes = [leaf for leaf in first if not leaf.is_edge]
        home = nodes[:1] or [leaf for leaf in dense if not leaf.is_edge][:1]
        sizes = [leaf.value.size(0) for leaf in home]
        sizes += [
            leaf.value.size(0) for leaf in dense if leaf.value.size(0) not in index_sizes and not leaf.is_edge
        ]
        sizes += [
            size
            for leaf in self.leaves
            if isinstance(leaf.value, Tensor) and leaf.value.layout != torch.strided
            for size in leaf.value.shape
        ]
        return list(dict.fromkeys(size for size in sizes if size > 0))

    def _other_size(self, old: int, more: int, taken: set[int]) -> int:
        new = old + more
        while new in taken:
            new += 1
        taken.add(new)
        return new

    def _other_graphs(self, old: int) -> int:
        return old if self.fixed_batch else old + 1

    def _rebuild(self, value: Any, path: tuple[Any, ...]) -> Any:
        if isinstance(value, dict):
            items = {k: self._rebuild(v, (*path, k)) for k, v in value.items()}
            if isinstance(items.get("ptr"), Tensor) and isinstance(items.get("batch"), Tensor):
                counts = torch.bincount(items["batch"])
                items["ptr"] = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
            return value.like(items) if isinstance(value, Fields) else items
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            return type(value)(*(self._rebuild(v, (*path, i)) for i, v in enumerate(value)))
        if isinstance(value, (tuple, list)):
            return type(value)(self._rebuild(v, (*path, i)) for i, v in enumerate(value))
        leaf = _Leaf(path, value)
        if isinstance(value, Tensor):
            plain = value.as_tensor() if isinstance(value, EdgeIndex) else value.detach()
            return self.tensor(_Leaf(path, plain)).to(value.device)
        if type(value) is int:
            return self.number(leaf)
        return value

    def number(self, leaf: _Leaf) -> int:
        """``num_nodes`` and ``size`` follow the number of nodes."""
        value: int = leaf.value
        if "num_nodes" in leaf.name or not {"size", "dim_size"}.isdisjoint(leaf.path):
            return self.new_nodes.get(value, value)
        return value

    def tensor(self, leaf: _Leaf) -> Tensor:
        """A new tensor in the place of ``leaf``."""
        value: Tensor = leaf.value
        if value.layout != torch.strided:
            return self.sparse(leaf)
        if leaf.is_index:
            return self.index(leaf)
        size = value.size(0) if value.dim() else -1
        if size in self.edge_sizes or (size in self.ambiguous and leaf.is_edge):
            return self.rows(value, self.new_edges[size])
        if size not in self.new_nodes:
            return value
        if value.dim() == 2 and value.size(1) == size and "adj" in leaf.name:
            return self.square(value, self.new_nodes[size])
        fill = self.batch if self._is_batch(leaf) else self.rows
        return fill(value, self.new_nodes[size])

    def _is_batch(self, leaf: _Leaf) -> bool:
        value: Tensor = leaf.value
        if value.dtype != torch.int64 or value.dim() != 1:
            return False
        steps = value.diff()
        return bool((steps >= 0).all()) and ("batch" in leaf.name or bool((steps <= 1).all()))

    def index(self, leaf: _Leaf) -> Tensor:
        """New pairs of node numbers; each row stays within the nodes it points at."""
        old: Tensor = leaf.value
        count = self.new_edges[old.size(1)]
        bounds = [self.new_nodes.get(bound, bound) for bound in self.bounds(leaf)]
        edges = random_edges(min(bounds), count, self.generator)
        for row, bound in enumerate(bounds):
            if bound > min(bounds):
                edges[row] = torch.randint(bound, (count,), generator=self.generator)
        return edges

    def bounds(self, leaf: _Leaf) -> tuple[int, int]:
        """How many nodes there are for the first and the second row of an index tensor."""
        old: Tensor = leaf.value
        key = next((key for key in leaf.path if isinstance(key, tuple) and len(key) == 3), None)
        if key is not None:  # (source type, relation, target type)
            typed = {
                name: other.value.size(0)
                for other in self.leaves
                if isinstance(other.value, Tensor) and other.value.dim() == 2 and not other.is_index
                for name in other.path[1:]
            }
            if key[0] in typed and key[2] in typed:
                return typed[key[0]], typed[key[2]]
        features = self.example.get("x")
        if isinstance(features, (tuple, list)) and list(map(type, features)) == [Tensor, Tensor]:
            return features[0].size(0), features[1].size(0)
        sizes = [int(row.max()) + 1 if row.numel() else 1 for row in old]
        if "hyper" in leaf.name:
            return self.entities[0], next((n for n in sorted(self.entities) if n >= sizes[1]), sizes[1])
        if not self.entities or max(sizes) > self.entities[0]:
            return sizes[0], sizes[1]
        return self.entities[0], self.entities[0]

    def rows(self, old: Tensor, count: int) -> Tensor:
        """``count`` rows drawn from ``old``; measured values get noise, coded ones do not."""
        if old.size(0) == 0:
            return old.new_ones(count, *old.shape[1:])
        picked = torch.randint(old.size(0), (count,), generator=self.generator)
        new = old[picked.to(old.device)].clone()
        if not old.is_floating_point() or bool((old == old.round()).all()):
            return new
        low, high = old.amin(0, keepdim=True), old.amax(0, keepdim=True)
        noise = torch.randn(new.shape, generator=self.generator).to(new) * (high - low) * 0.1
        return torch.minimum(torch.maximum(new + noise, low), high)

    def square(self, old: Tensor, count: int) -> Tensor:
        """A dense adjacency matrix: rows and columns drawn from ``old``."""
        picked = torch.randint(old.size(0), (count,), generator=self.generator).to(old.device)
        return old[picked][:, picked]

    def batch(self, old: Tensor, count: int) -> Tensor:
        """A sorted vector that names every graph of the batch, and one graph more."""
        graphs = self._other_graphs(int(old.max()) + 1)
        extra = torch.randint(graphs, (max(count - graphs, 0),), generator=self.generator)
        return torch.cat([torch.arange(graphs), extra])[:count].sort().values

    def sparse(self, leaf: _Leaf) -> Tensor:
        """Another square adjacency matrix of the same layout."""
        old: Tensor = leaf.value
        if old.dim() != 2 or old.layout not in _SPARSE_LAYOUTS:
            return old
        shape = [self.new_nodes.get(size, size) for size in old.shape]
        stored: Tensor = old.to_sparse_coo().coalesce()  # type: ignore[no-untyped-call]
        index = self.entries(stored.indices(), old.shape, shape)
        values = self.rows(stored.values(), index.size(1))
        matrix: Tensor = torch.sparse_coo_tensor(
            index.to(old.device), values, shape, check_invariants=True
        ).coalesce()
        if old.layout == torch.sparse_csr:
            return matrix.to_sparse_csr()
        return matrix.to_sparse_csc() if old.layout == torch.sparse_csc else matrix

    def entries(self, old: Tensor, _old_shape: Sequence[int], shape: Sequence[int]) -> Tensor:
        """Where another sparse matrix has its entries: [2, K], sorted and unique."""
        count = old.size(1) + 7
        drawn = [torch.randint(n, (count,), generator=self.generator) for n in shape]
        entries: Tensor = torch.unique(torch.stack(drawn), dim=1)
        return entries


class _Doubling(_Redraw):
    """Draws the disjoint union of the example with itself."""

    def _other_size(self, old: int, _more: int, _taken: set[int]) -> int:
        return 2 * old

    def _other_graphs(self, old: int) -> int:
        return old if self.fixed_batch else 2 * old

    def rows(self, old: Tensor, _count: int) -> Tensor:
        return torch.cat([old, old.flip(0) if old.is_floating_point() else old])

    def square(self, old: Tensor, _count: int) -> Tensor:
        return torch.block_diag(old, old).to(old.dtype)  # type: ignore[no-untyped-call]

    def batch(self, old: Tensor, _count: int) -> Tensor:
        if self.fixed_batch:
            return torch.cat([old, old]).sort().values
        return torch.cat([old, old + int(old.max()) + 1])

    def entries(self, old: Tensor, _old_shape: Sequence[int], _shape: Sequence[int]) -> Tensor:
        return torch.cat([old, old + torch.tensor(_old_shape).view(2, 1).to(old)], dim=1)

    def index(self, leaf: _Leaf) -> Tensor:
        old: Tensor = leaf.value
        return torch.cat([old, old + torch.tensor(self.bounds(leaf)).view(2, 1).to(old)], dim=1)


def _leaves(value: Any, path: tuple[Any, ...]) -> list[_Leaf]:
    if isinstance(value, dict):
        return [leaf for k, v in value.items() for leaf in _leaves(v, (*path, k))]
    if isinstance(value, (tuple, list)):
        return [leaf for i, v in enumerate(value) for leaf in _leaves(v, (*path, i))]
    if isinstance(value, EdgeIndex):
        value = value.as_tensor()
    return [_Leaf(path, value)]
