"""Reads on the record: in groups, with every text, and as many as there were."""

from __future__ import annotations

from typing import Any

from sqlwall.proxy.record import BETWEEN, TEXTS_LIMIT
from sqlwall.sql.parse import analyze_text
from tests.e2e.wall import RunningWall
from tests.proxy.test_supervisor import eventually


def reads(wall: RunningWall, table: str) -> list[dict[str, Any]]:
    """Those of the session that has just ended."""
    eventually(lambda: any(record["kind"] == "logout" for record in wall.audit()))
    return [record for record in wall.audit() if record["kind"] == "statement" and record["target"] == table]


def count(record: dict[str, Any]) -> int:
    return 1 if record["outcome"] == "once" else int(record["outcome"].partition(" ")[0])


def test_reads_that_differ_in_literals_are_few_records_with_every_text(wall: RunningWall) -> None:
    texts = [f"SELECT note FROM orders WHERE id = {number:05}" for number in range(2000)]
    with wall.connect() as client:
        client.execute("SELECT note FROM orders WHERE id = 99999")
        client.execute("SELECT note FROM orders WHERE id = 99998")  # what comes twice becomes a template
        for text in texts:
            client.execute(text)
        client.execute(texts[-1])
    found = reads(wall, "public.orders")
    kept = [text for record in found for text in record["statement"].split(BETWEEN.decode())]
    assert sorted(set(kept)) == sorted(
        {*texts, *(f"SELECT note FROM orders WHERE id = {n}" for n in (99999, 99998))}
    )
    assert sum(map(count, found)) == 2003
    assert len(found) < 1000
    for record in found:
        assert record["statement_bytes"] == len(record["statement"]) <= TEXTS_LIMIT


def test_a_record_of_several_reads_is_sql_that_says_what_each_of_them_said(wall: RunningWall) -> None:
    texts = [f"SELECT id FROM orders WHERE note = '{word}' -- {word}" for word in ("a", "b", "c")]
    with wall.connect() as client:
        for text in texts:
            client.execute(text)
            client.execute(text + ";")
    for record in reads(wall, "public.orders"):
        facts = analyze_text(record["statement"].encode())
        assert isinstance(facts, tuple)
        assert len(facts) == record["statement"].count("SELECT")


def test_a_text_beyond_the_limit_of_a_group_stands_alone(wall: RunningWall) -> None:
    long = f"SELECT note FROM orders WHERE id IN ({', '.join(map(str, range(2000)))})"
    assert len(long) > TEXTS_LIMIT
    with wall.connect() as client:
        client.execute("SELECT note FROM orders WHERE id = 1")
        client.execute(long)
        client.execute(long)
    found = [record for record in reads(wall, "public.orders") if record["statement_bytes"] == len(long)]
    assert sum(map(count, found)) == 2
    assert {record["statement"] for record in found} == {long[:TEXTS_LIMIT]}
