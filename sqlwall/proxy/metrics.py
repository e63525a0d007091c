"""What the counters of all workers mean, rendered by the supervisor for Prometheus.

What nobody counts is not shown: a zero would say that it never happened.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from sqlwall import __version__
from sqlwall.proxy.counters import BUCKETS

#: Attribute → name and meaning of the metric.
_PLAIN: Final[Mapping[str, tuple[str, str]]] = {
    "bytes_from_client": ("sqlwall_client_received_bytes", "Bytes received from agents."),
    "bytes_to_client": ("sqlwall_client_sent_bytes", "Bytes sent to agents."),
    "bytes_from_server": ("sqlwall_server_received_bytes", "Bytes received from PostgreSQL."),
    "bytes_to_server": ("sqlwall_server_sent_bytes", "Bytes sent to PostgreSQL."),
    "connections": ("sqlwall_connections", "Connections accepted, logged in or not."),
    "auth_failures": ("sqlwall_auth_failures", "Logins refused."),
    "upstream_failures": ("sqlwall_upstream_failures", "Sessions that PostgreSQL did not give."),
    "cancels": ("sqlwall_cancel_requests", "Cancel requests of agents."),
    "snapshot_rows": ("sqlwall_snapshot_rows", "Images of rows written to snapshots, as they are written."),
    "snapshot_bytes": ("sqlwall_snapshot_bytes", "Bytes of these images, before compression."),
}
_LABELLED: Final[Mapping[str, tuple[str, str, tuple[str, ...]]]] = {
    "statements": ("sqlwall_statements", "Statements judged.", ("agent", "operation", "action")),
    "refusals": ("sqlwall_refusals", "Refusals by rule.", ("rule",)),
    "gates": ("sqlwall_gate_decisions", "What the gate found at commit points.", ("outcome",)),
    "snapshots": (
        "sqlwall_snapshots",
        "Snapshots by what became of them, or why there is none.",
        ("outcome",),
    ),
    "limits": ("sqlwall_limits_hit", "Statements that a limit ended.", ("rule",)),
    "throttled": (
        "sqlwall_throttled",
        "Refusals because an agent sent too many statements per second.",
        ("agent",),
    ),
    "endings": ("sqlwall_sessions_ended", "Why sessions ended.", ("reason",)),
    "sessions": ("sqlwall_sessions", "Open sessions.", ("agent",)),
    "logins": ("sqlwall_sessions_started", "Sessions that began.", ("agent",)),
    "reloads": ("sqlwall_reloads", "Reloads of configuration and rulesets.", ("outcome",)),
}

_TIMED: Final[Mapping[str, tuple[str, str]]] = {
    "parsing": ("sqlwall_parse_seconds", "Time to parse and analyze a text that no cache knew."),
    "judging": ("sqlwall_judge_seconds", "Time to judge a statement whose verdict no cache knew."),
    "covering": ("sqlwall_snapshot_seconds", "Time to find, prove and store what a transaction has changed."),
}
#: What is counted elsewhere and only read: name and meaning of the metric.
WATCHED: Final[Mapping[str, tuple[str, str]]] = {
    "cache_hits": ("sqlwall_facts_cache_hits", "Texts whose facts were known."),
    "template_hits": (
        "sqlwall_facts_template_hits",
        "New texts whose facts were known from one that differs in literals only.",
    ),
    "cache_misses": ("sqlwall_facts_cache_misses", "Texts that had to be parsed."),
    "sandbox_deaths": ("sqlwall_parser_deaths", "Times that the parser process died over a text."),
    "parses_diverted": (
        "sqlwall_parses_diverted",
        "Texts read in the parser process because their agent had used up its share of the worker's time.",
    ),
    "sandbox_timeouts": ("sqlwall_parser_timeouts", "Times that the parser process took too long and was killed."),
}  # fmt: skip
#: Counted only where the shell counts them.
_SILENT_AT_ZERO: Final = frozenset({"bytes_to_client", "bytes_to_server"})
_GAUGES: Final[Mapping[str, str]] = {
    "sqlwall_audit_lag_seconds": "How long the oldest record has waited to become durable.",
    "sqlwall_audit_waiting_records": "Records that wait to become durable.",
    "sqlwall_audit_failed_writes": "Writes to the store that failed, in the workers that run.",
    "sqlwall_workers": "Worker processes that run.",
    "sqlwall_workers_failing": "Workers that cannot start; the log says why.",
    "sqlwall_worker_restarts": "Workers that had to be started again.",
    "sqlwall_last_reload_successful": "1 if the last reload was taken over, 0 if it was refused.",
    "sqlwall_ready": "1 if the wall serves, 0 if /readyz says why not.",
}


class WallCollector(Collector):
    """Renders what `read` returns: the merged snapshot, and gauges by name."""

    def __init__(self, read: Callable[[], tuple[Mapping[str, Any], Mapping[str, float]]]) -> None:
        self._read = read

    def collect(self) -> Iterator[Metric]:
        """All metrics of the wall."""
        counters, gauges = self._read()
        info = GaugeMetricFamily("sqlwall_build_info", "What is running.", labels=("version",))
        info.add_metric((__version__,), 1)
        yield info
        for key, (name, meaning) in _PLAIN.items():
            if counters[key] or key not in _SILENT_AT_ZERO:
                yield CounterMetricFamily(name, meaning, value=counters[key])
        for key, value in counters["watched"].items():
            name, meaning = WATCHED[key]
            yield CounterMetricFamily(name, meaning, value=value)
        for key, (name, meaning, labels) in _LABELLED.items():
            family: Any = (GaugeMetricFamily if key == "sessions" else CounterMetricFamily)(
                name, meaning, labels=labels
            )
            for *values, count in counters[key]:
                family.add_metric(values, count)
            yield family
        for key, (name, meaning) in _TIMED.items():
            yield _histogram(name, meaning, counters[key])
        if counters["reloaded_at"]:
            meaning = "When configuration and rulesets were last read anew, in Unix time."
            yield GaugeMetricFamily("sqlwall_last_reload_timestamp_seconds", meaning, counters["reloaded_at"])
        for name, value in gauges.items():
            meaning = _GAUGES.get(name, name.removeprefix("sqlwall_").replace("_", " "))
            yield GaugeMetricFamily(name, meaning, value=value)


def _histogram(name: str, meaning: str, values: list[float]) -> Metric:
    *counts, total = values
    buckets: list[tuple[str, float]] = []
    running = 0.0
    for bound, count in zip((*BUCKETS, float("inf")), counts, strict=True):
        running += count
        buckets.append(("+Inf" if bound == float("inf") else repr(bound), running))
    return HistogramMetricFamily(name, meaning, buckets=buckets, sum_value=total)
