"""Operations on codes against integer arithmetic in numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gnnquant.quantizers import ops


def _graph(num_nodes: int, num_edges: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    edge_index = torch.randint(0, max(num_nodes - 1, 1), (2, num_edges), generator=generator)
    edge_index[1, : num_edges // 3] = 0  # a hub; the last node is isolated
    return edge_index


@pytest.mark.parametrize("reduce", ["sum", "mean"])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("per_row", [False, True])
def test_propagate_equals_integer_arithmetic(reduce: str, weighted: bool, per_row: bool) -> None:
    """The float32 sum of codes is the integer sum, scaled once."""
    generator = torch.Generator().manual_seed(3)
    num_nodes, width = 30, 5
    edge_index = _graph(num_nodes, 120, 1)
    codes = torch.randint(-8, 8, (num_nodes, width), generator=generator).float()
    scale = torch.rand(num_nodes, 1, generator=generator) if per_row else torch.tensor(0.3)
    weight = torch.randn(120, generator=generator) if weighted else None
    got = ops.propagate(codes, scale, edge_index, weight, num_nodes, reduce).numpy()

    source, target = edge_index.numpy()
    values = scale.expand(num_nodes, 1).numpy()[source, 0]
    factor = np.float32(1)
    if weight is not None and not per_row:
        # one scale for all multiplies the sum
        values, factor = weight.numpy(), scale.numpy()
    elif weight is not None:
        values = weight.numpy() * values
    for node in range(num_nodes):
        mine = np.flatnonzero(target == node)
        if mine.size == 0:
            assert (got[node] == 0).all()
            continue
        largest = np.abs(values[mine]).max()
        e8 = np.rint(values[mine] * (np.float32(127) / largest)).astype(np.int64)
        total = (e8[:, None] * codes.numpy().astype(np.int64)[source[mine]]).sum(axis=0)
        expected = total.astype(np.float32) * (largest * np.float32(1 / 127))
        if reduce == "mean":
            expected = expected / np.float32(mine.size)
        np.testing.assert_array_equal(got[node], expected * factor)


def test_propagate_maximum_runs_on_codes() -> None:
    """The maximum of codes, scaled; nodes without edges get 0."""
    codes = torch.tensor([[1.0, -4.0], [-2.0, -3.0], [5.0, 5.0]])
    edge_index = torch.tensor([[0, 1], [2, 2]])
    got = ops.propagate(codes, torch.tensor(0.5), edge_index, None, 3, "max")
    assert got.tolist() == [[0, 0], [0, 0], [0.5, -1.5]]


def test_propagate_heads() -> None:
    """One weight per head multiplies that head's channels."""
    x = torch.ones(2, 2, 3)
    weight = torch.tensor([[2.0, 3.0]])
    got = ops.propagate(x, None, torch.tensor([[0], [1]]), weight, 2, "sum")
    assert got[1].tolist() == [[2, 2, 2], [3, 3, 3]]
    quantized = ops.propagate(x, torch.tensor(1.0), torch.tensor([[0], [1]]), weight, 2, "sum")
    torch.testing.assert_close(quantized, got)


@pytest.mark.parametrize("shape", [(4, 3), (4, 2, 3)])
def test_propagate_without_edges(shape: tuple[int, ...]) -> None:
    """No edges: zeros of the right shape, and a gradient that exists."""
    x = torch.ones(shape, requires_grad=True)
    edge_index = torch.empty(2, 0, dtype=torch.int64)
    for reduce in ("sum", "mean", "max"):
        out = ops.propagate(x, torch.tensor(1.0), edge_index, None, 4, reduce)
        assert torch.equal(out, torch.zeros(shape))
        out.sum().backward()


