"""What the server counts and times, for Prometheus. No text of anyone ever goes in here."""

from __future__ import annotations

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_ROWS = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """The server's metrics, in a registry of their own."""

    def __init__(self) -> None:
        """Register everything, also memory and processor time of this process."""
        own = self.registry = CollectorRegistry()
        ProcessCollector(registry=own)
        PlatformCollector(registry=own)
        self.requests = Counter(
            "raggd_requests", "Requests answered.", ["route", "status"], registry=own
        )
        self.seconds = Histogram(
            "raggd_request_seconds",
            "Time to answer a request.",
            ["route"],
            buckets=_SECONDS,
            registry=own,
        )
        self.waiting = Gauge("raggd_waiting", "Answers waiting to be begun.", registry=own)
        self.running = Gauge("raggd_running", "Answers being written.", registry=own)
        self.batch = Histogram(
            "raggd_batch_rows", "Rows of a decoding step.", buckets=_ROWS, registry=own
        )
        self.adaptation = Histogram(
            "raggd_adaptation_seconds",
            "Time to predict an update.",
            buckets=_SECONDS,
            registry=own,
        )
        self.read = Histogram(
            "raggd_read_seconds", "Time to read joining prompts.", buckets=_SECONDS, registry=own
        )
        self.step = Histogram(
            "raggd_decode_step_seconds", "Time of a decoding step.", buckets=_SECONDS, registry=own
        )
        self.prompt_tokens = Counter("raggd_prompt_tokens", "Prompt tokens read.", registry=own)
        self.answer_tokens = Counter("raggd_answer_tokens", "Tokens written.", registry=own)
        self.cancelled = Counter(
            "raggd_cancelled", "Answers given up by client or timeout.", registry=own
        )
        self.update_hits = Counter(
            "raggd_update_cache_hits", "Adapted states found in memory or on disk.", registry=own
        )
        self.update_misses = Counter(
            "raggd_update_cache_misses", "Adapted states that had to be made.", registry=own
        )
        self.update_bytes = Gauge(
            "raggd_update_cache_bytes", "Memory of predicted updates.", registry=own
        )
        self.updates_dropped = Gauge(
            "raggd_update_cache_dropped", "Updates dropped within the bound so far.", registry=own
        )
        self.passages = Gauge("raggd_passages", "Passages of the index in use.", registry=own)
        self.index_swaps = Counter(
            "raggd_index_swaps", "Times that changed documents were indexed.", registry=own
        )
        self.index_failures = Counter(
            "raggd_index_failures", "Times that changed documents could not be.", registry=own
        )

    def text(self) -> bytes:
        """Return everything in Prometheus' text form."""
        return generate_latest(self.registry)
