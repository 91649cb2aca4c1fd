"""The demo: train a DeepFM on generated clicks, compress it, export it, prove it, time it, and show one table."""
