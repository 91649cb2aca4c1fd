"""Graph-to-graph passes on functional ATen graphs. They know ``torch.fx`` and tensors; no data, no files, no ONNX."""
