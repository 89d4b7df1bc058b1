"""Inputs of every kind that a PyG layer takes, for a graph of any size."""

from __future__ import annotations

import warnings

import torch
import torch.nn.functional as F
from torch import Tensor
from torch_geometric import EdgeIndex
from torch_geometric.data import Batch, Data
from torch_geometric.utils import sort_edge_index, to_torch_csr_tensor

FEATURES, HIDDEN, CLASSES = 7, 8, 5
EDGE_FEATURES, RELATIONS, NODE_TYPES, GRAPHS = 3, 4, 3, 4
HYPEREDGES = 9

NODE_KINDS = ["paper", "author"]
EDGE_KINDS = [("paper", "by", "author"), ("author", "wrote", "paper"), ("paper", "cites", "paper")]
METADATA = (NODE_KINDS, EDGE_KINDS)

DEGREES = torch.tensor([2, 5, 9, 6, 2, 1])
"""A histogram of in-degrees, as PNA takes it."""


class Graphs:
    """A random graph, and everything that models want to know about it.

    Args:
        num_nodes: At least 8.
        num_edges: Any number.
        seed: Determines the draw.
        shape: ``usual``: random edges, self-loops, two isolated nodes; ``hub``: every edge ends at node 0;
            ``loops``: every edge is a self-loop; ``isolated``: edges between three nodes only.
    """

    def __init__(self, num_nodes: int, num_edges: int, seed: int, shape: str = "usual") -> None:
        generator = torch.Generator().manual_seed(seed)

        def normal(*size: int) -> Tensor:
            return torch.randn(*size, generator=generator)

        def uniform(*size: int) -> Tensor:
            return torch.rand(*size, generator=generator)

        def integers(high: int, *size: int) -> Tensor:
            return torch.randint(high, size, generator=generator)

        def kinds(high: int, count: int) -> Tensor:
            """Numbers below ``high``, each of which occurs if there is room."""
            drawn = integers(high, count)
            drawn[:high] = torch.arange(high)[:count]
            return drawn

        n, e = num_nodes, num_edges
        self.num_nodes = n
        reachable = 3 if shape == "isolated" else n - 2
        self.edge_index = integers(reachable, 2, e)
        if shape == "hub":
            self.edge_index[1] = 0
        elif shape == "loops":
            self.edge_index[1] = self.edge_index[0]
        elif shape == "usual" and e > 11:
            self.edge_index[:, 3], self.edge_index[:, 11] = 5, 2
        self.sorted_edges: Tensor = sort_edge_index(self.edge_index, sort_by_row=False)
        self.edges_object = EdgeIndex(self.edge_index, sparse_size=(n, n))
        self.label_edges = integers(n, 2, e // 2)
        self.edge_weight = uniform(e) + 0.1
        self.edge_attr = normal(e, EDGE_FEATURES)
        self.edge_type = kinds(RELATIONS, e)
        self.pseudo = uniform(e, 2)
        self.mesh = torch.stack([torch.arange(n).repeat_interleave(4), integers(n, 4 * n)])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "sparse CSR tensor support is in beta state"
            self.adjacency = to_torch_csr_tensor(self.edge_index.flip(0), size=(n, n))

        self.x, self.x0, self.wide = normal(n, FEATURES), normal(n, FEATURES), normal(n, HIDDEN)
        self.padded = torch.cat([self.x, self.x.new_zeros(max(0, 40 - n), FEATURES)])
        """At least 40 rows, for models that are made for a number of nodes."""
        self.dense_adjacency = torch.zeros(n, n).index_put(
            (self.edge_index[0], self.edge_index[1]), torch.ones(())
        )
        self.pos, self.normals = normal(n, 3), F.normalize(normal(n, 3), dim=-1)
        self.history = normal(n, 3, HIDDEN)
        self.y, self.color, self.node_type = integers(CLASSES, n), integers(5, n), kinds(NODE_TYPES, n)
        self.sorted_type = self.node_type.sort().values
        self.mask = uniform(n) < 0.5
        self.batch = kinds(GRAPHS, n).sort().values
        self.num_graphs = GRAPHS
        self.graph_attr = normal(GRAPHS, 2)
        self.clusters = kinds(n // 2, n)

        members = {"paper": n, "author": n // 2}
        self.x_dict = {kind: normal(count, FEATURES) for kind, count in members.items()}
        self.type_dict = {kind: integers(3, count) for kind, count in members.items()}
        self.edge_index_dict = {
            (source, name, target): torch.stack([integers(members[source], e), integers(members[target], e)])
            for source, name, target in EDGE_KINDS
        }
        self.hyperedges = torch.stack([integers(n, e), kinds(HYPEREDGES, e)])
        self.hyperedge_weight = uniform(HYPEREDGES)

    @property
    def pair(self) -> tuple[Tensor, Tensor]:
        """Features of sources and of fewer destinations."""
        return self.x, self.x[: self.num_nodes - 2]

    @property
    def data(self) -> Data:
        """The whole graph as one object."""
        return Data(
            x=self.x,
            edge_index=self.edge_index,
            edge_attr=self.edge_attr,
            edge_weight=self.edge_weight,
            y=self.y,
        )

    @property
    def data_batch(self) -> Batch:
        """Two graphs in one object: this one, and its first half without edges."""
        half = Data(x=self.x[::2], edge_index=self.edge_index[:, :0])
        return Batch.from_data_list([Data(x=self.x, edge_index=self.edge_index), half])


def example() -> Graphs:
    """The graph that models are traced, calibrated and compiled with."""
    return Graphs(20, 64, seed=0)


def second() -> Graphs:
    """A graph of another size."""
    return Graphs(33, 150, seed=1)


def hard() -> dict[str, Graphs]:
    """Small graphs with rough edges, by name."""
    return {
        "hub": Graphs(12, 40, seed=2, shape="hub"),
        "self-loops": Graphs(12, 9, seed=3, shape="loops"),
        "isolated nodes": Graphs(15, 10, seed=4, shape="isolated"),
        "no edges": Graphs(9, 0, seed=5),
    }
