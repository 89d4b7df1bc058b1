"""What of PyTorch Geometric can be traced, quantized and compiled: a table with one row per class and model.

``cases`` says what a row is, ``graphs`` makes inputs of any size, ``layers``, ``models``, ``user_models`` and
``published`` hold the recipes, ``catalogue`` puts them beside what PyG exports, ``measure`` fills one row,
``runner`` runs rows in processes of their own, and ``table`` writes the result.
"""
