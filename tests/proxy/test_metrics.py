"""Counters, their sums, and what Prometheus reads of them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from sqlwall import __version__
from sqlwall.proxy.counters import BUCKETS, LABELS_LIMIT, Counters, Histogram, merge
from sqlwall.proxy.metrics import WallCollector

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def rendered(counters: Mapping[str, Any], gauges: Mapping[str, float] | None = None) -> Samples:
    """What a scrape would give, by name and labels."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(WallCollector(lambda: (counters, gauges or {})))
    text = generate_latest(registry).decode()
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def used() -> Counters:
    counters = Counters()
    counters.connection_opened()
    counters.session_started("bot")
    counters.statement("bot", "SELECT", "allow")
    counters.statement("bot", "select", "allow")
    counters.statement("bot", "DELETE", "deny")
    counters.refusal("bounded-writes-only")
    counters.gate("passed")
    counters.limit("reads")
    counters.session_ended("client")
    counters.auth_failure()
    counters.upstream_failure()
    counters.cancel()
    counters.reload("success")
    counters.bytes_from_client += 100
    counters.bytes_from_server += 200
    counters.parsing.observe(3e-6)
    counters.judging.observe(2.0)
    return counters


def test_everything_counted_can_be_scraped() -> None:
    found = rendered(used().snapshot(), {"sqlwall_ready": 1.0})
    assert found["sqlwall_build_info", (("version", __version__),)] == 1
    assert found["sqlwall_connections_total", ()] == 1
    assert found["sqlwall_client_received_bytes_total", ()] == 100
    assert found["sqlwall_server_received_bytes_total", ()] == 200
    assert found["sqlwall_auth_failures_total", ()] == 1
    assert found["sqlwall_upstream_failures_total", ()] == 1
    assert found["sqlwall_cancel_requests_total", ()] == 1
    labels = (("action", "allow"), ("agent", "bot"), ("operation", "select"))
    assert found["sqlwall_statements_total", labels] == 2
    assert found["sqlwall_refusals_total", (("rule", "bounded-writes-only"),)] == 1
    assert found["sqlwall_gate_decisions_total", (("outcome", "passed"),)] == 1
    assert found["sqlwall_limits_hit_total", (("rule", "reads"),)] == 1
    assert found["sqlwall_sessions_ended_total", (("reason", "client"),)] == 1
    assert found["sqlwall_sessions", (("agent", "bot"),)] == 1
    assert found["sqlwall_reloads_total", (("outcome", "success"),)] == 1
    assert found["sqlwall_parse_seconds_count", ()] == 1
    assert found["sqlwall_parse_seconds_bucket", (("le", "5e-06"),)] == 1
    assert found["sqlwall_parse_seconds_bucket", (("le", "2.5e-06"),)] == 0
    assert found["sqlwall_judge_seconds_bucket", (("le", "1.0"),)] == 0
    assert found["sqlwall_judge_seconds_bucket", (("le", "+Inf"),)] == 1
    assert found["sqlwall_judge_seconds_sum", ()] == 2.0
    assert found["sqlwall_ready", ()] == 1


def test_a_wall_that_nobody_used_can_be_scraped() -> None:
    found = rendered(merge([]))
    assert found["sqlwall_connections_total", ()] == 0
    assert found["sqlwall_parse_seconds_count", ()] == 0


def test_a_snapshot_is_plain_values() -> None:
    snapshot = used().snapshot()
    assert json.loads(json.dumps(snapshot)) == snapshot


def test_snapshots_add_up() -> None:
    merged = merge([used().snapshot(), used().snapshot(), Counters().snapshot()])
    found = rendered(merged)
    assert found["sqlwall_connections_total", ()] == 2
    labels = (("action", "deny"), ("agent", "bot"), ("operation", "delete"))
    assert found["sqlwall_statements_total", labels] == 2
    assert found["sqlwall_sessions", (("agent", "bot"),)] == 2
    assert found["sqlwall_parse_seconds_count", ()] == 2
    assert found["sqlwall_judge_seconds_sum", ()] == 4.0


def test_a_merge_changes_nothing_that_it_was_given() -> None:
    one = used().snapshot()
    before = json.dumps(one)
    merge([one, one])
    assert json.dumps(one) == before


def test_a_merge_can_be_merged_again() -> None:
    one = used().snapshot()
    assert rendered(merge([merge([one, one]), one])) == rendered(merge([one, one, one]))


