"""Tests of the graph passes, one file per module."""
