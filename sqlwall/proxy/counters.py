"""What a worker counts: plain integers, for some grow with every message. `proxy.metrics` says what they mean.

Labels are bounded: agents are those that logged in, rules those of the rulesets, and beyond `LABELS_LIMIT` different
label sets of one metric everything further is counted as ``other``. What others count already is read when it is asked
for (`Counters.watch`).
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

LABELS_LIMIT: Final = 200
#: Characters of one label value.
LABEL_LENGTH: Final = 100
OTHER: Final = "other"
#: Upper bounds of durations in seconds: from a cache hit to a sandboxed parse.
BUCKETS: Final = (1e-6, 2.5e-6, 5e-6, 1e-5, 2.5e-5, 5e-5, 1e-4, 2.5e-4, 5e-4, 1e-3, 5e-3, 2.5e-2, 0.1, 1.0)


#: Attributes of `Counters`: numbers, numbers by labels, and durations.
PLAIN: Final = (
    "bytes_from_client",
    "bytes_to_client",
    "bytes_from_server",
    "bytes_to_server",
    "connections",
    "auth_failures",
    "upstream_failures",
    "cancels",
    "snapshot_rows",
    "snapshot_bytes",
)
LABELLED: Final = (
    "statements",
    "refusals",
    "gates",
    "snapshots",
    "limits",
    "throttled",
    "endings",
    "sessions",
    "logins",
    "reloads",
)
TIMED: Final = ("parsing", "judging", "covering")

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
        """Take a number that somebody else counts; `name` is a key of `metrics.WATCHED`."""
        self._watched[name] = read

    def statement(self, agent: str, operation: str, action: str) -> None:
        """A statement was judged."""
        add(self.statements, (agent, operation.lower(), action))

    def refusal(self, rule: str) -> None:
        """A rule, or something built in, refused."""
        add(self.refusals, (rule,))

    def gate(self, outcome: str) -> None:
        """The gate looked at a commit."""
        add(self.gates, (outcome,))

    def snapshot_taken(self, outcome: str) -> None:
        """A snapshot was prepared, or a write was refused for want of one; or its transaction has ended."""
        add(self.snapshots, (outcome,))

    def limit(self, rule: str) -> None:
        """A limit ended a statement."""
        add(self.limits, (rule,))

    def statement_throttled(self, agent: str) -> None:
        """A segment was refused because its agent sends too many."""
        add(self.throttled, (agent,))

    def connection_opened(self) -> None:
        """Somebody connected, whoever it is."""
        self.connections += 1

    def session_started(self, agent: str) -> None:
        """An agent's session runs."""
        add(self.sessions, (agent,))
        add(self.logins, (agent,))

    def session_closed(self, agent: str) -> None:
        """It has ended."""
        labels = _clean((agent,))
        # Labels are never forgotten, so a session leaves under the name under which it came.
        labels = labels if labels in self.sessions else (OTHER,)
        self.sessions[labels] = max(0, self.sessions.get(labels, 0) - 1)

    def session_ended(self, reason: str) -> None:
        """Why a session ended."""
        add(self.endings, (reason,))

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
        add(self.reloads, (outcome,))
        if outcome == "success":
            self.reloaded_at = time.time()

    def snapshot(self) -> dict[str, Any]:
        """All of it as plain values, to be sent to the supervisor."""
        found: dict[str, Any] = {name: getattr(self, name) for name in PLAIN}
        for name in LABELLED:
            found[name] = [[*labels, count] for labels, count in getattr(self, name).items()]
        for name in TIMED:
            histogram: Histogram = getattr(self, name)
            found[name] = [*histogram.counts, histogram.total]
        found["reloaded_at"] = self.reloaded_at
        found["watched"] = {name: read() for name, read in self._watched.items()}
        return found


def add(counts: dict[Labels, int], labels: Labels, count: int = 1) -> None:
    """Count under these labels, or under `OTHER` where there are too many."""
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
    labelled: dict[str, dict[Labels, int]] = {name: {} for name in LABELLED}
    watched: dict[str, int] = merged["watched"]
    for snapshot in snapshots:
        for name in PLAIN:
            merged[name] += snapshot[name]
        for name in TIMED:
            merged[name] = [a + b for a, b in zip(merged[name], snapshot[name], strict=True)]
        for name, counts in labelled.items():
            for *labels, count in snapshot[name]:
                add(counts, tuple(labels), count)
        for name, count in snapshot["watched"].items():
            watched[name] = watched.get(name, 0) + count
        merged["reloaded_at"] = max(merged["reloaded_at"], snapshot["reloaded_at"])
    for name, counts in labelled.items():
        merged[name] = [[*labels, count] for labels, count in counts.items()]
    return merged
