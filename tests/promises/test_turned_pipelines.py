"""Pipelines in which one transaction ends and another begins."""

from __future__ import annotations

import time

import pytest

from sqlwall.wire import frontend
from tests.e2e.wire import SYNC, RawClient, run, states, tags
from tests.promises.guarded import Guarded, database_template, guarded, observer

__all__ = ["database_template", "guarded", "observer"]


def q(text: str) -> bytes:
    return frontend.query(text.encode())


WRITES = {
    "insert": ("INSERT INTO heap VALUES ('other', 7)", "INSERT INTO heap VALUES ('hidden', 7)"),
    "delete": (
        "WITH gone AS (DELETE FROM child WHERE id = 58 RETURNING 1) SELECT count(*) FROM gone",
        "WITH gone AS (DELETE FROM child WHERE id = 60 RETURNING 1) SELECT count(*) FROM gone",
    ),
}


@pytest.mark.parametrize("name", WRITES)
def test_counters_from_before_a_rollback_are_no_baseline_for_what_is_behind_it(
    guarded: Guarded, name: str
) -> None:
    """Between both the server may set its counters to zero, so that as many rows would be hidden as were counted."""
    first, second = WRITES[name]
    before = guarded.bags()
    with RawClient(guarded.wall.dsn()) as client:
        client.query(
            "UPDATE parent SET name = 'x' WHERE id = 1"
        )  # sets them to zero, and nothing does in the next second
        client.query(first)
        client.query("BEGIN")
        client.query("UPDATE parent SET name = 'y' WHERE id = 1")
        time.sleep(1.2)
        said = client.ask(run("ROLLBACK"), run("BEGIN READ WRITE"), run(second), run("COMMIT"), SYNC)
        assert not states(said)
        assert tags(said)[-1] == b"COMMIT"
    guarded.settled()
    assert guarded.apply(before, set()) == guarded.bags()


#: What ends the second of two transactions of a pipeline.
SECOND = {
    "committed": run("INSERT INTO heap VALUES ('more', 8)") + run("COMMIT"),
    "empty": run("COMMIT"),
    "rolled back": run("INSERT INTO heap VALUES ('more', 8)") + run("ROLLBACK"),
    # more than the share that may go, which shows at the gate only
    "refused": run("WITH gone AS (DELETE FROM computed WHERE id < 9 RETURNING 1) SELECT FROM gone")
    + run("COMMIT"),
    "failed": run("SELECT 1 / 0") + run("COMMIT"),
}


@pytest.mark.parametrize("end", ["COMMIT", "COMMIT AND CHAIN"])
@pytest.mark.parametrize("name", SECOND)
def test_the_end_of_a_second_transaction_is_not_that_of_the_first(
    guarded: Guarded, name: str, end: str
) -> None:
    before = guarded.bags()
    with RawClient(guarded.wall.dsn()) as client:
        client.query("BEGIN")
        client.query("UPDATE parent SET name = 'changed' WHERE id = 1")
        begins = b"" if end.endswith("CHAIN") else run("BEGIN READ WRITE")
        assert tags(client.ask(run(end), begins, SECOND[name], SYNC))[0] == b"COMMIT"
        client.query("ROLLBACK")
    guarded.settled()
    assert guarded.apply(before, set()) == guarded.bags() != before