def test_sessions_go_up_and_down() -> None:
    counters = Counters()
    counters.session_started("a")
    counters.session_started("a")
    counters.session_closed("a")
    assert rendered(counters.snapshot())["sqlwall_sessions", (("agent", "a"),)] == 1


def test_sessions_beyond_the_limit_of_labels_go_up_and_down_too() -> None:
    counters = Counters()
    names = [f"agent{number}" for number in range(LABELS_LIMIT + 10)]
    for name in names:
        counters.session_started(name)
    assert len(counters.sessions) <= LABELS_LIMIT + 1
    for name in names:
        counters.session_closed(name)
    assert len(counters.sessions) <= LABELS_LIMIT + 1
    assert sum(counters.sessions.values()) == 0
    assert min(counters.sessions.values()) == 0


def test_no_agent_can_make_metrics_grow_without_end() -> None:
    counters = Counters()
    for number in range(LABELS_LIMIT * 3):
        counters.statement("bot", f"operation{number}", "allow")
        counters.refusal(f"rule{number}")
    assert len(counters.statements) == LABELS_LIMIT + 1
    assert counters.statements["other", "other", "other"] == LABELS_LIMIT * 2
    assert counters.refusals["other",] == LABELS_LIMIT * 2


@pytest.mark.parametrize("name", ['quo"te', "back\\slash", "new\nline", "ünï", "{}"])
def test_a_label_with_odd_letters_can_be_scraped(name: str) -> None:
    counters = Counters()
    counters.statement(name, "select", "allow")
    labels = (("action", "allow"), ("agent", name), ("operation", "select"))
    assert rendered(counters.snapshot())["sqlwall_statements_total", labels] == 1


def test_a_histogram_counts_each_duration_once() -> None:
    histogram = Histogram()
    for bound in BUCKETS:
        histogram.observe(bound)
    histogram.observe(1e9)
    assert histogram.counts == [1] * (len(BUCKETS) + 1)


def test_what_others_count_is_read_when_it_is_asked_for() -> None:
    counters, hits = Counters(), [0]
    counters.watch("cache_hits", lambda: hits[0])
    hits[0] = 7
    assert rendered(counters.snapshot())["sqlwall_facts_cache_hits_total", ()] == 7
    both = merge([counters.snapshot(), counters.snapshot(), Counters().snapshot()])
    assert rendered(both)["sqlwall_facts_cache_hits_total", ()] == 14


def test_what_nobody_counts_is_not_said_to_be_zero() -> None:
    names = {name for name, _ in rendered(merge([Counters().snapshot()]))}
    assert not names & {
        "sqlwall_facts_cache_hits_total",
        "sqlwall_parser_deaths_total",
        "sqlwall_client_sent_bytes_total",
    }


def test_only_a_reload_that_was_taken_over_has_a_time() -> None:
    counters = Counters()
    counters.reload("failure")
    assert ("sqlwall_last_reload_timestamp_seconds", ()) not in rendered(counters.snapshot())
    counters.reload("success")
    merged = merge([Counters().snapshot(), counters.snapshot()])
    assert rendered(merged)["sqlwall_last_reload_timestamp_seconds", ()] > 1e9


def test_a_merge_keeps_the_limit_of_labels() -> None:
    snapshots = []
    for worker in range(3):
        counters = Counters()
        for number in range(LABELS_LIMIT):
            counters.refusal(f"worker{worker}-rule{number}")
        snapshots.append(counters.snapshot())
    merged = merge(snapshots)["refusals"]
    assert len(merged) == LABELS_LIMIT + 1
    assert sum(count for _, count in merged) == 3 * LABELS_LIMIT


@pytest.mark.parametrize("label", ["\ud800", "x" * 10_000])
def test_no_label_makes_the_whole_page_fail(label: str) -> None:
    counters = Counters()
    for _ in range(2):
        counters.session_started(label)
        counters.session_closed(label)
    assert len(counters.sessions) == 1
    assert sum(counters.sessions.values()) == 0
    assert rendered(counters.snapshot())


def test_a_session_that_ends_stays_counted_as_one_that_began() -> None:
    counters = Counters()
    counters.session_started("bot")
    counters.session_closed("bot")
    found = rendered(counters.snapshot())
    assert found["sqlwall_sessions", (("agent", "bot"),)] == 0
    assert found["sqlwall_sessions_started_total", (("agent", "bot"),)] == 1
