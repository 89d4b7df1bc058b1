"""The graphs: two real ones, and two random ones of the size of public ones."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from benchmarks.jobs import load_once


@dataclass(frozen=True)
class PowerLaw:
    """A random graph whose expected degrees follow a power law (Chung and Lu, 2002).

    Attributes:
        nodes: Number of nodes.
        edges: Number of directed edges: both directions of half as many.
        features: Columns of its normally distributed features.
        classes: Scores of a model on it.
        exponent: Of the distribution of degrees.
    """

    nodes: int
    edges: int
    features: int
    classes: int
    exponent: float = 2.5

    def draw(self, seed: int = 0) -> tuple[Tensor, Tensor]:
        """Features float32 [N, F] and edges int64 [2, E], the same for the same seed."""
        rng = np.random.default_rng(seed)
        expected = (1 - rng.random(self.nodes)) ** (-1 / (self.exponent - 1))
        # a node cannot have more neighbours than there are nodes
        expected = np.minimum(expected, expected.mean() * self.nodes**0.5)
        upto = np.cumsum(expected / expected.sum())
        ends = np.searchsorted(upto, rng.random((2, self.edges // 2))).clip(0, self.nodes - 1)
        edges = np.concatenate([ends, ends[::-1]], axis=1)
        x = rng.standard_normal((self.nodes, self.features), dtype=np.float32)
        return torch.from_numpy(x), torch.from_numpy(edges)


REAL = {"Cora": "Cora", "PubMed": "PubMed"}
RANDOM = {
    "arxiv-size": PowerLaw(169_343, 2_315_598, 128, 40),
    "dense": PowerLaw(100_000, 11_000_000, 128, 40),
}
GRAPHS = (*REAL, *RANDOM)
"""Names on the command line."""


@functools.lru_cache(maxsize=1)
def load(name: str) -> tuple[Tensor, Tensor, int]:
    """Features float32 [N, F], edges int64 [2, E] and the number of classes of a graph."""
    if name in RANDOM:
        return (*RANDOM[name].draw(), RANDOM[name].classes)
    data = load_once(REAL[name])
    return data.x, data.edge_index, int(data.y.max()) + 1
