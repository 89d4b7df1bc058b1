"""The exported file: containers, names, metadata, refusals, and when it is written."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto
from torch import Tensor, nn
from torch_geometric import nn as gnn

import gnnquant
from gnnquant import cli
from gnnquant.backends.onnx import check
from gnnquant.backends.onnx.emit import emit_model
from gnnquant.backends.onnx.state import State
from gnnquant.errors import BackendError, InputError
from gnnquant.passes.lowering import lower
from gnnquant.quantizers.calibration import calibrate
from tests import zoo
from tests.backends.onnx.helpers import exported
from tests.parity import converted


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> onnx.ModelProto:
    """An INT4 GCN through the public door."""
    path = tmp_path_factory.mktemp("onnx") / "gcn.onnx"
    graph = zoo.random_graph(30, 90)
    assert gnnquant.export_onnx(converted("gcn", 4), path, (graph.x, graph.edge_index)) is None
    return onnx.load(path)


def test_it_is_standard_onnx(file: onnx.ModelProto) -> None:
    onnx.checker.check_model(file, full_check=True)
    assert {node.domain for node in file.graph.node} == {""}
    assert [item.domain for item in file.opset_import] == [""]
    assert not file.functions


def test_metadata_says_what_it_is(file: onnx.ModelProto) -> None:
    facts = {item.key: item.value for item in file.metadata_props}
    q = converted("gcn", 4)
    assert facts["gnnquant"] == gnnquant.__version__
    assert facts["bits"] == "4"
    assert json.loads(facts["sites"]) == {site.name: 4 for site in q.sites.values()}
    assert facts["compared"].startswith("onnxruntime ")
    assert (file.producer_name, file.producer_version) == ("gnnquant", gnnquant.__version__)


def test_names_are_those_of_the_users_modules(file: onnx.ModelProto) -> None:
    assert [value.name for value in file.graph.input] == ["x", "edge_index"]
    assert [value.name for value in file.graph.output] == ["output"]
    names = {node.name for node in file.graph.node}
    assert len(names) == len(file.graph.node)
    scopes = {name.split("/")[0] for name in names}
    assert scopes == {"graph", "conv1", "conv2", "relu", "log_softmax", "output"}
    assert {"conv1/lin/MatMul", "conv1/message/QuantizeLinear", "conv2/lin/DequantizeLinear"} <= names
    weights = {tensor.name for tensor in file.graph.initializer}
    assert {"conv1.lin.weight", "conv2.lin.weight"} <= weights


class Block(nn.Module):
    """A graph layer, a norm and an activation, each a module of its own."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = gnn.GATConv(inputs, outputs, heads=2, concat=False)
        self.norm = nn.BatchNorm1d(outputs)
        self.act = nn.ReLU()

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return self.act(self.norm(self.conv(x, edge_index)))


