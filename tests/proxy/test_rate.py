"""How many statements an agent may send: the bucket, and what a segment takes out of it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sqlwall.proxy.rate import Rate, cost, may_end_block
from sqlwall.wire import frontend
from sqlwall.wire.frames import Frame, FrameReader, Side


def frames(*messages: bytes) -> list[Frame]:
    return FrameReader(Side.FRONTEND).feed(b"".join(messages))


PARSE, BIND = frontend.parse(b"", b"SELECT 1"), frontend.bind(b"", b"")
EXECUTE, SYNC, FLUSH = frontend.execute(b""), frontend.sync(), frontend.flush()
QUERY = frontend.query(b"SELECT 1")


@pytest.mark.parametrize(
    ("messages", "statements"),
    [
        ((SYNC,), 0),
        ((FLUSH,), 0),
        ((QUERY,), 1),
        ((PARSE, BIND, EXECUTE, SYNC), 1),
        ((PARSE, SYNC), 1),
        ((BIND, EXECUTE, BIND, EXECUTE, SYNC), 2),
        ((PARSE, PARSE, PARSE, FLUSH), 3),
        ((PARSE, BIND, BIND, SYNC), 2),
        ((PARSE, BIND, EXECUTE, QUERY), 2),
    ],
)
def test_a_segment_costs_what_it_asks_for(messages: tuple[bytes, ...], statements: int) -> None:
    assert cost(frames(*messages)) == statements


def test_a_full_bucket_gives_its_burst_and_then_says_when_the_next_may_come() -> None:
    rate = Rate(10, 3)
    assert [rate.take(1, 100.0) for _ in range(3)] == [0.0, 0.0, 0.0]
    wait = rate.take(1, 100.0)
    assert wait == pytest.approx(0.1)
    assert rate.take(1, 100.0) == wait, "a refusal takes nothing"
    assert rate.take(1, 100.0 + wait + 1e-9) == 0.0
    assert rate.take(1, 100.0 + wait + 1e-9) > 0.0


def test_a_pipeline_longer_than_the_burst_passes_and_is_paid_for_afterwards() -> None:
    rate = Rate(10, 3)
    assert rate.take(50, 0.0) == 0.0
    assert rate.take(1, 0.0) == pytest.approx(4.8)
    assert rate.take(1, 4.9) == 0.0


def test_what_a_text_turned_out_to_hold_is_paid_for() -> None:
    rate = Rate(10, 3)
    assert rate.take(1, 0.0) == 0.0
    rate.charge(9)
    assert rate.take(1, 0.0) == pytest.approx(0.8)


def test_each_worker_enforces_its_share_and_a_new_limit_holds_at_once() -> None:
    rate = Rate(10, 4, workers=2)
    assert [rate.take(1, 0.0) for _ in range(2)] == [0.0, 0.0]
    assert rate.take(1, 0.0) == pytest.approx(0.2)
    rate.change(1000, 1000, workers=2)
    assert rate.take(1, 0.0) == 0.0


@given(
    limit=st.floats(0.5, 1000),
    burst=st.integers(1, 50),
    asked=st.lists(st.tuples(st.floats(0, 2), st.integers(1, 5)), max_size=60),
)
def test_over_any_time_no_more_passes_than_burst_and_rate_give(
    limit: float, burst: int, asked: list[tuple[float, int]]
) -> None:
    """But for the last pipeline, which goes whole once there is one token for it."""
    rate = Rate(limit, burst)
    now, passed = 0.0, 0
    for pause, count in asked:
        now += pause
        if not rate.take(count, now):
            assert passed <= burst - 1 + limit * now + 1e-6
            passed += count


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        ((frontend.query(b" COMMIT"),), True),
        ((frontend.query(b"rollback; "),), True),
        ((frontend.query(b"END" + b" " * 300),), False),
        ((QUERY,), False),
        ((BIND, EXECUTE, SYNC), True),
        ((frontend.parse(b"", b"ABORT"), BIND, EXECUTE, SYNC), True),
        ((BIND, EXECUTE) * 4, False),
    ],
)
def test_only_what_looks_like_the_end_of_a_transaction_is_looked_at(
    messages: tuple[bytes, ...], expected: bool
) -> None:
    assert may_end_block(frames(*messages)) is expected
