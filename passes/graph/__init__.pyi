from .copies import clone_graph_module as clone_graph_module, convert_dtype as convert_dtype
from .edits import (
    buffer as buffer,
    call as call,
    derived_name as derived_name,
    drop_unused_state as drop_unused_state,
    emit_linear as emit_linear,
    finish as finish,
    parameter as parameter,
    replace_node as replace_node,
    reserve_names as reserve_names,
    rewrite_each as rewrite_each,
    stamp as stamp,
)
from .errors import (
    AfmFxError as AfmFxError,
    GraphInvariantError as GraphInvariantError,
    PassArgumentError as PassArgumentError,
    PassError as PassError,
    PassPostconditionError as PassPostconditionError,
    PassPreconditionError as PassPreconditionError,
    RewriteError as RewriteError,
    TableIndexError as TableIndexError,
)
from .fixpoint import FailedPass as FailedPass, run_to_fixpoint as run_to_fixpoint
from .graph_change import GraphPicture as GraphPicture, replaced_operands as replaced_operands
from .graph_checks import same_sizes as same_sizes, same_value as same_value
from .graph_pass import GraphPass as GraphPass
from .nodes import (
    FACTORED_SITE as FACTORED_SITE,
    NARROWED_LAYER as NARROWED_LAYER,
    PROVENANCE as PROVENANCE,
    SOURCE_AND_WEIGHT as SOURCE_AND_WEIGHT,
    WeightedCall as WeightedCall,
    args_of as args_of,
    argument as argument,
    aten as aten,
    constant_of as constant_of,
    equal_sizes as equal_sizes,
    fake_mode as fake_mode,
    get_attribute as get_attribute,
    is_call as is_call,
    is_random as is_random,
    is_read_by as is_read_by,
    known_true as known_true,
    rank_of as rank_of,
    same_form as same_form,
    shape_of as shape_of,
    value_of as value_of,
    weighted_call as weighted_call,
)
from .provenance import (
    KEEPS_IDS as KEEPS_IDS,
    MOVES as MOVES,
    Columns as Columns,
    FeatureColumns as FeatureColumns,
    IdColumn as IdColumn,
    TracedLookup as TracedLookup,
    is_size as is_size,
    run_on_positions as run_on_positions,
)
from .subgraphs import readers_inside as readers_inside, runs_subgraphs as runs_subgraphs
from .values import COMPUTED as COMPUTED, set_value as set_value
