"""Test accuracy of FP32, INT8, INT4 and INT2 over seeds, with rivals in the same harness.

``python -m benchmarks.accuracy``; see ``__main__``.
"""
