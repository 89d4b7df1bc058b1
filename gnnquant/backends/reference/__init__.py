"""The oracle: interprets the integer graph in torch, one operation at a time."""

from gnnquant.backends.reference.executor import ReferenceExecutor

__all__ = ["ReferenceExecutor"]
