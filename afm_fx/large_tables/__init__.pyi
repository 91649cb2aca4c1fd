from .absent_tables import LARGE_BYTES as LARGE_BYTES, with_tables as with_tables
from .apply_files import (
    AppliedFiles as AppliedFiles,
    TableReport as TableReport,
    apply_to_files as apply_to_files,
    export_onnx_over_files as export_onnx_over_files,
)
from .sharded_tables import encode_sharded as encode_sharded
