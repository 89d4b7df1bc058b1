"""Numbers that remember where they came from.

``x.size(0)`` is 20 on the example graph and 33 on the next one. A trace must not bake in the 20, so
every size that the model reads while it is traced is a ``SymbolicInt``: an ``int`` with the value 20
(``isinstance``, ``view``, ``range`` ... simply work) whose arithmetic also writes nodes into the graph.

Arithmetic is followed through operators, ``round``, ``abs``, the functions of ``math`` and products with
float attributes of modules (``self.ratio * n``). C code that takes a plain number out of the object
(``items[:n]``, NumPy, and also ``0.5 * n``, where Python asks the float first) loses the trail; where
Python tells, that is noted, and the second-graph check catches the rest. ``n * 0.5`` is followed.
"""

from __future__ import annotations

import math
import operator
import threading
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import fx

    from gnnquant.tracing.tracer import Recorder


class _Current(threading.local):
    """The recorder at work in this thread; other threads never see it."""

    recorder: Recorder | None = None


_CURRENT = _Current()


def current_recorder() -> Recorder | None:
    """The recorder that listens in this thread right now, or None (also inside of leaves)."""
    recorder = _CURRENT.recorder
    return None if recorder is None or recorder.paused else recorder


def set_current_recorder(recorder: Recorder | None) -> None:
    """Install ``recorder`` for this thread; None removes it."""
    _CURRENT.recorder = recorder


class SymbolicNumber:
    """Base of ``SymbolicInt`` and ``SymbolicFloat``: a number and the node that computes it."""

    node: fx.Node
    owner: Recorder


class SymbolicInt(int, SymbolicNumber):
    """An ``int`` read from a traced tensor."""

    def __hash__(self) -> int:
        return int.__hash__(self)

    def __bool__(self) -> bool:
        _note_branch("bool()")
        return int.__bool__(self)

    def __float__(self) -> float:
        _note_lost("float")
        return int.__float__(self)

    def __reduce__(self) -> tuple[Any, ...]:
        return int, (int.__int__(self),)

    def __deepcopy__(self, memo: dict[int, Any]) -> int:
        return int.__int__(self)


class SymbolicFloat(float, SymbolicNumber):
    """A ``float`` computed from traced sizes or read with ``item()``."""

    def __hash__(self) -> int:
        return float.__hash__(self)

    def __bool__(self) -> bool:
        _note_branch("bool()")
        return float.__bool__(self)

    def __int__(self) -> int:
        _note_lost("int")
        return float.__int__(self)

    def __reduce__(self) -> tuple[Any, ...]:
        return float, (float.__float__(self),)

    def __deepcopy__(self, memo: dict[int, Any]) -> float:
        return float.__float__(self)


class ModelFloat(float):
    """Stands for a ``float`` attribute of a module while it is traced.

    ``self.ratio * x.size(0)`` asks the left operand first, and a plain float would take the plain number
    out of the size.
    """

    def __reduce__(self) -> tuple[Any, ...]:
        return float, (float.__float__(self),)

    def __deepcopy__(self, memo: dict[int, Any]) -> float:
        return float.__float__(self)


class TrainingFlag(int):
    """Stands for ``module.training`` while a model is traced.

    Handing it on (``F.dropout(x, training=self.training)``) keeps the toggle; branching on it is noted.
    ``bool`` cannot be subclassed, hence an ``int``.
    """

    path: str = ""

    def __bool__(self) -> bool:
        recorder = current_recorder()
        if recorder is not None:
            recorder.note("training-branch", f"a branch on {self.path or 'model'}.training")
        return int.__bool__(self)

    def __eq__(self, other: object) -> bool:
        return bool(self) == other

    def __hash__(self) -> int:
        return int.__hash__(self)

    def __repr__(self) -> str:
        return repr(int.__bool__(self))

    def __reduce__(self) -> tuple[Any, ...]:
        return bool, (int.__bool__(self),)

    def __deepcopy__(self, memo: dict[int, Any]) -> bool:
        return int.__bool__(self)


def plain_number(value: Any) -> Any:
    """``value`` without its symbolic or flag class; anything else is returned unchanged."""
    if isinstance(value, TrainingFlag):
        return int.__bool__(value)
    if isinstance(value, SymbolicInt):
        return int.__int__(value)
    if isinstance(value, (SymbolicFloat, ModelFloat)):
        return float.__float__(value)
    return value


def _note_branch(what: str) -> None:
    recorder = current_recorder()
    if recorder is not None:
        recorder.note("size-branch", f"a size was tested with {what}")


def _note_lost(kind: str) -> None:
    recorder = current_recorder()
    if recorder is not None:
        recorder.note("number-lost", f"a size turned into a plain Python {kind}")


def _emit(function: Callable[..., Any], *operands: Any) -> Any:
    """Compute ``function`` on the plain values and, while recording, write the node too."""
    result = function(*map(plain_number, operands))
    recorder = current_recorder()
    if recorder is None:
        return result
    return recorder.number(result, function, operands)


def _binary(function: Callable[[Any, Any], Any], reflected: bool) -> Callable[..., Any]:
    def method(self: Any, other: Any) -> Any:
        # A tensor answers through its own reflected method, where the tracer sees it.
        if isinstance(other, torch.Tensor) or not isinstance(other, (int, float)):
            return NotImplemented
        return _emit(function, other, self) if reflected else _emit(function, self, other)

    return method


def _unary(function: Callable[..., Any]) -> Callable[..., Any]:
    def method(self: Any, *rest: Any) -> Any:
        return _emit(function, self, *rest)

    return method


