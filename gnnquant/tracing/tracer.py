"""Record and run: execute the model on real tensors and write every call into an ``fx.Graph``.

A ``TorchFunctionMode`` sees every torch call. Real tensors flow, so ``isinstance``, ``dim()``, sparse
layouts and data-dependent shapes simply work. Four rules make the record exact:

* A value is known by the identity of its tensor. A call that hands back its own input (dropout in eval
  mode, ``Identity``, ``contiguous``) gets a view of it, so that its node stays in the graph.
* A call that changed a tensor in place (its version counter moved) is kept, used or not.
* Under ``no_grad`` the inputs of a call are detached in the graph, so no gradient appears on replay.
* A tensor that nobody produced becomes a constant, and a note for the error message.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import operator
import sys
from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.overrides import TorchFunctionMode, is_tensor_method_or_property
from torch.utils import _pytree as pytree
from torch.utils.checkpoint import CheckpointFunction

from gnnquant.errors import TraceError
from gnnquant.ir import ROLE_MARKERS
from gnnquant.tracing.graph_ops import AutogradCall, TrainingSwitch, device_of, dtype_of, largest, set_item
from gnnquant.tracing.numbers import (
    FloatStandIn,
    IntStandIn,
    ModelFloat,
    SymbolicFloat,
    SymbolicInt,
    SymbolicNumber,
    TrainingFlag,
    plain_number,
)
from gnnquant.tracing.signature import Fields

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator
    from types import FrameType

    from torch_geometric.nn import MessagePassing

DROPOUT_MODULES: dict[Callable[..., Any], type[nn.Module]] = {
    F.dropout: nn.Dropout,
    F.dropout1d: nn.Dropout1d,
    F.dropout2d: nn.Dropout2d,
    F.dropout3d: nn.Dropout3d,
    F.alpha_dropout: nn.AlphaDropout,
    F.feature_alpha_dropout: nn.FeatureAlphaDropout,
}
"""Functional dropout -> the module that does the same and toggles with ``train()``/``eval()``."""

_OPERATORS: dict[str, tuple[Callable[..., Any], bool]] = {}
"""Method name -> (function of ``operator``, whether the operands are swapped)."""
for _name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul", "and", "or", "xor"):
    _function = getattr(operator, f"__{_name}__")
    _OPERATORS[f"__{_name}__"] = (_function, False)
    _OPERATORS[f"__r{_name}__"] = (_function, True)
    if hasattr(operator, f"__i{_name}__"):
        _OPERATORS[f"__i{_name}__"] = (getattr(operator, f"__i{_name}__"), False)
for _name in ("lt", "le", "gt", "ge", "eq", "ne", "neg", "pos", "abs", "invert", "getitem"):
    _OPERATORS[f"__{_name}__"] = (getattr(operator, f"__{_name}__"), False)
_OPERATORS["__div__"] = (operator.truediv, False)
_OPERATORS["__rdiv__"] = (operator.truediv, True)

_LAYOUT_QUERIES = frozenset(
    {
        *("dim", "ndimension", "stride", "get_device", "element_size", "data_ptr", "storage_offset"),
        *("sparse_dim", "dense_dim", "_dimI", "_dimV", "__hash__", "is_floating_point", "is_complex"),
        *("is_contiguous", "is_coalesced", "is_pinned", "is_shared", "is_signed", "is_inference"),
        *("is_set_to", "has_names", "_is_view", "is_neg", "is_conj", "is_same_size", "can_cast"),
    }
)
"""Calls about the kind of a tensor, whose answers depend neither on the graph's size nor on values."""

_ESCAPES = {
    "tolist": ("escape", "'.tolist()' took values out of a tensor"),
    "numpy": ("escape", "'.numpy()' took values out of a tensor"),
    "__array__": ("escape", "NumPy took values out of a tensor"),
    "__int__": ("escape", "a tensor turned into a plain Python int"),
    "__index__": ("escape", "a tensor was used as a plain Python index"),
    "__float__": ("escape", "a tensor turned into a plain Python float"),
    "__complex__": ("escape", "a tensor turned into a plain Python complex"),
    "__len__": ("escape", "len() of a tensor became a plain Python number"),
    "__bool__": ("data-branch", "a branch on the values of a tensor"),
}
"""Calls that hand values of a tensor to Python: name -> kind and text of the note."""