def test_propagate_gradients_reach_codes_scales_and_weights() -> None:
    """The 8-bit rounding of edge weights lets gradients through, close to those of the floats."""
    generator = torch.Generator().manual_seed(5)
    edge_index = _graph(12, 40, 2)
    codes = torch.randint(-2, 2, (12, 4), generator=generator).float().requires_grad_()
    scale = torch.rand(12, 1, generator=generator).requires_grad_()
    weight = torch.rand(40, generator=generator).requires_grad_()
    leaves = (codes, scale, weight)
    got = torch.autograd.grad(
        ops.propagate(codes, scale, edge_index, weight, 12, "sum").square().sum(), leaves
    )
    plain = ops.propagate(codes * scale, None, edge_index, weight, 12, "sum").square().sum()
    wanted = torch.autograd.grad(plain, leaves)
    for mine, theirs in zip(got, wanted, strict=True):
        assert float((mine - theirs).norm() / theirs.norm()) < 0.02


def test_linear_scales_after_the_sum() -> None:
    """((x @ w.T) * x_scale) * w_scale + b."""
    x, w = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, -1.0], [0.5, 0.5]])
    out = ops.linear(x, torch.tensor([[0.1]]), w, torch.tensor([[2.0], [4.0]]), torch.tensor([1.0, 0.0]))
    torch.testing.assert_close(out, torch.tensor([[1.2, 0.6]]))
    torch.testing.assert_close(
        ops.linear(x, None, w, torch.tensor([[2.0], [4.0]]), None), torch.tensor([[2.0, 6.0]])
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_sums_codes_exactly(dtype: torch.dtype) -> None:
    """Sums beyond what the dtype can count are made in float32; results have the dtype of the values."""
    codes = torch.full((2, 300), 127.0, dtype=dtype)
    weight = torch.ones(1, 300, dtype=dtype)
    one = torch.tensor(1.0)
    out = ops.linear(codes, one / 300, weight, one, None)
    assert out.dtype == dtype
    assert out.tolist() == [[127.0], [127.0]]
    edge_index = torch.stack([torch.zeros(300, dtype=torch.int64), torch.zeros(300, dtype=torch.int64)])
    out = ops.propagate(codes, one / 300, edge_index, None, 1, "sum")
    assert out.dtype == dtype
    assert (out == 127).all()
    assert ops.dequantize(codes, one / 2).dtype == dtype


def test_rows_up_to_the_largest_destination() -> None:
    """Without a number of rows there are as many as the largest destination needs."""
    x = torch.arange(6.0).view(3, 2)
    edge_index = torch.tensor([[0, 2], [4, 1]])
    out = ops.propagate(x, None, edge_index, None, None, "sum")
    assert out.tolist() == [[0, 0], [4, 5], [0, 0], [0, 0], [0, 1]]
    assert ops.propagate(x, None, edge_index[:, :0], None, None, "sum").shape == (0, 2)


@pytest.mark.parametrize("reduce", ["max", "min"])
def test_extrema_of_codes_are_extrema_of_values(reduce: str) -> None:
    """One scale for the tensor: the order of codes is that of values; rows without edges are 0."""
    codes = torch.tensor([[3.0, -2.0], [-5.0, 4.0], [1.0, 1.0]])
    edge_index = torch.tensor([[0, 1, 2], [0, 0, 1]])
    out = ops.propagate(codes, torch.tensor(0.5), edge_index, None, 3, reduce)
    best = [[1.5, 2.0], [0.5, 0.5], [0.0, 0.0]] if reduce == "max" else [[-2.5, -1.0], [0.5, 0.5], [0.0, 0.0]]
    assert out.tolist() == best


@pytest.mark.filterwarnings("ignore")
def test_entries_of_a_sparse_matrix() -> None:
    """All layouts give the same list: by row, then column, sources first."""
    dense = torch.tensor([[0.0, 2.0, 0.0], [3.0, 0.0, 4.0]])
    for matrix in (dense.to_sparse(), dense.to_sparse_csr(), dense.to_sparse_csc()):
        edge_index, values = ops.adjacency(matrix)
        assert edge_index.tolist() == [[1, 0, 2], [0, 1, 1]]
        assert edge_index.dtype == torch.int64
        assert values.tolist() == [2, 3, 4]
