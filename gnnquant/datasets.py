"""Graphs for the demo and the benchmarks: one embedded, the others PyG downloads or finds on disk."""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from gnnquant.errors import InputError
from gnnquant.folders import cache_folder

if TYPE_CHECKING:
    from torch import Tensor
    from torch_geometric.data import Data

PLANETOID = ("Cora", "CiteSeer", "PubMed")
COAUTHOR = ("CS", "Physics")
AMAZON = ("Computers", "Photo")
DATASETS = ("digits", *PLANETOID, *COAUTHOR, *AMAZON)
"""Names that ``load_dataset`` knows."""

DATA_ROOT_VARIABLE = "GNNQUANT_DATA"
DIGITS_NEIGHBOURS = 10
TRAIN_PER_CLASS = 20
VALIDATION = 500


def load_dataset(name: str, data_root: str | os.PathLike[str] | None = None) -> Data:
    """One graph with ``x``, ``edge_index``, ``y`` and the three masks.

    Args:
        name: ``"digits"``; ``"Cora"``, ``"CiteSeer"``, ``"PubMed"`` (Planetoid); ``"CS"``, ``"Physics"``
            (Coauthor); ``"Computers"``, ``"Photo"`` (Amazon).
        data_root: Folder that holds ``<name>/raw`` (not for the digits). ``None``: the
            environment variable ``GNNQUANT_DATA``, else a cache folder. A folder that cannot be
            written to is copied into the cache first: PyG writes beside the raw files.

    Returns:
        The graph: features float32 [N, F], labels int64 [N].

    Raises:
        InputError: For an unknown name, or files that are missing and cannot be downloaded, or
            that cannot be read.
    """
    if name == "digits":
        return digits()
    if name not in DATASETS:
        raise InputError(f"there is no dataset {name!r}; choose one of {', '.join(DATASETS)}")
    given = data_root or os.environ.get(DATA_ROOT_VARIABLE)
    return downloaded(name, Path(given).expanduser() if given else cache_folder("planetoid"))


