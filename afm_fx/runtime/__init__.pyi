from .aoti import AotiModel as AotiModel, AotiReport as AotiReport, export_aoti as export_aoti, load_aoti as load_aoti
from .artifact import (
    bucket_path as bucket_path,
    check_batch_sizes as check_batch_sizes,
    existing_buckets as existing_buckets,
    read_artifact as read_artifact,
    weights_path as weights_path,
)
from .file_inputs import (
    bind_batch as bind_batch,
    file_examples as file_examples,
    random_file_inputs as random_file_inputs,
    traffic_examples as traffic_examples,
)
from .onnx_buckets import export_onnx_buckets as export_onnx_buckets
from .onnx_check import CheckReport as CheckReport, Finding as Finding, check_onnx as check_onnx
from .onnx_export import (
    ExportReport as ExportReport,
    export_onnx as export_onnx,
    place_outside as place_outside,
    staged_export as staged_export,
)
from .onnx_runtime import (
    KINDS as KINDS,
    Provider as Provider,
    import_runtime as import_runtime,
    open_session as open_session,
    provider_of as provider_of,
    require_provider as require_provider,
)
from .packing import PackReport as PackReport, pack as pack
from .reduced_precision import PrecisionReport as PrecisionReport, reduce_precision as reduce_precision
from .session import Session as Session
