"""The benchmark: this gateway beside its peers, on one machine, in one run.

`python -m tests.bench` prints the table; `tests.bench.memory`, `tests.bench.log` and
`tests.bench.feedback` measure what the peers do not have, `tests.bench.finetune` the steps of a
training. `docs/benchmark.md` tells how.
"""
