"""The command line.

Read ``cli`` (the commands), ``command_options`` (commands made of dataclasses) and ``command_errors``, then a command
a file: ``calibrate_command``; ``compress_config`` with ``compress_files``; ``sweep_command``; ``serving_command``,
for which ``contender_names`` is how commands spell what they measure.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