_PYTHON_DTYPES: dict[type, torch.dtype] = {
    int: torch.int64,
    IntStandIn: torch.int64,
    float: torch.float64,
    FloatStandIn: torch.float64,
    bool: torch.bool,
}
"""What torch takes Python's number types for, given as a dtype."""


class UnrepresentableError(Exception):
    """An argument that a graph cannot hold; carries its type."""

    def __init__(self, value: object) -> None:
        super().__init__(type(value).__name__)
        self.kind = type(value).__name__


@dataclasses.dataclass(frozen=True)
class Note:
    """Something noticed while tracing that may explain a wrong trace."""

    kind: str
    text: str
    source: str
    module: str
    """Qualified name of the module that was running."""

    def __str__(self) -> str:
        return f"{self.text} at {self.source}"


def model_source() -> str:
    """``file:line`` of the innermost frame of the user's own code (else of PyG's)."""
    frame: FrameType | None = sys._getframe(1)
    innermost = ""
    while frame is not None:
        name = frame.f_globals.get("__name__") or ""
        if name == "gnnquant.tracing.signature":  # who called trace is not of interest
            break
        if not name.startswith(("torch.", "gnnquant.tracing.", "contextlib")) and name != "torch":
            here = f"{frame.f_code.co_filename}:{frame.f_lineno}"
            innermost = innermost or here
            if not name.startswith("torch_geometric") and "site-packages" not in here and here[0] != "<":
                return here
        frame = frame.f_back
    return innermost or "unknown"


def alias(value: Tensor) -> Tensor:
    """The same values as another Python object, gradient included."""
    with torch._C.DisableTorchFunction():
        if type(value) not in (Tensor, nn.Parameter):
            return value
        if value.layout == torch.strided:
            return value.view_as(value)
        return value if value.requires_grad else value.detach()


