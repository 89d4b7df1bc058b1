"""The same models on sorted sparse matrices: what an expert writes by hand in torch for speed.

PyG gathers a message for each edge. Here neighbours are summed by ``torch.sparse`` products of CSR
matrices (MKL on x86), normalisation is done once per graph, and a product with a weight comes before or
after the sum, whichever makes the sum narrower.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_geometric.nn import APPNP
from torch_geometric.nn.conv.gcn_conv import gcn_norm

from benchmarks.accuracy.models import GIN
from gnnquant.demo_models import GAT, GCN, SAGE, Propagated

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch_geometric.nn import GATConv

    from gnnquant import SmoothPropagation


class SortedModel:
    """A model whose graph is a CSR matrix.

    Args:
        model: In eval mode, of a type that ``FORMS`` has.
        edge_index: Edges int64 [2, E] of the graph.
        nodes: Their number N.
        dense: Type of the products with weights; sums over neighbours are float32.
    """

    def __init__(
        self, model: nn.Module, edge_index: Tensor, nodes: int, dense: torch.dtype = torch.float32
    ) -> None:
        self.model = model
        self.nodes = nodes
        self.dense = dense
        self._linear: dict[Tensor, tuple[Tensor, Tensor | None]] = {}
        self._forward, prepare = FORMS[type(model)]
        prepare(self, edge_index)

    def __call__(self, x: Tensor) -> Tensor:
        """Class scores [N, C] of features [N, F]."""
        with torch.inference_mode():
            return self._forward(self, x)

    def sort(self, edge_index: Tensor, weight: Tensor | None) -> None:
        """Set ``matrix``, its row i the neighbours from which i receives, and its parts."""
        src, dst = edge_index
        order = torch.argsort(dst, stable=True)
        self.degree = torch.bincount(dst, minlength=self.nodes)
        self.indptr = F.pad(self.degree.cumsum(0), (1, 0))
        self.src, self.dst = src[order], dst[order]
        self.matrix = self.sparse(
            torch.ones(src.numel(), device=src.device) if weight is None else weight[order]
        )

    def sparse(self, values: Tensor) -> Tensor:
        """The sorted edges as a matrix [N, N] with the given values."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")
            return torch.sparse_csr_tensor(
                self.indptr, self.src, values, (self.nodes, self.nodes), check_invariants=False
            )

    def linear(self, layer: nn.Module, x: Tensor, bias: bool = True) -> Tensor:
        """``x W^T + b`` in the type of dense products, as float32."""
        weight = layer.weight
        assert isinstance(weight, Tensor)
        if weight not in self._linear:
            own = layer.bias
            cast = None if own is None else own.detach().to(self.dense)  # type: ignore[operator]
            self._linear[weight] = weight.detach().to(self.dense), cast
        w, b = self._linear[weight]
        return F.linear(x.to(self.dense), w, b if bias else None).float()

    def propagated(self, layer: nn.Module, x: Tensor, matrix: Tensor) -> Tensor:
        """``A x W^T``, without bias, in the cheaper order."""
        weight = layer.weight
        assert isinstance(weight, Tensor)
        if weight.size(0) <= weight.size(1):
            return matrix @ self.linear(layer, x, bias=False)
        return self.linear(layer, matrix @ x, bias=False)


def _normalised(it: SortedModel, edge_index: Tensor) -> None:
    it.sort(*gcn_norm(edge_index, None, it.nodes))


def _gcn(it: SortedModel, x: Tensor) -> Tensor:
    model = it.model
    assert isinstance(model, GCN)
    x = (it.propagated(model.conv1.lin, x, it.matrix) + model.conv1.bias).relu_()
    return it.propagated(model.conv2.lin, x, it.matrix) + model.conv2.bias


def _averaged(it: SortedModel, edge_index: Tensor) -> None:
    degree = torch.bincount(edge_index[1], minlength=it.nodes).clamp(min=1)
    it.sort(edge_index, 1.0 / degree[edge_index[1]])


