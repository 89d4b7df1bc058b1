"""Running compiled models: needs numpy and the TVM runtime, neither torch nor the compiler."""

from gnnquant.runtime.artifact import load
from gnnquant.runtime.graph import GraphHandle
from gnnquant.runtime.model import CompiledModel

__all__ = ["CompiledModel", "GraphHandle", "load"]
