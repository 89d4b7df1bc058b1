"""Graph rewrites: one pass a file, run and checked by the pipeline in ``base``."""
