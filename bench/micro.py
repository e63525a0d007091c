"""Microseconds of our own work: what a text costs that no cache knows, and one that the cache knows."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence

from sqlwall.cli.rulesets import find_ruleset
from sqlwall.proxy.counters import Histogram
from sqlwall.proxy.policy import FactsCache
from sqlwall.rules.context import Context, StaticCatalog
from sqlwall.rules.judge import judge
from sqlwall.rules.loader import load
from sqlwall.sql.parse import analyze_text

STATEMENTS = {
    "point select": "SELECT abalance FROM pgbench_accounts WHERE aid = {n}",
    "report of 5 joins": (
        "SELECT c.name, p.title, sum(i.quantity * i.price) FROM customers c JOIN orders o ON o.customer_id = c.id"
        " JOIN items i ON i.order_id = o.id JOIN products p ON p.id = i.product_id"
        " LEFT JOIN regions r ON r.id = c.region_id WHERE o.placed_at >= '2024-01-01' AND r.code = '{n}'"
        " GROUP BY c.name, p.title ORDER BY 3 DESC LIMIT 20"
    ),
    "insert": "INSERT INTO orders (id, customer_id, total) VALUES ({n}, 7, 12.50)",
    "update by key": "UPDATE orders SET total = 12.50 WHERE id = {n}",
}


def time_misses(texts: Sequence[bytes]) -> tuple[list[float], int]:
    """Microseconds of parse + analyze + judge of each text that parses, and how many do not or are too large.

    CPU time: nothing in it waits, and one percent of so short times is what other processes take away.
    """
    ruleset = load(*find_ruleset("agent-safe"))
    context = Context("bench", "bench", "bench", StaticCatalog())
    times: list[float] = []
    for text in texts:
        started = time.thread_time()
        facts = analyze_text(text)
        if isinstance(facts, tuple):
            for statement in facts:
                judge(statement, context, ruleset)
            times.append((time.thread_time() - started) * 1e6)
    return times, len(texts) - len(times)


def run(rounds: int = 3000) -> dict[str, float]:
    """Median microseconds of parse + analyze + judge on a miss, per statement, and of a lookup on a hit."""
    ruleset = load(*find_ruleset("agent-safe"))
    context = Context("bench", "bench", "bench", StaticCatalog())
    found: dict[str, float] = {}
    for name, text in STATEMENTS.items():
        times = []
        for number in range(rounds):
            raw = text.format(n=number).encode()
            started = time.perf_counter()
            facts = analyze_text(raw)
            assert isinstance(facts, tuple)
            judge(facts[0], context, ruleset)
            times.append(time.perf_counter() - started)
        found[f"miss: {name}"] = statistics.median(times) * 1e6
    cache = FactsCache(Histogram(), Histogram())
    raw = STATEMENTS["point select"].format(n=1).encode()
    cache.find(raw)
    started = time.perf_counter()
    for _ in range(100_000):
        cache.find(raw)
    found["hit: point select"] = (time.perf_counter() - started) / 100_000 * 1e6
    return found
