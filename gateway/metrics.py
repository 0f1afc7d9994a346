"""Prometheus metrics of a worker, all derived from the request log's records.

Label values come from the configuration only (aliases, targets, endpoints, statuses), so that the
number of series is bounded; what only a wildcard covers is counted under `*`. Workers write them to
memory-mapped files; the admin process serves their sum.
"""

from functools import lru_cache

from prometheus_client import Counter, Gauge, Histogram

from gateway.records import NANO_PER_USD, RequestRecord

LABELS = ("endpoint", "model", "target")
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
OVERHEAD_SECONDS = (0.00025, 0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.5)
MILLISECONDS = 1000
SERIES = 4096


class Metrics:
    """The worker's metrics. One instance in a process: the registry is the process's own."""

    def __init__(self) -> None:
        self.requests = Counter("llmops_requests", "Requests.", (*LABELS, "status"))
        self.tokens = Counter("llmops_tokens", "Tokens.", (*LABELS, "kind"))
        self.cost = Counter("llmops_cost_usd", "Booked cost, USD.", LABELS)
        self.saved = Counter("llmops_saved_usd", "What caches spared, USD.", LABELS)
        self.cache = Counter("llmops_cache_answers", "Answers by cache state.", (*LABELS, "cache"))
        self.latency = Histogram("llmops_latency_seconds", "Latency.", LABELS, buckets=SECONDS)
        self.first = Histogram("llmops_ttft_seconds", "First byte.", LABELS, buckets=SECONDS)
        self.overhead = Histogram(
            "llmops_overhead_seconds", "The gateway's own part.", LABELS, buckets=OVERHEAD_SECONDS
        )
        self.loop_lag = Histogram(
            "llmops_loop_lag_seconds", "Lateness of a timer.", buckets=OVERHEAD_SECONDS
        )
        self.in_flight = Gauge(
            "llmops_in_flight", "Requests under way.", multiprocess_mode="livesum"
        )
        self._series = lru_cache(SERIES)(self._bind)
        self._status = lru_cache(SERIES)(lambda *labels: self.requests.labels(*labels))

    def observe(self, record: RequestRecord, alias: str, target: str) -> None:
        """Count a finished request. `alias` and `target` are the configuration's own names."""
        labels = (record.endpoint, alias, target)
        self._status(*labels, record.status).inc()
        series = self._series(*labels)
        if record.latency_ms is not None:
            series.latency.observe(record.latency_ms / MILLISECONDS)
        if record.overhead_ms is not None:
            series.overhead.observe(record.overhead_ms / MILLISECONDS)
        if record.stream and record.ttft_ms is not None:
            series.first.observe(record.ttft_ms / MILLISECONDS)
        if record.usage_source is not None:
            self._observe_usage(record, series)
        if record.cache is not None:
            self.cache.labels(*labels, record.cache).inc()

    def _observe_usage(self, record: RequestRecord, series: "_Series") -> None:
        series.input.inc(record.input_tokens or 0)
        series.output.inc(record.output_tokens or 0)
        if record.cached_tokens:
            series.cached.inc(record.cached_tokens)
        series.cost.inc(record.cost_nano_usd / NANO_PER_USD)
        if record.saved_nano_usd:
            series.saved.inc(record.saved_nano_usd / NANO_PER_USD)

    def _bind(self, *labels: str) -> "_Series":
        return _Series(self, labels)


class _Series:
    """One label set's children, looked up once."""

    __slots__ = ("cached", "cost", "first", "input", "latency", "output", "overhead", "saved")

    def __init__(self, metrics: Metrics, labels: tuple[str, ...]):
        self.latency = metrics.latency.labels(*labels)
        self.overhead = metrics.overhead.labels(*labels)
        self.first = metrics.first.labels(*labels)
        self.input = metrics.tokens.labels(*labels, "input")
        self.cached = metrics.tokens.labels(*labels, "cached")
        self.output = metrics.tokens.labels(*labels, "output")
        self.cost = metrics.cost.labels(*labels)
        self.saved = metrics.saved.labels(*labels)
