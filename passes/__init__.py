"""Graph-to-graph passes on functional ATen graphs. They know ``torch.fx`` and tensors; no data, no files, no ONNX.

For a pass manager: :func:`pipeline` gives the passes that apply a plan, ``passes.laws.register`` teaches them an
operator. The middle is ``sink_codes``, which stands on the rooms ``graph``, ``canonical``, ``sites``, ``codes`` and
``laws``, in this order; ``serving`` makes what comes out cheap to serve.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