def tensors_in(value: Any) -> Iterator[Tensor]:
    """The tensors in nested tuples, lists, dicts and dataclasses."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from tensors_in(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from tensors_in(item)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            yield from tensors_in(getattr(value, field.name))


def strip(value: Any) -> Any:
    """``value`` with plain numbers and builtins in place of everything symbolic, for the real call."""
    if isinstance(value, torch.Size):
        return torch.Size([plain_number(v) for v in value])
    if isinstance(value, tuple):
        items = [strip(v) for v in value]
        return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
    if type(value) is list:
        return [strip(v) for v in value]
    if type(value) is dict:
        return {k: strip(v) for k, v in value.items()}
    if isinstance(value, slice):
        return slice(strip(value.start), strip(value.stop), strip(value.step))
    return value.original if value is IntStandIn or value is FloatStandIn else plain_number(value)


class _RecordMode(TorchFunctionMode):
    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self.recorder = recorder

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if self.recorder.paused:
            return func(*args, **(kwargs or {}))
        return self.recorder.torch_call(func, args, kwargs or {})


class Recorder:
    """Writes one run of ``model`` into ``graph``; ``interception`` feeds it the calls."""

    def __init__(self, model: nn.Module, whole: Collection[str] = ()) -> None:
        """Record ``model``; the modules called ``whole`` stay one node each."""
        self.model = model
        self.whole = frozenset(whole)
        self.failed_in = ""
        """Qualified name of the innermost module that was running when an exception came up."""
        self.graph = fx.Graph()
        self.paused = 0
        self.notes: dict[Note, None] = {}
        self.inserted: dict[str, nn.Module] = {}
        """Modules that tracing adds: qualified name -> module."""
        self.constants: dict[str, Tensor] = {}
        """Tensors that nobody produced: attribute name of the root -> value."""
        self.kept: set[fx.Node] = set()
        """Nodes with an effect (changes in place, random numbers): never dead."""
        self.paths = {module: name for name, module in model.named_modules()}
        self._module_stack = [""]
        self._values: dict[int, tuple[Tensor, fx.Node]] = {}
        self._calls: Counter[tuple[str, str]] = Counter()
        self._attributes = self._named_tensors()
        self._read_dtypes: set[torch.dtype] = set()
        self._read_devices: set[torch.device] = set()
        self._input_nodes: set[fx.Node] = set()
        self._placeholders: list[tuple[Tensor, fx.Node]] = []
        self._property_nodes: dict[Any, fx.Node] = {}

    def _named_tensors(self) -> dict[int, tuple[Tensor, str, str]]:
        named: dict[int, tuple[Tensor, str, str]] = {}
        for name, parameter in self.model.named_parameters(remove_duplicate=False):
            named.setdefault(id(parameter), (parameter, name, "parameter"))
        for name, buffer in self.model.named_buffers(remove_duplicate=False):
            named.setdefault(id(buffer), (buffer, name, "buffer"))
        for path, module in self.model.named_modules():
            for key, value in vars(module).items():
                if isinstance(value, Tensor):
                    name = f"{path}.{key}" if path else key
                    named.setdefault(id(value), (value, name, "attribute"))
        return named

    # --- what interception asks for ------------------------------------------------------------------

    def mode(self) -> TorchFunctionMode:
        """The torch function mode that records into this graph."""
        return _RecordMode(self)

    def note(self, kind: str, text: str) -> None:
        """Remember a possible cause of a wrong trace, with the line of the model's code."""
        self.notes[Note(kind, text, model_source(), self._module_stack[-1])] = None

    def placeholder(self, name: str, value: Any) -> Any:
        """Add an input ``name``; returns the value to hand to the model in its place."""
        node = self.graph.create_node("placeholder", name)
        node.meta.update(module_path="", source=f"input '{name}'")
        self._input_nodes.add(node)
        value = pytree.tree_map(lambda leaf: alias(leaf) if isinstance(leaf, Tensor) else leaf, value)
        return self._register(value, node)

    def output(self, value: Any) -> None:
        """Finish the graph with ``value`` as its result."""
        try:
            self.graph.output(self.encode(value))
        except UnrepresentableError as error:
            raise TraceError(
                f"the model returns a '{error.kind}', which a traced graph cannot hold; "
                "return tensors, or tuples, lists and dicts of them"
            ) from None

    def open_module(self, module: nn.Module) -> str | None:
        """Qualified name of ``module``, or None when it is not part of the model."""
        return self.paths.get(module)

    @contextlib.contextmanager
    def inside(self, path: str) -> Iterator[None]:
        """Calls inside of the block belong to the module ``path``."""
        self._module_stack.append(path)
        try:
            yield
        except Exception:
            self.failed_in = self.failed_in or path
            raise
        finally:
            self._module_stack.pop()

    def leaf_module(
        self, path: str, module: nn.Module, run: Callable[..., Any], args: Any, kwargs: Any
    ) -> Any:
        """Record one call of a leaf module and return its result."""
        return self._record("call_module", path, functools.partial(run, module), args, kwargs)

    def leaf_function(self, function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Record one call of a semantic helper and return its result."""
        return self._record("call_function", function, function, args, kwargs)

    def autograd_function(
        self, cls: type[torch.autograd.Function], run: Callable[..., Any], args: Any, kwargs: Any
    ) -> Any:
        """Record ``cls.apply(...)`` as one node, with its own backward."""
        if not any(True for _ in tensors_in((args, kwargs))):
            return run(*args, **kwargs)
        if cls is CheckpointFunction:  # saves memory in training; what it runs is seen through
            function, _, *operands = args
            with torch.set_grad_enabled(any(t.requires_grad for t in tensors_in(operands))):
                return function(*operands)
        name = self.new_submodule(self._module_stack[-1], f"_{cls.__name__}", AutogradCall(cls))
        return self._record("call_module", name, run, args, kwargs)

    def mark(self, role: str, conv: str, value: Any) -> Any:
        """Mark every tensor in ``value`` as the result of ``role`` of the layer ``conv``."""

        def mark_tensor(leaf: Any) -> Any:
            if not isinstance(leaf, Tensor):
                return leaf
            call = self._calls[conv, role]
            self._calls[conv, role] += 1
            node = self._emit("call_function", ROLE_MARKERS[role], (self.encode(leaf), conv, call))
            node.meta["gnn_role"] = role
            return self._register(alias(leaf), node)

        return pytree.tree_map(mark_tensor, value)

    def number(self, value: Any, function: Callable[..., Any], operands: tuple[Any, ...]) -> Any:
        """Record ``function`` on numbers, at least one of them symbolic."""
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            self.note("number-lost", f"a size turned into a {type(value).__name__}")
            return value
        node = self._emit("call_function", function, self.encode(operands))
        return self._register(value, node)

    def dead_code_removed(self) -> None:
        """Erase what does not reach the output and has no effect.

        Drawing random numbers is one: those drawn later are others without it.
        """
        for node in reversed(list(self.graph.nodes)):
            if node.users or node in self.kept or node.op in ("placeholder", "output"):
                continue
            if _draws_random_numbers(node):
                self.kept.add(node)
            else:
                self.graph.erase_node(node)

    # --- torch calls ---------------------------------------------------------------------------------

    def torch_call(  # noqa: PLR0911
        self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Record one torch function, tensor method or property, and return its result."""
        name = getattr(func, "__name__", str(func))
        special = {
            "__get__": self._property,
            "__set__": self._property_assignment,
            "__iter__": self._iterate,
            "__setitem__": self._set_item,
        }.get(name)
        if special is not None:
            return special(func, *args)
        if name == "size" and not kwargs and is_tensor_method_or_property(func):
            return self._size(*args)
        if name in _LAYOUT_QUERIES:
            return func(*strip(args), **strip(kwargs))
        if name in _ESCAPES:
            self.note(*_ESCAPES[name])
            return func(*strip(args), **strip(kwargs))
        flag = flag_position(args, kwargs)
        if flag is not None:
            return self.toggle(func, flag, args, kwargs)
        if name == "max" and len(args) == 1 and not kwargs and args[0].dtype == torch.int64:
            return self._record("call_function", largest, largest, args, kwargs)
        if name in _OPERATORS:
            function, swapped = _OPERATORS[name]
            if swapped:
                return self._record("call_function", function, lambda b, a: func(a, b), args[::-1], kwargs)
            return self._record("call_function", function, func, args, kwargs)
        if is_tensor_method_or_property(func):
            return self._record("call_method", name, func, args, kwargs)
        return self._record("call_function", func, func, args, kwargs)

    def _property(self, func: Any, *args: Any) -> Any:
        owner = func.__self__
        name = getattr(owner, "__name__", None) or owner.fget.__name__
        if name == "shape":
            return self._size(args[0])
        value = func(*args)
        if isinstance(value, Tensor):
            node = self._emit("call_function", getattr, (self.encode(args[0]), name))
            return self._register(self._fresh(value, args), node)
        if isinstance(value, torch.dtype):
            self._read_dtypes.add(value)
        elif isinstance(value, torch.device):
            self._read_devices.add(value)
        return value

    def _property_assignment(self, func: Any, *args: Any) -> Any:
        name = getattr(func.__self__, "__name__", "")
        if name == "data":
            target, source = args
            with torch.no_grad():
                self.torch_call(Tensor.copy_, (target, source), {})
            return None
        return func(*strip(args))

    def _size(self, value: Tensor, dim: Any = None) -> Any:
        if dim is not None:
            dim = plain_number(dim)
            node = self._emit("call_method", "size", (self.encode(value), dim))
            return self._register(value.size(dim), node)
        source = self.encode(value)
        return torch.Size(
            [
                self._register(size, self._emit("call_method", "size", (source, i)))
                for i, size in enumerate(value.size())
            ]
        )

    def _iterate(self, func: Any, value: Tensor) -> Iterator[Any]:
        if value.dim() == 0:
            return iter(func(value))  # raises torch's own error
        if value.size(0) > 8:
            self.note("loop", "a loop over the rows of a tensor was unrolled")
        rows = [self.torch_call(Tensor.__getitem__, (value, i), {}) for i in range(value.size(0))]
        return iter(rows)

    def _set_item(self, func: Any, value: Tensor, index: Any, source: Any) -> None:
        # A view shares its memory with other nodes: only the real in-place call reaches those.
        shared = value._is_view()
        operands = self.encode((value, index, source))
        func(value, strip(index), strip(source))
        if shared:
            self.kept.add(self._emit("call_function", operator.setitem, operands))
        else:
            self._register(value, self._emit("call_function", set_item, operands))

    def toggle(self, func: Any, flag: int | str, args: tuple[Any, ...], kwargs: Any) -> Any:
        """A call that got ``self.training``: becomes a module with a training flag of its own."""
        training = plain_number(kwargs[flag] if isinstance(flag, str) else args[flag])
        run: Callable[..., Any]
        if func in DROPOUT_MODULES:
            bound = inspect.signature(func).bind(*args, **kwargs)
            bound.apply_defaults()
            given = bound.arguments
            module = DROPOUT_MODULES[func](plain_number(given["p"]), given["inplace"])
            args, kwargs = (given["input"],), {}
            stem = "_dropout"

            def run(*values: Any) -> Any:
                return func(*values, given["p"], training, given["inplace"])
        else:
            module = TrainingSwitch(func, flag)
            stem = f"_{func.__name__}"
            if isinstance(flag, str):
                kwargs = {k: v for k, v in kwargs.items() if k != flag}
            else:
                args = args[:flag] + args[flag + 1 :]

            run = module.train(training)

        name = self.new_submodule(self._module_stack[-1], stem, module)
        return self._record("call_module", name, run, args, kwargs)

    # --- writing nodes -------------------------------------------------------------------------------

    def _record(
        self, op: str, target: Any, run: Callable[..., Any], args: Any, kwargs: dict[str, Any]
    ) -> Any:
        """Run one call and write its node; the arguments are encoded before they can change."""
        inputs = list(tensors_in((args, kwargs)))
        try:
            operands, options = self.encode(tuple(args)), self.encode(kwargs)
        except UnrepresentableError as error:
            if inputs and any(id(t) in self._values for t in inputs):
                name = target if isinstance(target, str) else getattr(target, "__name__", target)
                raise TraceError(
                    f"'{name}' at {model_source()} got an argument of type '{error.kind}', which a "
                    "traced graph cannot hold; pass tensors and plain Python values"
                ) from None
            operands = None
        versions = [_version(t) for t in inputs]
        self.paused += 1
        try:
            result = run(*strip(tuple(args)), **strip(kwargs))
        finally:
            self.paused -= 1
        if operands is None:
            return result  # becomes a constant where it is used
        changed = [t for t, v in zip(inputs, versions, strict=True) if _version(t) != v]
        if not changed and not _holds_values(result):
            if isinstance(result, bool) and inputs:
                self.note("data-branch", "a branch on the values of a tensor")
            return result
        if not changed:
            result = self._fresh(result, inputs)
        node = self._emit(op, target, operands, options)
        if changed:
            self.kept.add(node)
        if op == "call_module" and not torch.is_grad_enabled() and isinstance(result, Tensor):
            node = self._emit("call_method", "detach", (node,))
        return self._register(result, node)

    def _fresh(self, result: Any, inputs: Any) -> Any:
        """``result`` with a view in place of every tensor that is one of ``inputs``."""
        known = {id(t) for t in tensors_in(inputs)}
        if not any(id(t) in known for t in tensors_in(result)):
            return result
        return pytree.tree_map(
            lambda leaf: alias(leaf) if isinstance(leaf, Tensor) and id(leaf) in known else leaf,
            result,
        )

    def _emit(self, op: str, target: Any, args: Any = (), kwargs: dict[str, Any] | None = None) -> fx.Node:
        node = self.graph.create_node(op, target, args, kwargs or {})
        node.meta.update(module_path=self._module_stack[-1], source=model_source())
        return node

    def _register(self, value: Any, node: fx.Node) -> Any:
        """Remember that ``node`` computes ``value``; returns the value to go on with."""
        if isinstance(value, Tensor):
            self._values[id(value)] = (value, node)  # holding it keeps its id its own
            with torch._C.DisableTorchFunction():
                node.meta["shape"] = tuple(value.shape)
                node.meta["dtype"] = value.dtype
                if value.layout != torch.strided:
                    node.meta["layout"] = value.layout
            if node in self._input_nodes:
                self._placeholders.append((value, node))
            return value
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            number = SymbolicInt(value) if isinstance(value, int) else SymbolicFloat(value)
            number.node, number.owner = node, self
            return number
        return self._register_parts(value, node)

    def _register_parts(self, value: Any, node: fx.Node) -> Any:
        if isinstance(value, dict):
            content = {k: self._element(v, node, k) for k, v in value.items()}
            return value.like(content) if isinstance(value, Fields) else content
        if isinstance(value, (tuple, list)):
            items = [self._element(v, node, i) for i, v in enumerate(value)]
            if hasattr(value, "_fields"):
                return type(value)(*items)
            return type(value)(items)  # also torch.Size and torch.return_types
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            for field in dataclasses.fields(value):
                part = getattr(value, field.name)
                if _holds_values(part):
                    reader = self._emit("call_function", getattr, (node, field.name))
                    object.__setattr__(value, field.name, self._register(part, reader))
        return value

    def _element(self, value: Any, node: fx.Node, key: Any) -> Any:
        if not _holds_values(value):
            return value
        reader = self._emit("call_function", operator.getitem, (node, key))
        if node in self._input_nodes:
            self._input_nodes.add(reader)
        return self._register(value, reader)

    def encode(self, value: Any) -> Any:  # noqa: PLR0911
        """``value`` as an argument of a node; raises ``UnrepresentableError``."""
        if isinstance(value, Tensor):
            return self._tensor_node(value)
        if isinstance(value, SymbolicNumber):
            return value.node if value.owner is self else plain_number(value)
        if isinstance(value, tuple):
            items = tuple(self.encode(v) for v in value)
            if hasattr(value, "_fields"):  # fx cannot write one inside of a dict, so build it in a node
                return self._emit("call_function", type(value), items)
            return items
        if isinstance(value, list):
            return [self.encode(v) for v in value]
        if isinstance(value, dict):
            return {k: self.encode(v) for k, v in value.items()}
        if isinstance(value, slice):
            return slice(self.encode(value.start), self.encode(value.stop), self.encode(value.step))
        if isinstance(value, (torch.dtype, torch.device)):
            return self._input_property(value) or value
        return _encode_constant(value)

    def _input_property(self, value: torch.dtype | torch.device) -> fx.Node | None:
        """A node that reads the dtype or device off an input, if the model did read it off a tensor."""
        reader: Callable[[Tensor], Any]
        if isinstance(value, torch.dtype):
            wanted = value in self._read_dtypes and value.is_floating_point
            reader = dtype_of
        else:
            wanted = value in self._read_devices
            reader = device_of
        if wanted and value not in self._property_nodes:
            for tensor, source in self._placeholders:
                if reader(tensor) == value:
                    self._property_nodes[value] = self._emit("call_function", reader, (source,))
                    break
        return self._property_nodes.get(value)

    def _tensor_node(self, value: Tensor) -> fx.Node:
        entry = self._values.get(id(value))
        if entry is not None:
            node = entry[1]
        else:
            if id(value) in self._attributes:
                _, name, kind = self._attributes[id(value)]
                if kind == "attribute":
                    self.note("attribute", f"the plain tensor attribute '{name}' was used as it is")
            else:
                name = self.new_constant(value.detach())
                self.note(
                    "constant",
                    f"a tensor of shape {tuple(value.shape)} that no traced call produced was used",
                )
            node = self._emit("get_attr", name)
            self._register(value, node)
        if not torch.is_grad_enabled() and (value.is_floating_point() or value.is_complex()):
            detached = self._emit("call_method", "detach", (node,))
            detached.meta.update({k: node.meta[k] for k in ("shape", "dtype") if k in node.meta})
            return detached
        return node

    def new_constant(self, value: Tensor) -> str:
        """Keep ``value`` on the root; returns its name."""
        name = f"_tensor_constant{len(self.constants)}"
        self.constants[name] = value
        return name

    def checked(self, value: Tensor, check: Callable[[Tensor], Tensor]) -> None:
        """From now on ``value`` is what ``check``, which returns its argument, hands on."""
        self._register(value, self._emit("call_function", check, (self.encode(value),)))

    def new_submodule(self, path: str, stem: str, module: nn.Module) -> str:
        """Add ``module`` below the module ``path``, as ``convs.0._dropout0``; returns its name."""
        owner = self.model.get_submodule(path)
        prefix = f"{path}." if path else ""
        count = 0
        while f"{prefix}{stem}{count}" in self.inserted or hasattr(owner, f"{stem}{count}"):
            count += 1
        name = f"{prefix}{stem}{count}"
        self.inserted[name] = module
        return name


def wrap_roles(recorder: Recorder, layer: MessagePassing, path: str) -> None:
    """Make ``message``, ``aggregate`` ... of ``layer`` (a private copy) emit their markers."""
    for role in ROLE_MARKERS:
        if role == "edge_update" and not layer.inspector.implements("edge_update"):
            continue
        if role == "message_and_aggregate" and not layer.fuse:
            continue
        vars(layer)[role] = _marking(recorder, getattr(layer, role), role, path)


def _marking(recorder: Recorder, method: Callable[..., Any], role: str, path: str) -> Callable[..., Any]:
    @functools.wraps(method)
    def marked(*args: Any, **kwargs: Any) -> Any:
        result = method(*args, **kwargs)
        return result if recorder.paused else recorder.mark(role, path, result)

    return marked


def flag_position(args: tuple[Any, ...], kwargs: dict[str, Any]) -> int | str | None:
    """Position or name of the argument that is some module's ``training``, else None."""
    keys: list[int | str] = [*range(len(args)), *kwargs]
    values = (*args, *kwargs.values())
    return next((k for k, v in zip(keys, values, strict=True) if isinstance(v, TrainingFlag)), None)


def _encode_constant(value: Any) -> Any:
    """A value without tensors as a graph can hold it."""
    if value is None or value is ... or type(value) in (bool, int, float, complex, str):
        return value
    if isinstance(value, (TrainingFlag, ModelFloat, np.generic)):
        return value.item() if isinstance(value, np.generic) else plain_number(value)
    if isinstance(value, (torch.layout, torch.memory_format)):
        return value
    if isinstance(value, type) and value in _PYTHON_DTYPES:
        return _PYTHON_DTYPES[value]
    if isinstance(value, range):
        return tuple(value)
    if isinstance(value, (int, str)):  # an enum of them
        return int(value) if isinstance(value, int) else str(value)
    raise UnrepresentableError(value)


def _holds_values(value: Any) -> bool:
    """Whether ``value`` contains a tensor or a number that a node has to provide."""
    if isinstance(value, (Tensor, int, float)) and not isinstance(value, bool):
        return True
    if isinstance(value, (tuple, list)):
        return any(map(_holds_values, value))
    if isinstance(value, dict):
        return any(map(_holds_values, value.values()))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return any(_holds_values(getattr(value, f.name)) for f in dataclasses.fields(value))
    return False


def _version(value: Tensor) -> int:
    with torch._C.DisableTorchFunction():
        return -1 if value.is_inference() else value._version


def _draws_random_numbers(node: fx.Node) -> bool:
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    return any(word in name for word in ("rand", "dropout", "bernoulli", "multinomial", "sampling"))
