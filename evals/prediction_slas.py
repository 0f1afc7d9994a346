"""Service levels of predictions, in the same form as those of texts (`evals.slas`).

Those of outcomes are judged on predictions whose outcome is known, and say the least that a model
is good for at all: give a model its own limits (`predictions.slas` of its entry).
"""

from collections.abc import Mapping, Sequence

from evals.prediction_window import ERROR, features_in
from evals.slas import ALL, DRIFTED, MISSING, TARGET, Kept, Sla, judge_slas, slas_in_force
from evals.windows import Frame

# A column has moved where it is half a standard deviation (numbers, Wasserstein) or half of what is
# possible (labels, Jensen and Shannon) from the reference: far beyond the change of a week.
MOVED = (
    ("num_method", "wasserstein"), ("num_threshold", 0.5),
    ("cat_method", "jensenshannon"), ("cat_threshold", 0.5),
)  # fmt: skip

PREDICTION_SLAS: Sequence[Sla] = (
    Sla("sla_failed", "MeanValue", "failed", "lt", 0.05),
    Sla("sla_latency_p95", "QuantileValue", "latency_ms", "lt", 1_000, (("quantile", 0.95),)),
    Sla("sla_missing", MISSING, ALL, "lt", 0.05),  # of each feature
    Sla("sla_drifted_columns", DRIFTED, ALL, "lt", 0.5, MOVED),
    Sla("sla_brier", "MeanValue", ERROR, "lte", 0.25),
    Sla("sla_auc", "RocAuc", TARGET, "gte", 0.55),
    Sla("sla_f1", "F1Score", TARGET, "gte", 0.1),
)


def judge_prediction_slas(
    limits: Mapping[str, float | None], window: Frame, reference: Frame = None
) -> list[Kept]:
    """Each with the limits that the configuration gives; the share of missing values by feature."""
    slas = [
        one
        for sla in slas_in_force(limits, PREDICTION_SLAS)
        for one in _spread(sla, window, reference)
    ]
    return judge_slas(slas, window, reference)


def _spread(sla: Sla, window: Frame, reference: Frame) -> list[Sla]:
    """The service level of each feature, or of those that both sides have."""
    features = features_in(window)
    if sla.metric == MISSING:
        names = {name: name.partition(".")[2] for name in features}
        return [
            Sla(f"{sla.name}.{name}", MISSING, column, sla.condition, sla.limit)
            for column, name in names.items()
        ]
    if sla.metric == DRIFTED:
        both = tuple(
            name
            for name in features
            if reference is not None
            and name in reference
            and window[name].notna().any()
            and reference[name].notna().any()
        )
        options = (*sla.options, ("columns", both))
        return [Sla(sla.name, DRIFTED, ALL, sla.condition, sla.limit, options)] if both else []
    return [sla]