def digits() -> Data:
    """The 10-nearest-neighbour graph of scikit-learn's handwritten digits.

    1797 real images of 8 x 8 pixels, shipped in that package. Features are the pixels in [0, 1]; two
    images are linked when one is among the 10 nearest of the other (Euclidean distance). The split is that
    of ``split``.

    Returns:
        The graph: N = 1797, F = 64, 10 classes.

    Raises:
        InputError: When scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
        from sklearn.neighbors import kneighbors_graph
    except ImportError as error:
        raise InputError(
            "the digits dataset comes with scikit-learn: pip install 'gnnquant[demo]'"
        ) from error
    import numpy as np
    import torch
    from torch_geometric.data import Data

    pixels, labels = load_digits(return_X_y=True)
    nearest = kneighbors_graph(pixels, DIGITS_NEIGHBOURS, mode="connectivity").tocoo()
    source = np.concatenate([nearest.row, nearest.col])
    target = np.concatenate([nearest.col, nearest.row])
    edges = np.unique(np.stack([source, target]), axis=1)

    y = torch.from_numpy(labels.astype(np.int64))
    return Data(
        x=torch.from_numpy((pixels / 16).astype(np.float32)),
        edge_index=torch.from_numpy(edges.astype(np.int64)),
        y=y,
        **split(y),
    )


def split(labels: Tensor) -> dict[str, Tensor]:
    """20 nodes a class for training, 500 others for validation, the rest for testing.

    The same for every run and machine, for graphs that come without a split.

    Args:
        labels: int64 [N].

    Returns:
        ``train_mask``, ``val_mask`` and ``test_mask``, bool [N].
    """
    import numpy as np
    import torch

    classes = labels.numpy()
    # The legacy generator, because its stream is promised never to change.
    order = np.random.RandomState(0).permutation(len(classes))
    train = np.concatenate([order[classes[order] == c][:TRAIN_PER_CLASS] for c in np.unique(classes)])
    rest = order[~np.isin(order, train)]
    parts = {"train_mask": train, "val_mask": rest[:VALIDATION], "test_mask": rest[VALIDATION:]}
    masks = {name: torch.zeros(len(classes), dtype=torch.bool) for name in parts}
    for name, chosen in parts.items():
        masks[name][torch.from_numpy(chosen)] = True
    return masks


def downloaded(name: str, root: Path) -> Data:
    """A graph with row-normalised features and the public split; where there is none, that of ``split``.

    Args:
        name: One of ``DATASETS`` but ``"digits"``.
        root: Folder that holds, or will hold, ``<name>/raw``.

    Raises:
        InputError: As ``load_dataset``.
    """
    from torch_geometric.datasets import Amazon, Coauthor, Planetoid
    from torch_geometric.transforms import NormalizeFeatures

    family = Planetoid if name in PLANETOID else Coauthor if name in COAUTHOR else Amazon
    source = root / name / "raw"
    missing = _missing(name, source)
    if not _writable(root / name):
        if missing:
            raise InputError(f"{root} cannot be written to, and {_where_files_go(name, source, missing)}")
        root = _copied(name, source)
    try:
        data = family(str(root), name, transform=NormalizeFeatures())[0]
    except Exception as error:
        # Whatever the download or the unpickling of foreign files raises: PyG documents no set.
        missing = _missing(name, source)
        if missing:
            raise InputError(
                f"{name} could not be downloaded ({_one_line(error)}), and "
                f"{_where_files_go(name, source, missing)}"
            ) from error
        raise InputError(
            f"the files of {name} in {source} cannot be read ({_one_line(error)}): delete "
            f"{root / name} and fetch them again"
        ) from error
    if name not in PLANETOID:
        data.update(split(data.y))
    return data


def raw_files(name: str) -> tuple[str, ...]:
    """Names of the raw files of a graph that is not embedded."""
    if name in COAUTHOR:
        return (f"ms_academic_{name[:3].lower()}.npz",)
    if name in AMAZON:
        return (f"amazon_electronics_{name.lower()}.npz",)
    parts = ("x", "tx", "allx", "y", "ty", "ally", "graph", "test.index")
    return tuple(f"ind.{name.lower()}.{part}" for part in parts)


def _missing(name: str, folder: Path) -> list[str]:
    """The raw files that are not there, or are there without content."""
    files = ((file, folder / file) for file in raw_files(name))
    return [file for file, path in files if not path.is_file() or path.stat().st_size == 0]


def _where_files_go(name: str, folder: Path, missing: list[str]) -> str:
    return (
        f"these files are not in {folder}: {', '.join(missing)}. Put them there, or say with "
        f"--data-root or {DATA_ROOT_VARIABLE} which folder holds {name}/raw"
    )


def _writable(folder: Path) -> bool:
    """Whether PyG may write into ``folder``, which need not exist yet.

    A folder without any write permission counts as read-only for root too.
    """
    while not folder.exists():
        folder = folder.parent
    permissions = folder.stat().st_mode & (stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH)
    return bool(permissions) and os.access(folder, os.W_OK)


def _copied(name: str, source: Path) -> Path:
    """Copy the raw files into the cache, unless they are there; returns the new root."""
    root = cache_folder("planetoid")
    target = root / name
    same = all(_same(source / file, target / "raw" / file) for file in raw_files(name))
    if not same:
        shutil.rmtree(target, ignore_errors=True)
        (target / "raw").mkdir(parents=True)
        for file in raw_files(name):
            shutil.copyfile(source / file, target / "raw" / file)
            # The time of the original, by which a later change of it is noticed.
            status = (source / file).stat()
            os.utime(target / "raw" / file, ns=(status.st_atime_ns, status.st_mtime_ns))
    return root


def _same(one: Path, other: Path) -> bool:
    if not other.is_file():
        return False
    first, second = one.stat(), other.stat()
    return (first.st_size, first.st_mtime_ns) == (second.st_size, second.st_mtime_ns)


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:200]
