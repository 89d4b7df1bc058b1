"""Sparse times dense matrix against a dense product, its gradients against finite differences."""

from __future__ import annotations

import pytest
import torch

from gnnquant.quantizers.spmm import Entries, entries_of, row_products, spmm


def _entries(sources: int, targets: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(count)
    source = torch.randint(0, sources, (count,), generator=generator)
    target = torch.randint(0, max(targets - 1, 1), (count,), generator=generator)
    target[: count // 3] = 0  # a hub; the last row is empty; entries repeat
    return source, target


@pytest.mark.parametrize(("sources", "targets", "count"), [(7, 5, 40), (3, 9, 4), (4, 4, 0)])
@pytest.mark.parametrize("heads", [1, 3])
def test_equals_the_dense_product(sources: int, targets: int, count: int, heads: int) -> None:
    """Sums of small integers are exact, whatever their order."""
    source, target = _entries(sources, targets, count)
    weight = torch.randint(-127, 128, (count, heads)).float()
    rows = torch.randint(-8, 8, (sources, heads * 2)).float()
    got = spmm(Entries(source, target, sources, targets), source, target, weight, rows)
    for head in range(heads):
        matrix = torch.zeros(targets, sources).index_put((target, source), weight[:, head], accumulate=True)
        mine = slice(2 * head, 2 * head + 2)
        assert torch.equal(got[:, mine], matrix @ rows[:, mine])


@pytest.mark.parametrize("heads", [1, 2])
def test_gradients(heads: int) -> None:
    """Of weights and rows, in float64."""
    source, target = _entries(6, 5, 12)
    entries = Entries(source, target, 6, 5)
    weight = torch.randn(12, heads, dtype=torch.float64, requires_grad=True)
    rows = torch.randn(6, heads * 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda w, r: spmm(entries, source, target, w, r), (weight, rows))


def test_products_of_rows_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks change nothing."""
    left, right = torch.randn(4, 6), torch.randn(5, 6)
    at, there = torch.randint(0, 4, (11,)), torch.randint(0, 5, (11,))
    whole = row_products(left, at, right, there, 2)
    monkeypatch.setattr("gnnquant.quantizers.spmm.BLOCK", 12)
    assert torch.equal(row_products(left, at, right, there, 2), whole)
    assert torch.allclose(whole, (left[at] * right[there]).view(11, 2, 3).sum(2))


def test_entries_are_kept_until_the_edges_change() -> None:
    """The same object for the same state; another one after a change in place."""
    edge_index = torch.tensor([[0, 1], [1, 0]])
    first = entries_of(edge_index, 2, 2)
    assert entries_of(edge_index, 2, 2) is first
    assert entries_of(edge_index, 2, 3) is not first
    edge_index[1, 0] = 0
    assert entries_of(edge_index, 2, 2).by_target.starts.tolist() == [0, 2]
    with torch.inference_mode():
        assert entries_of(edge_index + 0, 2, 2).by_target.starts.tolist() == [0, 2]


def test_an_end_out_of_range_is_refused() -> None:
    """Before anything reads beyond the rows."""
    with pytest.raises(IndexError, match="index 2 is out of range for 2 rows"):
        entries_of(torch.tensor([[1, 0], [0, 2]]), 2, 2)
    edge_index = torch.tensor([[0, 2], [1, 0]])
    with pytest.raises(RuntimeError):
        spmm(entries_of(edge_index, 2, 2), *edge_index, torch.ones(2, 1), torch.ones(2, 3))
    with pytest.raises(RuntimeError):
        entries_of(-edge_index, 2, 2)
