"""The detection study: how often drift is cried where there is none, and how soon it is found.

`python -m tests.bench.drift` takes texts of named sources, embeds them once, draws simulated
traffic out of them, and lets the same code decide that looks at real traffic
(`evals.comparison.measure`, `evals.spending`, `evals.drift_verdict`).
"""