class Nested(nn.Module):
    """Blocks in a list, groups of nodes, and a head of several layers."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Block(zoo.FEATURES, 6), Block(6, 6)])
        self.head = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, zoo.CLASSES))

    def forward(self, x: Tensor, edge_index: Tensor, batch: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x, edge_index)
        return self.head(gnn.global_mean_pool(x, batch))


def test_nodes_and_dimensions_of_nested_modules_have_names() -> None:
    graph = zoo.random_graph()
    example = (graph.x, graph.edge_index, graph.batch)
    q = calibrate(gnnquant.convert(Nested().eval(), example, bits=4), [example])
    model = emit_model(lower(q), 25, {})
    names = {node.name for node in model.graph.node}
    for layer in ("conv/lin/MatMul", "conv/segment_softmax", "norm/mul", "act/relu"):
        assert {name.split("/")[1] for name in names if f"/{layer}" in name} == {"0", "1"}, layer
    assert {"head/0/MatMul", "head/0/Add", "head/2/MatMul", "head/2/Add"} <= names
    assert any(name.startswith("head/1/") for name in names)
    dims = [dim for info in model.graph.value_info for dim in info.type.tensor_type.shape.dim]
    assert all(dim.HasField("dim_value") or dim.dim_param for dim in dims)
    assert not [dim.dim_param for dim in dims if dim.dim_param.startswith("unk")]


@pytest.mark.parametrize(
    ("bits", "opset", "width", "weight", "values"),
    [
        (8, 18, 8, "UINT8", {"INT8", "UINT8"}),
        (4, 21, 4, "INT4", {"INT8", "UINT8"}),
        (4, 25, 4, "INT4", {"INT4", "UINT4"}),
        (2, 21, 4, "INT4", {"INT8", "UINT8"}),
        (2, 25, 2, "INT2", {"INT2", "UINT2"}),
    ],
)
def test_containers(bits: int, opset: int, width: int, weight: str, values: set[str]) -> None:
    """Weights are packed; what is computed has the type that docs/onnx.md names."""
    model, _ = exported("gcn", bits, opset)
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    for name, packed in lower(converted("gcn", bits)).weights.items():
        tensor = tensors[name]
        assert TensorProto.DataType.Name(tensor.data_type) == weight
        assert list(tensor.dims) == list(packed.shape)
        assert len(tensor.raw_data) == -(-packed.shape[0] * packed.shape[1] * width // 8)
    types = {info.name: info.type.tensor_type.elem_type for info in model.graph.value_info}
    stored = {types[node.output[0]] for node in model.graph.node if node.op_type == "QuantizeLinear"}
    assert {TensorProto.DataType.Name(kind) for kind in stored} == values


@pytest.mark.parametrize(("bits", "opset"), [(8, 25), (4, 25), (2, 25), (2, 21)])
def test_packed_weights_hold_the_codes(bits: int, opset: int) -> None:
    model, _ = exported("gcn", bits, opset)
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    for name, packed in lower(converted("gcn", bits)).weights.items():
        stored = onnx.numpy_helper.to_array(tensors[name]).astype(np.int64)
        if bits == 8:
            stored -= 128
        np.testing.assert_array_equal(
            2 * stored + (1 if bits == 2 else 0), 2 * packed.codes.astype(int) - packed.zero2
        )


@pytest.mark.parametrize(
    ("bits", "opset", "message"),
    [
        (8, 17, "opset 17 has no sums over edges that are right with duplicate edges: pass opset=18"),
        (4, 20, r"'conv1\.lin\.weight' has 4-bit codes, which need opset 21, but the operator set is 20"),
        (2, 20, r"'conv1\.lin\.weight' has 2-bit codes, which need opset 21"),
        (8, 99, "opset 99 is not tested: pass 25 or less"),
        (8, True, "opset must be an integer, not True"),
    ],
)
def test_operator_sets_that_will_not_do(bits: int, opset: int, message: str, tmp_path: Path) -> None:
    with pytest.raises(BackendError, match=message):
        gnnquant.export_onnx(converted("gcn", bits), tmp_path / "m.onnx", opset=opset)
    assert not list(tmp_path.iterdir())


def test_what_was_not_converted_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match=r"takes what gnnquant\.convert returned, not GCN"):
        gnnquant.export_onnx(zoo.build("gcn"), tmp_path / "m.onnx")


def test_what_cannot_be_lowered_is_refused_by_name(tmp_path: Path) -> None:
    class TopK(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.topk(x, 2, dim=0).values

    q = gnnquant.convert(TopK(), (torch.rand(5, 3),), bits=32)
    with pytest.raises(BackendError, match="topk"):
        gnnquant.export_onnx(q, tmp_path / "m.onnx")


def test_what_does_not_fit_a_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gnnquant.backends.onnx.LARGEST", 50)
    with pytest.raises(BackendError, match="do not fit an ONNX file"):
        gnnquant.export_onnx(converted("gcn", 8), tmp_path / "m.onnx")


def test_a_wrong_export_is_noticed_and_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An aggregation that forgets duplicate edges, as exports often do; the old file stays."""
    right = State.scatter

    def forgetful(self: State, *arguments: Any) -> str:
        made = right(self, *arguments)
        for attribute in self.to.nodes[-1].attribute:
            if attribute.name == "reduction":
                attribute.s = b"none"
        return made

    monkeypatch.setattr(State, "scatter", forgetful)
    path = tmp_path / "m.onnx"
    path.write_bytes(b"old")
    with pytest.raises(BackendError, match="differs from the integer reference by"):
        gnnquant.export_onnx(converted("sage_mean", 8), path)
    assert path.read_bytes() == b"old"
    assert [item.name for item in tmp_path.iterdir()] == ["m.onnx"]


