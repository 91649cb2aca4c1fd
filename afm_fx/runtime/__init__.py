"""Programs as they are served: packed, reduced, exported, checked, and run.

Read ``packing`` and ``reduced_precision`` (the program), ``onnx_export`` with ``onnx_signature``, ``onnx_parity``,
``onnx_check`` and ``onnx_buckets``, ``aoti`` (the files); ``artifact`` and ``file_inputs`` (what a file says and
takes), ``onnx_runtime`` (the one door), ``session`` with ``bucket``.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
