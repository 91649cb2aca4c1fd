from . import moves as moves
from .absorb import (
    ABSORBED as ABSORBED,
    PER_FIELD as PER_FIELD,
    affine_of_linear as affine_of_linear,
    decoder_of as decoder_of,
    dense_source as dense_source,
    linear_site as linear_site,
)
from .need_features import MULTIPLIES as MULTIPLIES
from .outcomes import (
    Absorbed as Absorbed,
    Carried as Carried,
    Law as Law,
    Outcome as Outcome,
    Restored as Restored,
    Summed as Summed,
)
from .table import Entry as Entry, law_of as law_of, register as register, tables as tables
from .verdicts import (
    ON_CODES as ON_CODES,
    Fate as Fate,
    Verdict as Verdict,
    operator_name as operator_name,
    source_line as source_line,
)
