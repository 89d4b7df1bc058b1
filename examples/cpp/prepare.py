"""Writes what the C++ example reads: a GCN of INT4 as an artifact, and the graph as .npy files.

``python prepare.py FOLDER [DATASET]``. The data set is Cora unless another one is named; ``digits`` needs no
files.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch

import gnnquant
from gnnquant.datasets import load_dataset
from gnnquant.demo_models import GCN

EPOCHS = 60


def main(folder: Path, dataset: str = "Cora") -> None:
    """Train, quantize, compile and write."""
    torch.manual_seed(0)
    data = load_dataset(dataset)
    model = GCN(data.num_features, int(data.y.max()) + 1)
    gnnquant.finetune(model, data, lr=0.01, epochs=EPOCHS)
    q = gnnquant.convert(model, bits=4)
    gnnquant.finetune(q, data, teacher=model, epochs=EPOCHS // 2)
    compiled = gnnquant.compile(q)

    folder.mkdir(parents=True, exist_ok=True)
    compiled.save(folder / "model.gnnq")
    for name in ("x", "edge_index", "y"):
        np.save(folder / f"{name}.npy", np.ascontiguousarray(data[name].numpy()))
    right = compiled(data.x, data.edge_index).argmax(dim=1) == data.y
    print(f"{int(right.sum())} of {data.num_nodes} classes are right")


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