def _comparison(function: Callable[[Any, Any], Any]) -> Callable[..., Any]:
    def method(self: Any, other: Any) -> Any:
        if isinstance(other, torch.Tensor) or not isinstance(other, (int, float)):
            return NotImplemented
        _note_branch(f"'{function.__name__}'")
        return function(plain_number(self), plain_number(other))

    return method


def _model_binary(function: Callable[[Any, Any], Any]) -> Callable[..., Any]:
    def method(self: ModelFloat, other: Any) -> Any:
        if isinstance(other, SymbolicNumber):
            return _emit(function, plain_number(self), other)
        if not isinstance(other, (int, float)):
            return NotImplemented
        result = function(plain_number(self), plain_number(other))
        return ModelFloat(result) if type(result) is float else result

    return method


_BINARY = ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow")
_COMPARISONS = ("lt", "le", "gt", "ge", "eq", "ne")
_UNARY: dict[str, Callable[..., Any]] = {
    "neg": operator.neg,
    "pos": operator.pos,
    "abs": abs,
    "ceil": math.ceil,
    "floor": math.floor,
    "trunc": math.trunc,
    "round": round,
}

for _class in (SymbolicInt, SymbolicFloat):
    for _name in _BINARY:
        setattr(_class, f"__{_name}__", _binary(getattr(operator, _name), reflected=False))
        setattr(_class, f"__r{_name}__", _binary(getattr(operator, _name), reflected=True))
    for _name in _COMPARISONS:
        setattr(_class, f"__{_name}__", _comparison(getattr(operator, _name)))
    for _name, _function in _UNARY.items():
        setattr(_class, f"__{_name}__", _unary(_function))
for _name in _BINARY:
    setattr(ModelFloat, f"__{_name}__", _model_binary(getattr(operator, _name)))


# --- builtins that would lose the trail -------------------------------------------------------------


class _ClassStandIn(type):
    """Makes a class that replaces a builtin type: ``isinstance``, ``==`` and calls keep working."""

    original: type

    def __instancecheck__(cls, instance: Any) -> bool:
        return isinstance(instance, cls.original)

    def __subclasscheck__(cls, subclass: type) -> bool:
        return issubclass(subclass, cls.original)

    def __eq__(cls, other: object) -> bool:
        return other is cls or other is cls.original

    def __hash__(cls) -> int:
        return hash(cls.original)

    def __getattr__(cls, name: str) -> Any:
        return getattr(cls.original, name)


class IntStandIn(metaclass=_ClassStandIn):
    """``int``: keeps ``int(x.max()) + 1`` and ``int(0.5 * n)`` symbolic."""

    original = int

    def __new__(cls, *args: Any) -> Any:
        """A number, or the node that truncates one."""
        if current_recorder() is not None and len(args) == 1:
            value = args[0]
            if isinstance(value, torch.Tensor):
                value = value.item()
            if isinstance(value, SymbolicInt):
                return value
            if isinstance(value, SymbolicFloat):
                return _emit(int, value)
            return int(value)
        return int(*args)


class FloatStandIn(metaclass=_ClassStandIn):
    """``float``: keeps ``float(x.mean())`` and ``float(n)`` symbolic."""

    original = float

    def __new__(cls, *args: Any) -> Any:
        """A number, or the node that converts one."""
        if current_recorder() is not None and len(args) == 1:
            value = args[0]
            if isinstance(value, torch.Tensor):
                value = value.item()
            if isinstance(value, SymbolicFloat):
                return value
            if isinstance(value, SymbolicInt):
                return _emit(float, value)
            return float(value)
        return float(*args)


class RangeStandIn(metaclass=_ClassStandIn):
    """``range``: a loop over a graph's size is unrolled, and noted."""

    original = range

    def __new__(cls, *args: Any) -> Any:
        """An ordinary ``range``."""
        recorder = current_recorder()
        if recorder is not None and any(isinstance(a, SymbolicInt) for a in args):
            recorder.note("loop", "a loop over a size was unrolled")
        return range(*map(plain_number, args))


def _len(value: Any) -> int:
    if current_recorder() is not None and isinstance(value, torch.Tensor) and value.dim() > 0:
        return value.size(0)
    return len(value)


def _extremum(function: Callable[..., Any]) -> Callable[..., Any]:
    def stand_in(*args: Any, **kwargs: Any) -> Any:
        if current_recorder() is None or kwargs:
            return function(*args, **kwargs)
        values = args
        if len(args) == 1 and isinstance(args[0], (tuple, list)):
            values = tuple(args[0])
        if len(values) > 1 and any(isinstance(v, SymbolicNumber) for v in values):
            return _emit(function, *values)
        return function(*args)

    return stand_in


class MathStandIn(ModuleType):
    """``math``: keeps ``math.sqrt(n)`` symbolic."""

    def __getattr__(self, name: str) -> Any:
        """The attribute of ``math``; functions are followed."""
        value = getattr(math, name)
        if not callable(value):
            return value

        def function(*args: Any, **kwargs: Any) -> Any:
            known = current_recorder() is not None and not kwargs
            if known and any(isinstance(a, SymbolicNumber) for a in args):
                return _emit(value, *args)
            return value(*args, **kwargs)

        return function


MATH_STAND_IN = MathStandIn("math")

BUILTIN_STAND_INS: dict[str, Any] = {
    "int": IntStandIn,
    "float": FloatStandIn,
    "range": RangeStandIn,
    "len": _len,
    "max": _extremum(max),
    "min": _extremum(min),
}
"""Name -> replacement, put into the globals of PyG's and the user's modules while a trace runs."""
