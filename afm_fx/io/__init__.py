"""What lies outside: files, the terminal, the machine, other processes. Knows nothing of models.

Read ``output_directory`` (outputs are complete or absent), ``documents`` (JSON), ``tensor_files``, ``stored_tensor``,
``checkpoints`` and ``distributed_checkpoint``, ``external_file`` and ``onnx_file`` (reading without trust); ``tables``,
``progress``, ``quiet``; ``machine``, ``process_groups``, ``prefetch``.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
