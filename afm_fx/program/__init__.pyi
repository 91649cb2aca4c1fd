from . import torchrec as torchrec
from .batch import (
    Batch as Batch,
    KnowsOrigins as KnowsOrigins,
    Origin as Origin,
    inputs_of as inputs_of,
    rows_of as rows_of,
    some_rows_of as some_rows_of,
)
from .capture import capture as capture
from .change import Change as Change
from .diagnosis import explain_non_finite as explain_non_finite, explained_failure as explained_failure
from .exported_program import exported as exported, to_exported_program as to_exported_program
from .input_kind import InputKind as InputKind
from .input_mapping import METADATA_KEY as METADATA_KEY, InputMapping as InputMapping, dtype_name as dtype_name
from .inputs import (
    Inputs as Inputs,
    batch_flags as batch_flags,
    normalize_inputs as normalize_inputs,
    takes_single_dict as takes_single_dict,
)
from .logits import (
    as_logits as as_logits,
    columns_of as columns_of,
    expose_logits as expose_logits,
    probability_columns as probability_columns,
)
from .program import (
    Program as Program,
    dict_key as dict_key,
    require_program as require_program,
    unique_name as unique_name,
)
from .random_inputs import random_inputs as random_inputs
from .recipe import (
    PLAN_KEY as PLAN_KEY,
    PRODUCER as PRODUCER,
    RECIPE_KEY as RECIPE_KEY,
    FileRecipe as FileRecipe,
    file_recipe as file_recipe,
)
from .typed_inputs import split_inputs as split_inputs
from .user_model import (
    build_model as build_model,
    fitting as fitting,
    import_factory as import_factory,
    model_of as model_of,
)
from .watched_run import WatchedRun as WatchedRun, node_values as node_values
