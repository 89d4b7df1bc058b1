"""Tests of the TVM backend."""
