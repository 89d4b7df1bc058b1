"""The coverage table: it leaves nothing out, and some of its rows, measured in this process."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn
from torch_geometric import nn as gnn

from benchmarks.coverage import catalogue, runner, table
from benchmarks.coverage.cases import Case, takes
from benchmarks.coverage.catalogue import CASES, NO_LAYERS, NO_RECIPE, QUICK, absent, exported, find
from benchmarks.coverage.graphs import example, hard, second
from benchmarks.coverage.measure import COLUMNS, measure

if TYPE_CHECKING:
    from pathlib import Path

LIBRARIES = ("pyg-lib", "torch-sparse", "pylibcugraphops", "dgNN", "pynndescent")
LIBRARIES += ("torch-cluster", "torch-spline-conv")  # PyG before 2.8
"""What some classes need besides torch and PyG."""
NOT_WITH_NUMPY_2 = "module 'numpy' has no attribute 'math'"
"""What the DimeNet of PyG 2.6 asks for."""


# --- nothing is left out ----------------------------------------------------------------------------


@pytest.mark.parametrize("home", sorted(exported()))
def test_every_exported_name_is_in_the_table(home: str) -> None:
    shown = {case.name.split()[0] for case in CASES if case.part == home}
    shown |= {item.name for item in absent() if item.part == home}
    assert set(exported()[home]) <= shown
    assert len(exported()[home]) > 0


def test_a_new_name_shows_up_without_a_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gnn.conv, "__all__", [*gnn.conv.__all__, "BrandNewConv"])
    new = next(item for item in absent() if item.name == "BrandNewConv")
    assert new.reason == NO_RECIPE
    assert "| BrandNewConv |" in table.markdown({}, {})


def test_names_without_a_row_exist_and_are_no_layers_in_use() -> None:
    for home, names in NO_LAYERS.items():
        assert names.keys() <= set(exported()[home])


def test_rows_have_names_of_their_own() -> None:
    keys = [case.key for case in CASES]
    assert len(keys) == len(set(keys))
    assert set(QUICK) <= set(keys)


@pytest.mark.parametrize("home", sorted(exported()))
def test_a_recipe_builds_what_its_name_says(home: str) -> None:
    """At least one row of every class contains the class, so that no row stands for another."""
    for name in exported()[home]:
        cases = [case for case in CASES if case.part == home and case.name.split()[0] == name]
        cls = getattr(gnn, name, None) or getattr(gnn.models, name, None)
        if cases and isinstance(cls, type):
            assert any(_contains(case, cls) for case in cases), name


def _contains(case: Case, cls: type) -> bool:
    try:
        modules = list(case.build().modules())
    except (ImportError, AttributeError) as error:
        return any(reason in str(error) for reason in (*LIBRARIES, NOT_WITH_NUMPY_2))
    # Classes such as Sequential and MLP make a class of their own for every instance.
    return any(isinstance(m, cls) or type(m).__name__.startswith(cls.__name__) for m in modules)


def test_the_targets_count_what_they_should() -> None:
    counted = [case for case in CASES if case.counted]
    by_part = {name: [case for case in counted if case.part == name] for name in ("conv", "model", "user")}
    assert len(by_part["model"]) == 31
    assert len(by_part["user"]) >= 18
    unavailable = {"SplineConv", "DynamicEdgeConv", "GravNetConv", "XConv", "PANConv", "FusedGATConv"}
    unavailable |= {"CuGraphSAGEConv", "CuGraphGATConv", "CuGraphRGCNConv"}
    assert len([case for case in by_part["conv"] if case.name not in unavailable]) == 64


def test_graphs_differ_in_size_and_are_the_same_every_time() -> None:
    assert torch.equal(example().x, example().x)
    assert example().num_nodes != second().num_nodes
    rough = hard()
    assert rough["no edges"].edge_index.size(1) == 0
    assert not rough["hub"].edge_index[1].any()
    assert torch.equal(*rough["self-loops"].edge_index)


# --- rows -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", QUICK)
def test_a_row_is_all_yes(key: str) -> None:
    row = measure(find(key), with_compile=False)
    missing = {
        column: row.reasons.get(column, "not reached") for column in row.cells if not row.cells[column]
    }
    assert not missing
    assert list(row.cells) == list(COLUMNS)[: len(row.cells)]


class Unequal(nn.Module):
    """Computes with the number of nodes of its first graph."""

    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.Linear(7, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.lin(x) * float(str(x.size(0)))


def test_a_model_that_cannot_be_traced_says_why() -> None:
    row = measure(Case("bad", Unequal, takes("x"), part="user"), with_compile=False)
    assert row.cells["eager"]
    assert not row.cells["traced"]
    assert "TraceError" in row.reasons["traced"]
    assert "second" not in row.cells


def test_a_missing_library_is_the_reason() -> None:
    def build() -> nn.Module:
        raise ImportError("'X' requires 'something'")

    row = measure(Case("bad", build, takes("x"), part="user"), with_compile=True)
    assert row.cells == {"eager": False}
    assert table.reason(row.as_json()) == "does not run here: ImportError: 'X' requires 'something'"


# --- the runner -------------------------------------------------------------------------------------


def _row(key: str, **cells: bool) -> dict[str, Any]:
    return {
        "key": key, "with_compile": True, "cells": cells, "reasons": {}, "refused": False, "facts": {},
        "seconds": 1.0,
    }  # fmt: skip


def test_rows_are_kept_and_taken_up_again(tmp_path: Path) -> None:
    results = runner.Results(tmp_path / "deep" / "coverage.json")
    results.about = {"seed": 0}
    results.add(_row("user:a", eager=True))
    results.add({**_row("user:b", eager=True), "with_compile": False})
    again = runner.Results(tmp_path / "deep" / "coverage.json")
    assert again.has("user:a", with_compile=True)
    assert again.has("user:b", with_compile=False)
    assert not again.has("user:b", with_compile=True)
    assert not again.has("user:c", with_compile=False)
    assert json.loads(again.path.read_text())["about"] == {"seed": 0}


@pytest.mark.skipif(sys.platform != "linux", reason="signals")
def test_a_row_that_hangs_is_a_row() -> None:
    row = runner.run_row(CASES[0].key, with_compile=False, timeout=0.01)
    assert row["reasons"] == {"row": "not finished after 0 s"}
    assert table.reason(row) == "not finished after 0 s"
    assert table.missed_targets({CASES[0].key: row}, with_compile=False)


def test_a_row_that_is_not_known_crashes_alone() -> None:
    row = runner.run_row("conv:no such row", with_compile=False, timeout=100)
    assert row["reasons"]["row"].startswith("crashed with exit code")


# --- the table --------------------------------------------------------------------------------------


def test_all_targets_can_be_reached_and_missed() -> None:
    rows = {case.key: _row(case.key, **dict.fromkeys(COLUMNS, True)) for case in CASES}
    assert table.missed_targets(rows, with_compile=True) == []
    assert table.failures(rows) == []
    user = next(case.key for case in CASES if case.part == "user")
    rows[user]["cells"]["train"] = False
    number = len([case for case in CASES if case.part == "user"])
    assert table.missed_targets(rows, with_compile=True) == [
        f"user: {number - 1} of {number} traced, wanted {number}"
    ]
    assert len(table.failures(rows)) == 1


def test_a_failed_compilation_has_to_name_a_node() -> None:
    rows = {case.key: _row(case.key, **dict.fromkeys(COLUMNS, True)) for case in CASES}
    row = rows["conv:GCNConv"]
    row["cells"]["compiled"], row["reasons"]["compiled"] = False, "BackendError: cannot lower mul"
    assert "not refused by name" in table.missed_targets(rows, with_compile=True)[0]
    row["refused"] = True
    assert table.missed_targets(rows, with_compile=True) == []


def test_the_document_has_every_row() -> None:
    document = table.markdown({}, {"seed": 0})
    for case in catalogue.CASES:
        assert f"| {case.name} " in document
    assert document.count("not run") == len(CASES)
