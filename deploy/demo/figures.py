"""How the demo writes figures: shares, differences in points, spans."""

from evals.records import MetricResult

NONE = "-"


def percent(part: float, whole: float) -> str:
    """A share, such as `78.3 %`."""
    return NONE if not whole else f"{100 * part / whole:.1f} %"


def share(value: float | None) -> str:
    """A mean of values from 0 to 1, as a share."""
    return NONE if value is None else percent(value, 1)


def signed(value: float | None) -> str:
    """A difference of shares, in points."""
    return NONE if value is None else f"{100 * value:+.1f}"


def interval_text(metric: MetricResult) -> str:
    """A difference with its interval, in points."""
    return (
        f"{signed(metric.delta)} points [{signed(metric.ci_low)}, {signed(metric.ci_high)}], "
        f"n = {metric.n}"
    )


def seconds(value: float | None) -> str:
    """A span."""
    return NONE if value is None else f"{value:.1f} s"


def figure(value: float | None) -> str:
    """Any other figure, to three digits."""
    return NONE if value is None else f"{value:.3g}"
