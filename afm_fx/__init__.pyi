from . import (
    calibration as calibration,
    commands as commands,
    data as data,
    errors as errors,
    io as io,
    large_tables as large_tables,
    measure as measure,
    planning as planning,
    program as program,
    recovery as recovery,
    report as report,
    runtime as runtime,
)
from .calibration import Statistics as Statistics, calibrate as calibrate
from .compression import Compressed as Compressed, compress as compress
from .large_tables import apply_to_files as apply_to_files, export_onnx_over_files as export_onnx_over_files
from .measure import (
    Compiled as Compiled,
    ModelFactory as ModelFactory,
    OnnxFile as OnnxFile,
    benchmark as benchmark,
    compare_quality as compare_quality,
    load_test as load_test,
)
from .planning import (
    Budget as Budget,
    Energy as Energy,
    Fixed as Fixed,
    FullRank as FullRank,
    Latency as Latency,
    Plan as Plan,
    Tolerance as Tolerance,
    apply_plan as apply_plan,
    make_plan as make_plan,
    refit_plan as refit_plan,
    sweep as sweep,
)
from .program import (
    Program as Program,
    capture as capture,
    split_inputs as split_inputs,
    to_exported_program as to_exported_program,
)
from .recovery import recover as recover
from .report import explain as explain, explain_plan as explain_plan
from .runtime import (
    Session as Session,
    check_onnx as check_onnx,
    export_aoti as export_aoti,
    export_onnx as export_onnx,
    export_onnx_buckets as export_onnx_buckets,
    load_aoti as load_aoti,
    pack as pack,
    reduce_precision as reduce_precision,
)
from .version import __version__ as __version__
