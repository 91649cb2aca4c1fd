from .benchmark import MAX_DIFFERENT_BATCHES as MAX_DIFFERENT_BATCHES, benchmark as benchmark
from .contenders import (
    Competitor as Competitor,
    Compiled as Compiled,
    ModelFactory as ModelFactory,
    OnnxFile as OnnxFile,
    make_contender as make_contender,
)
from .evaluation import (
    LabelledBatch as LabelledBatch,
    LabelledRows as LabelledRows,
    labelled_rows as labelled_rows,
    predicted_logits as predicted_logits,
)
from .latencies import shown_us as shown_us
from .loadgen import SUMMARY as SUMMARY
from .measurement import Measurement as Measurement
from .quality_comparison import (
    QualityComparison as QualityComparison,
    compare_quality as compare_quality,
    task_qualities as task_qualities,
)
from .serving_load import LoadResult as LoadResult, load_test as load_test, requests_of as requests_of
from .worsening import Worsening as Worsening, auc as auc, auc_drop as auc_drop, log_loss_rise as log_loss_rise
