from .cli import main as main
from .command_errors import reported_errors as reported_errors
from .compress_files import (
    DENSE as DENSE,
    LOW_RANK as LOW_RANK,
    OUTPUTS as OUTPUTS,
    outputs_of as outputs_of,
    write_compressed as write_compressed,
    write_outputs as write_outputs,
)
