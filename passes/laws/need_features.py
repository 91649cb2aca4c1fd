"""Operators that need the features themselves, and why: one sentence for each group."""

from __future__ import annotations

from typing import Any

from passes.graph import aten
from passes.laws.outcomes import Law

BENDS = "it changes every feature by a curve, which a code does not follow"
NORMALIZES = "it sets every feature against the others (a mean, a spread, a norm, a sum of exponentials)"
ORDERS = "it looks for the largest or smallest of several features, and a code does not tell their order"
COMPARES = "it compares features with other numbers one by one, and a code does not tell their order"
MULTIPLIES = "it multiplies features with features, and a product of two codes is not a code"
FUSED = "it multiplies and adds in one operator; written as a product and a sum it would be done on codes"
RUNS_ON = "it adds features up one after the other"
WINDOWS = "it sums windows of neighbouring features, which have to be laid out for it"

NEED_FEATURES: dict[tuple[Law, str], tuple[Any, ...]] = {
    (Law.NONLINEAR, BENDS): (
        aten.relu.default, aten.sigmoid.default, aten.tanh.default, aten.gelu.default, aten.silu.default,
        aten.leaky_relu.default, aten.prelu.default, aten.elu.default, aten.exp.default, aten.log.default,
        aten.abs.default, aten.clamp.default, aten.sqrt.default, aten.softplus.default,
        aten.reciprocal.default, aten.hardtanh.default, aten.rsqrt.default,
        aten.relu6.default, aten.hardswish.default, aten.hardsigmoid.default, aten.mish.default, aten.celu.default,
        aten.selu.default, aten.erf.default, aten.exp2.default, aten.expm1.default, aten.log1p.default,
        aten.log2.default, aten.log10.default, aten.log_sigmoid.default, aten.sin.default, aten.cos.default,
        aten.tan.default, aten.atan.default, aten.sinh.default, aten.cosh.default, aten.sign.default,
        aten.round.default, aten.floor.default, aten.ceil.default, aten.trunc.default, aten.clamp_min.default,
        aten.clamp_max.default, aten.pow.Scalar, aten.threshold.default, aten.hardshrink.default,
        aten.softshrink.default, aten.logit.default,
    ),
    (Law.NONLINEAR, NORMALIZES): (
        aten.softmax.int, aten._softmax.default, aten.log_softmax.int, aten._log_softmax.default,
        aten.layer_norm.default, aten.native_layer_norm.default, aten.rms_norm.default, aten.group_norm.default,
        aten.native_group_norm.default, aten.instance_norm.default, aten.std.dim, aten.std.correction,
        aten.std.default, aten.var.dim, aten.var.correction, aten.var.default, aten.std_mean.correction,
        aten.var_mean.correction, aten.linalg_vector_norm.default, aten.norm.ScalarOpt_dim, aten.norm.Scalar,
        aten.logsumexp.default,
    ),
    (Law.NONLINEAR, ORDERS): (
        aten.max.dim, aten.max.default, aten.min.dim, aten.min.default, aten.amax.default, aten.amin.default,
        aten.argmax.default, aten.argmin.default, aten.topk.default, aten.sort.default, aten.argsort.default,
        aten.median.dim, aten.max_pool1d.default, aten.max_pool2d.default, aten.adaptive_max_pool1d.default,
        aten.kthvalue.default,
    ),
    (Law.NONLINEAR, COMPARES): (
        aten.maximum.default, aten.minimum.default, aten.gt.Scalar, aten.gt.Tensor, aten.ge.Scalar, aten.ge.Tensor,
        aten.lt.Scalar, aten.lt.Tensor, aten.le.Scalar, aten.le.Tensor, aten.eq.Scalar, aten.eq.Tensor,
        aten.ne.Scalar, aten.ne.Tensor, aten.isnan.default,
    ),
    (Law.INTERACTION, MULTIPLIES): (
        aten.prod.dim_int, aten.prod.default, aten.cumprod.default, aten.glu.default,
        aten.cosine_similarity.default, aten.pow.Tensor_Tensor, aten.pairwise_distance.default,
    ),
    (Law.LINEAR, FUSED): (
        aten.addmm.default, aten.baddbmm.default, aten.addcmul.default, aten.addcdiv.default, aten.lerp.Scalar,
    ),
    (Law.LINEAR, RUNS_ON): (aten.cumsum.default,),
    (Law.LINEAR, WINDOWS): (
        aten.conv1d.default, aten.conv2d.default, aten.avg_pool1d.default, aten.avg_pool2d.default,
        aten.adaptive_avg_pool1d.default, aten.adaptive_avg_pool2d.default,
    ),
}  # fmt: skip
