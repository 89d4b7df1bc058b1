"""Every error that gnnquant raises on purpose.

Each message names what was wrong, where, and what to do about it.
"""


class GnnQuantError(Exception):
    """Base of all errors raised by gnnquant."""


class TraceError(GnnQuantError):
    """The model could not be traced, or its trace differs from the eager model."""


class PassError(GnnQuantError):
    """A pass was given, or left behind, a graph that breaks its promises."""


class FineTuneError(GnnQuantError):
    """Fine-tuning or calibration was given something that it cannot train on."""


class BackendError(GnnQuantError):
    """A node cannot be lowered to the requested target; the message names it."""


class ArtifactError(GnnQuantError):
    """A saved artifact is truncated, altered, too new or for another machine."""


class InputError(GnnQuantError, ValueError):
    """An input of a call has the wrong type, shape, range or content."""
