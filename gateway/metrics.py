"""Prometheus metrics of a worker, all derived from the request log's records.

Label values come from the configuration only (aliases, targets, endpoints, statuses), so that the
number of series is bounded; what only a wildcard covers is counted under `*`. Workers write them to
memory-mapped files a few times a second; the admin process serves their sum.
"""

from collections import Counter as Counts

from prometheus_client import Counter, Gauge, Histogram

from gateway.records import NANO_PER_USD, RequestRecord

LABELS = ("endpoint", "model", "target")
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
OVERHEAD_SECONDS = (0.00025, 0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.5)
MILLISECONDS = 1000


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
        self._tallies: dict[tuple[str, str, str], Tally] = {}

    def observe(self, record: RequestRecord, alias: str, target: str) -> None:
        """Count a finished request. `alias` and `target` are the configuration's own names."""
        labels = (record.endpoint, alias, target)
        tally = self._tallies.get(labels)
        if tally is None:
            tally = self._tallies[labels] = Tally()
        tally.add(record)

    def flush(self) -> None:
        """Move what was counted into the files."""
        tallies, self._tallies = self._tallies, {}
        for labels, tally in tallies.items():
            for status, count in tally.statuses.items():
                self.requests.labels(*labels, status).inc(count)
            for cache, count in tally.caches.items():
                self.cache.labels(*labels, cache).inc(count)
            for kind, count in tally.tokens.items():
                self.tokens.labels(*labels, kind).inc(count)
            self.cost.labels(*labels).inc(tally.cost_nano_usd / NANO_PER_USD)
            self.saved.labels(*labels).inc(tally.saved_nano_usd / NANO_PER_USD)
            for histogram, values in (
                (self.latency.labels(*labels), tally.latencies),
                (self.overhead.labels(*labels), tally.overheads),
                (self.first.labels(*labels), tally.firsts),
            ):
                for value in values:
                    histogram.observe(value / MILLISECONDS)


class Tally:
    """One label set's requests since the last flush; times in milliseconds."""

    __slots__ = (
        "caches", "cost_nano_usd", "firsts", "latencies", "overheads", "saved_nano_usd",
        "statuses", "tokens",
    )  # fmt: skip

    def __init__(self) -> None:
        self.statuses: Counts[str] = Counts()
        self.caches: Counts[str] = Counts()
        self.tokens: Counts[str] = Counts()
        self.cost_nano_usd = self.saved_nano_usd = 0
        self.latencies: list[float] = []
        self.overheads: list[float] = []
        self.firsts: list[float] = []

    def add(self, record: RequestRecord) -> None:
        """Count one request."""
        self.statuses[record.status] += 1
        if record.latency_ms is not None:
            self.latencies.append(record.latency_ms)
        if record.overhead_ms is not None:
            self.overheads.append(record.overhead_ms)
        if record.stream and record.ttft_ms is not None:
            self.firsts.append(record.ttft_ms)
        if record.cache is not None:
            self.caches[record.cache] += 1
        if record.usage_source is not None:
            self.tokens["input"] += record.input_tokens or 0
            self.tokens["output"] += record.output_tokens or 0
            self.tokens["cached"] += record.cached_tokens or 0
            self.tokens["reasoning"] += record.reasoning_tokens or 0
            self.cost_nano_usd += record.cost_nano_usd
            self.saved_nano_usd += record.saved_nano_usd
