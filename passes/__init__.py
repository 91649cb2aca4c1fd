"""Graph-to-graph passes on functional ATen graphs. They know ``torch.fx`` and tensors; no data, no files, no ONNX.

For a pass manager: :func:`pipeline` gives the passes that apply a plan, ``passes.laws.register`` teaches them an
operator.
"""

from passes import laws
from passes.canonicalize import Canonicalize
from passes.errors import GraphInvariantError, PassError, PassPostconditionError, PassPreconditionError, RewriteError
from passes.factor import Factor, factor_of
from passes.graph_pass import GraphPass
from passes.pass_pipeline import HasFactors, pipeline
from passes.pointwise_convolutions import PointwiseConvolutions
from passes.sink_codes import Analysis, SinkCodes, analyze
from passes.sites import Site, find_sites
from passes.state_writes import EraseStateWrites
from passes.unify_linears import UnifyLinears
from passes.verdicts import Verdict

__all__ = [
    "Analysis",
    "Canonicalize",
    "EraseStateWrites",
    "Factor",
    "GraphInvariantError",
    "GraphPass",
    "HasFactors",
    "PassError",
    "PassPostconditionError",
    "PassPreconditionError",
    "PointwiseConvolutions",
    "RewriteError",
    "SinkCodes",
    "Site",
    "UnifyLinears",
    "Verdict",
    "analyze",
    "factor_of",
    "find_sites",
    "laws",
    "pipeline",
]
