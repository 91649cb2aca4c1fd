from . import laws as laws
from .canonical import (
    Canonicalize as Canonicalize,
    EraseStateWrites as EraseStateWrites,
    PointwiseConvolutions as PointwiseConvolutions,
    UnifyLinears as UnifyLinears,
)
from .codes import Factor as Factor, factor_of as factor_of
from .graph import (
    GraphInvariantError as GraphInvariantError,
    GraphPass as GraphPass,
    PassError as PassError,
    PassPostconditionError as PassPostconditionError,
    PassPreconditionError as PassPreconditionError,
    RewriteError as RewriteError,
)
from .laws import Verdict as Verdict
from .pipeline import HasFactors as HasFactors, pipeline as pipeline
from .sink_codes import Analysis as Analysis, SinkCodes as SinkCodes, analyze as analyze
from .sites import Site as Site, find_sites as find_sites
