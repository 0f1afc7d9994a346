"""Evidently's page on outcomes, beside the report of a look at predictions: the quality of the
classification, window and reference, with the service levels that are about it."""

import warnings
from collections.abc import Sequence
from pathlib import Path

from evals.comparison import Comparison
from evals.drift_report import NoReport, outcomes_path, save
from evals.slas import CLASSIFICATION, ERRORS, PROBABILITY, TARGET, Kept, classification, metric_of


def write_outcomes(report: Path, comparison: Comparison, kept: Sequence[Kept]) -> None:
    """Write the page beside `report`, whole or not at all. Raises NoReport."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            from evidently import Dataset, Report
            from evidently.presets import ClassificationQuality

            reference, window = (
                Dataset.from_pandas(
                    rows[[TARGET, PROBABILITY]].dropna().reset_index(drop=True),
                    data_definition=classification(),
                )
                for rows in (comparison.reference, comparison.window)
            )
            judged = [
                metric_of(one.sla)
                for one in kept
                if one.sla.metric in CLASSIFICATION and one.value is not None
            ]
            shown = ClassificationQuality(conf_matrix=True, pr_curve=True)
            save(Report([*judged, shown]).run(window, reference), outcomes_path(report))
        except (*ERRORS, OSError) as error:
            raise NoReport(f"{type(error).__name__}: {error}") from error
