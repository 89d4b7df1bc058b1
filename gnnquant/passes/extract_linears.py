"""Linear layers become explicit operations on their weight."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from torch import nn

from gnnquant.passes.base import Pass, PassResult
from gnnquant.quantizers import ops

if TYPE_CHECKING:
    from torch import fx


@dataclass(frozen=True)
class ExtractLinears(Pass):
    """Replace calls of linear modules by :func:`gnnquant.quantizers.ops.linear`.

    Given::

        y = call_module[conv.lin](x)                                 [N, K] -> [N, M]

    Result::

        w = get_attr[conv.lin.weight]; b = get_attr[conv.lin.bias]   [M, K], [M]
        y = ops.linear(x, None, w, None, b)                          y = x w^T + b
    """

    name: ClassVar[str] = "extract-linears"
    provides: ClassVar[frozenset[str]] = frozenset({"linears-explicit"})

    def run(self, module: fx.GraphModule) -> PassResult:
        """Rewrite every call of ``torch.nn.Linear`` and of PyG's ``Linear``."""
        from torch_geometric.nn.dense.linear import Linear as PygLinear

        graph = module.graph
        changed = 0
        for node in list(graph.nodes):
            if node.op != "call_module":
                continue
            layer = module.get_submodule(str(node.target))
            if type(layer) not in (nn.Linear, PygLinear):
                continue
            x = _only_argument(node)
            with graph.inserting_before(node):
                weight = _parameter(module, graph, f"{node.target}.weight", node)
                bias = None
                if layer.bias is not None:
                    bias = _parameter(module, graph, f"{node.target}.bias", node)
                out = graph.call_function(ops.linear, (x, None, weight, None, bias))
            out.meta = dict(node.meta, linear=str(node.target))
            node.replace_all_uses_with(out)
            graph.erase_node(node)
            changed += 1
        return PassResult(changed)


def _only_argument(node: fx.Node) -> Any:
    return node.args[0] if node.args else next(iter(node.kwargs.values()))


def _parameter(module: fx.GraphModule, graph: fx.Graph, path: str, like: fx.Node) -> fx.Node:
    node = graph.get_attr(path)
    value = module.get_parameter(path)
    node.meta = dict(
        like.meta, shape=tuple(value.shape), dtype=value.dtype, module_path=path.rpartition(".")[0]
    )
    return node