def test_a_wrong_example_is_an_input_error(tmp_path: Path) -> None:
    graph = zoo.random_graph()
    with pytest.raises(InputError, match="edge_index"):
        gnnquant.export_onnx(converted("gcn", 8), tmp_path / "m.onnx", (graph.x, graph.edge_index.float()))
    with pytest.raises(InputError, match=r"must be a tuple of positional arguments or a dict .*, not list"):
        gnnquant.export_onnx(converted("gcn", 8), tmp_path / "m.onnx", [graph.x])  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def test_without_onnxruntime_the_file_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gnnquant.backends.onnx.session.find_runtime", lambda: None)
    check.newest_opset.cache_clear()
    monkeypatch.setattr(check, "find_runtime", lambda: None)
    with pytest.warns(UserWarning, match="was not compared with the integer reference"):
        gnnquant.export_onnx(converted("gcn", 8), tmp_path / "m.onnx")
    check.newest_opset.cache_clear()
    facts = {item.key: item.value for item in onnx.load(tmp_path / "m.onnx").metadata_props}
    assert facts["compared"] == "no: onnxruntime was not installed"


def test_an_older_runtime_gets_an_older_operator_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """Versions that compute packed values wrongly are not given any."""
    runtime = check.find_runtime()
    check.newest_opset.cache_clear()
    monkeypatch.setattr(runtime, "__version__", "1.31.9")
    assert check.newest_opset() == 24
    check.newest_opset.cache_clear()


# ---------------------------------------------------------------- the command line


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(converted("gcn", 4), tmp_path / "q.pt")
    out = tmp_path / "q.onnx"
    assert cli.main(["export", str(tmp_path / "q.pt"), str(out), "--opset", "21"]) == 0
    line = capsys.readouterr().out
    assert line.startswith(f"{out}: ")
    assert "4 bits, opset 21, compared with the reference: onnxruntime" in line
    onnx.checker.check_model(onnx.load(out), full_check=True)


@pytest.mark.parametrize(
    ("name", "message"), [("absent/q.onnx", "No such file"), ("", "Is a directory"), (os.devnull, "")]
)
def test_command_line_where_no_file_can_be(
    name: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line that has the name as it was given; a device stays one."""
    torch.save(converted("gcn", 8), tmp_path / "q.pt")
    assert cli.main(["export", str(tmp_path / "q.pt"), name]) == (1 if message else 0)
    out, err = capsys.readouterr()
    assert not out
    assert message in err
    assert err.count("\n") == (1 if message else 0)
    assert (name or ".") in err or not message
    assert Path(os.devnull).is_char_device()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read"),
        (b"GIF89a", "is no model that torch.save"),
        ({"weight": torch.ones(2)}, "export_onnx takes what gnnquant.convert returned, not dict"),
    ],
)
def test_command_line_refuses_other_files(
    content: object, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "q.pt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    assert cli.main(["export", str(path), str(tmp_path / "q.onnx")]) == 1
    captured = capsys.readouterr().err
    assert captured.count("\n") == 1
    assert message in captured
    assert not (tmp_path / "q.onnx").exists()
