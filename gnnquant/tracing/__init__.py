"""From a user's model and an example to one graph with explicit messages and aggregates.

``trace`` runs the model on real tensors and records every call (``tracer``), in train and in eval mode
(``merge``), builds a ``TracedModule`` (``module``) over a private copy of the parameters (``copies``),
and checks it against the model on a second graph (``check``, ``examples``).
"""

from gnnquant.tracing.examples import second_example, synthesize_inputs
from gnnquant.tracing.frontend import trace, trace_with_graphs
from gnnquant.tracing.module import TracedModule

__all__ = ["TracedModule", "second_example", "synthesize_inputs", "trace", "trace_with_graphs"]
