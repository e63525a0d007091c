"""What a worker counts: plain integers on the hot path, rendered by the supervisor for Prometheus.

Labels are bounded: agents are those that logged in, rules those of the rulesets, and beyond `LABELS_LIMIT` different
label sets of one metric everything further is counted as ``other``. What others count already is read when it is asked
for (`Counters.watch`), and is not shown where nobody counts it: a zero would say that it never happened.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from sqlwall import __version__

LABELS_LIMIT: Final = 200
#: Characters of one label value.
LABEL_LENGTH: Final = 100
OTHER: Final = "other"
#: Upper bounds of durations in seconds: from a cache hit to a sandboxed parse.
BUCKETS: Final = (1e-6, 2.5e-6, 5e-6, 1e-5, 2.5e-5, 5e-5, 1e-4, 2.5e-4, 5e-4, 1e-3, 5e-3, 2.5e-2, 0.1, 1.0)

Labels = tuple[str, ...]


class Histogram:
    """Counts by bucket, and their sum in seconds."""

    __slots__ = ("counts", "total")

    def __init__(self) -> None:
        self.counts = [0] * (len(BUCKETS) + 1)
        self.total = 0.0

    def observe(self, seconds: float) -> None:
        """Count one duration."""
        self.counts[bisect_left(BUCKETS, seconds)] += 1
        self.total += seconds


class Counters:
    """Everything one worker counts."""

    __slots__ = (
        "_watched", "auth_failures", "bytes_from_client", "bytes_from_server", "bytes_to_client", "bytes_to_server",
        "cancels", "connections", "covering", "endings", "gates", "judging", "limits", "logins", "parsing",
        "refusals", "reloaded_at", "reloads", "sessions", "snapshot_bytes", "snapshot_rows", "snapshots",
        "statements", "throttled", "upstream_failures",
    )  # fmt: skip

    def __init__(self) -> None:
        self.bytes_from_client = 0
        self.bytes_to_client = 0
        self.bytes_from_server = 0
        self.bytes_to_server = 0
        self.connections = 0
        self.snapshot_rows = 0
        self.snapshot_bytes = 0
        self.auth_failures = 0
        self.upstream_failures = 0
        self.cancels = 0
        self.reloaded_at = 0.0
        self.statements: dict[Labels, int] = {}
        self.refusals: dict[Labels, int] = {}
        self.gates: dict[Labels, int] = {}
        self.snapshots: dict[Labels, int] = {}
        self.limits: dict[Labels, int] = {}
        self.throttled: dict[Labels, int] = {}
        self.endings: dict[Labels, int] = {}
        self.sessions: dict[Labels, int] = {}
        self.logins: dict[Labels, int] = {}
        self.reloads: dict[Labels, int] = {}
        self.parsing = Histogram()
        self.covering = Histogram()
        self.judging = Histogram()
        self._watched: dict[str, Callable[[], int]] = {}

    def watch(self, name: str, read: Callable[[], int]) -> None:
        """Take a number that somebody else counts; `name` is a key of `WATCHED`."""
        assert name in WATCHED, name
        self._watched[name] = read

    def statement(self, agent: str, operation: str, action: str) -> None:
        """A statement was judged."""
        _add(self.statements, (agent, operation.lower(), action))

    def refusal(self, rule: str) -> None:
        """A rule, or something built in, refused."""
        _add(self.refusals, (rule,))

    def gate(self, outcome: str) -> None:
        """The gate looked at a commit."""
        _add(self.gates, (outcome,))

    def snapshot_taken(self, outcome: str) -> None:
        """A snapshot was prepared, or a write was refused for want of one; or its transaction has ended."""
        _add(self.snapshots, (outcome,))

    def limit(self, rule: str) -> None:
        """A limit ended a statement."""
        _add(self.limits, (rule,))

    def statement_throttled(self, agent: str) -> None:
        """A segment was refused because its agent sends too many."""
        _add(self.throttled, (agent,))

    def connection_opened(self) -> None:
        """Somebody connected, whoever it is."""
        self.connections += 1

    def session_started(self, agent: str) -> None:
        """An agent's session runs."""
        _add(self.sessions, (agent,))
        _add(self.logins, (agent,))

    def session_closed(self, agent: str) -> None:
        """It has ended."""
        labels = _clean((agent,))
        # Labels are never forgotten, so a session leaves under the name under which it came.
        labels = labels if labels in self.sessions else (OTHER,)
        self.sessions[labels] = max(0, self.sessions.get(labels, 0) - 1)

    def session_ended(self, reason: str) -> None:
        """Why a session ended."""
        _add(self.endings, (reason,))

    def auth_failure(self) -> None:
        """A login was refused."""
        self.auth_failures += 1

    def upstream_failure(self) -> None:
        """The server could not be reached, or refused our login."""
        self.upstream_failures += 1

    def cancel(self) -> None:
        """A client asked for a cancel."""
        self.cancels += 1

    def reload(self, outcome: str) -> None:
        """Configuration and rulesets were read anew: success or failure."""
        _add(self.reloads, (outcome,))
        if outcome == "success":
            self.reloaded_at = time.time()

    def snapshot(self) -> dict[str, Any]:
        """All of it as plain values, to be sent to the supervisor."""
        found: dict[str, Any] = {name: getattr(self, name) for name in _PLAIN}
        for name in _LABELLED:
            found[name] = [[*labels, count] for labels, count in getattr(self, name).items()]
        for name in _TIMED:
            histogram: Histogram = getattr(self, name)
            found[name] = [*histogram.counts, histogram.total]
        found["reloaded_at"] = self.reloaded_at
        found["watched"] = {name: read() for name, read in self._watched.items()}
        return found


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


def _add(counts: dict[Labels, int], labels: Labels, count: int = 1) -> None:
    known = counts.get(labels)
    if known is None:
        labels = _clean(labels)
        if labels not in counts and len(counts) >= LABELS_LIMIT:
            labels = (OTHER,) * len(labels)
        known = counts.get(labels, 0)
    counts[labels] = known + count


def _clean(labels: Labels) -> Labels:
    """Labels that can be rendered: a lone surrogate in one would make the whole page fail."""
    return tuple([label[:LABEL_LENGTH].encode("utf-8", "replace").decode() for label in labels])


def merge(snapshots: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The sum of several workers' snapshots, and of those that have ended."""
    merged: dict[str, Any] = Counters().snapshot()
    labelled: dict[str, dict[Labels, int]] = {name: {} for name in _LABELLED}
    watched: dict[str, int] = merged["watched"]
    for snapshot in snapshots:
        for name in _PLAIN:
            merged[name] += snapshot[name]
        for name in _TIMED:
            merged[name] = [a + b for a, b in zip(merged[name], snapshot[name], strict=True)]
        for name, counts in labelled.items():
            for *labels, count in snapshot[name]:
                _add(counts, tuple(labels), count)
        for name, count in snapshot["watched"].items():
            watched[name] = watched.get(name, 0) + count
        merged["reloaded_at"] = max(merged["reloaded_at"], snapshot["reloaded_at"])
    for name, counts in labelled.items():
        merged[name] = [[*labels, count] for labels, count in counts.items()]
    return merged


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
