"""From a converted model to the integer graph."""

from gnnquant.passes.lowering.lower import lower

__all__ = ["lower"]