def _sage(it: SortedModel, x: Tensor) -> Tensor:
    model = it.model
    assert isinstance(model, SAGE)

    def conv(layer: nn.Module, x: Tensor) -> Tensor:
        own, neighbours = layer.get_submodule("lin_r"), layer.get_submodule("lin_l")
        bias = neighbours.bias
        assert isinstance(bias, Tensor)
        return it.propagated(neighbours, x, it.matrix).add_(it.linear(own, x)).add_(bias)

    return conv(model.conv2, conv(model.conv1, x).relu_())


def _summed(it: SortedModel, edge_index: Tensor) -> None:
    loops = torch.arange(it.nodes, device=edge_index.device).expand(2, -1)
    it.sort(torch.cat([edge_index, loops], dim=1), None)


def _gin(it: SortedModel, x: Tensor) -> Tensor:
    model = it.model
    assert isinstance(model, GIN)

    def conv(mlp: nn.Module, x: Tensor) -> Tensor:
        first, _, second = mlp.children()
        hidden = it.propagated(first, x, it.matrix)
        return it.linear(second, hidden.add_(first.bias).relu_())  # type: ignore[arg-type]

    return conv(model.conv2.nn, conv(model.conv1.nn, x).relu_())


def _looped(it: SortedModel, edge_index: Tensor) -> None:
    edges = edge_index[:, edge_index[0] != edge_index[1]]
    _summed(it, edges)


def _gat(it: SortedModel, x: Tensor) -> Tensor:
    model = it.model
    assert isinstance(model, GAT)

    def conv(layer: GATConv, x: Tensor) -> Tensor:
        heads, columns = layer.heads, layer.out_channels
        z = it.linear(layer.lin, x, bias=False)
        by_head = z.view(-1, heads, columns)
        scores = (by_head * layer.att_src).sum(-1)[it.src] + (by_head * layer.att_dst).sum(-1)[it.dst]
        scores = F.leaky_relu_(scores, layer.negative_slope)
        lengths = it.degree
        scores -= torch.segment_reduce(scores, "max", lengths=lengths)[it.dst]
        scores = scores.exp_()
        scores /= torch.segment_reduce(scores, "sum", lengths=lengths)[it.dst]
        found = [
            it.sparse(scores[:, head].contiguous()) @ by_head[:, head].contiguous() for head in range(heads)
        ]
        return torch.cat(found, dim=1) + layer.bias

    return conv(model.conv2, F.elu_(conv(model.conv1, x)))


def _propagation(it: SortedModel, x: Tensor) -> Tensor:
    model = it.model
    assert isinstance(model, Propagated)
    h = first = it.linear(model.lin2, it.linear(model.lin1, x).relu_())
    if isinstance(model.propagation, APPNP):
        start = model.propagation.alpha * first
        for _ in range(model.propagation.K):
            h = (it.matrix @ h).mul_(1 - model.propagation.alpha).add_(start)
        return h
    layer: SmoothPropagation = model.propagation  # type: ignore[assignment]
    keep = 1 - (1 + layer.mu) * layer.eta
    for constraint in layer.constraints:
        pulled = (it.matrix @ h).mul_(layer.mu * layer.eta).add_(first, alpha=layer.eta)
        if keep:
            pulled.add_(h, alpha=keep)
        change = pulled - h
        rough = change - it.matrix @ change
        h = pulled.add_(rough, alpha=constraint.correction * float(constraint.multiplier))  # type: ignore[operator, arg-type]
    return h


FORMS: dict[type, tuple[Callable[[SortedModel, Tensor], Tensor], Callable[[SortedModel, Tensor], None]]] = {
    GCN: (_gcn, _normalised),
    SAGE: (_sage, _averaged),
    GIN: (_gin, _summed),
    GAT: (_gat, _looped),
    Propagated: (_propagation, _normalised),
}
"""Type of a model -> its computation, and what becomes of the edges."""
