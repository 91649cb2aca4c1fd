from .canonicalize import Canonicalize as Canonicalize
from .expose_logits import ExposeLogits as ExposeLogits
from .fold_constants import FoldConstants as FoldConstants
from .pointwise_convolutions import PointwiseConvolutions as PointwiseConvolutions
from .state_writes import EraseStateWrites as EraseStateWrites, erase_state_writes as erase_state_writes
from .unify_linears import (
    CHANNELS as CHANNELS,
    UnifyLinears as UnifyLinears,
    makes_channels as makes_channels,
    parts_of as parts_of,
)
