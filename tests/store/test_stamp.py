"""Ids that sort by time, and times that sort as text."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sqlwall.store.stamp import format_time, new_ulid, parse_time, utc_now

CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
MOMENTS = st.datetimes(
    min_value=datetime(1, 1, 2),
    max_value=datetime(9999, 12, 30),
    timezones=st.integers(-14 * 60, 14 * 60).map(lambda minutes: timezone(timedelta(minutes=minutes))),
)


def milliseconds(identifier: str) -> int:
    value = 0
    for letter in identifier[:10]:
        value = value * 32 + CROCKFORD.index(letter)
    return value


def test_an_id_is_26_letters_and_begins_with_the_time() -> None:
    before = utc_now().timestamp() * 1000
    identifier = new_ulid()
    assert len(identifier) == 26
    assert set(identifier) <= set(CROCKFORD)
    assert before - 1 <= milliseconds(identifier) <= utc_now().timestamp() * 1000


def test_ids_are_never_the_same() -> None:
    assert len({new_ulid() for _ in range(10_000)}) == 10_000


def test_ids_of_later_milliseconds_sort_behind() -> None:
    ids = [new_ulid() for _ in range(2000)]
    assert sorted(ids, key=lambda identifier: identifier[:10]) == ids


@given(MOMENTS)
def test_a_time_comes_back(moment: datetime) -> None:
    text = format_time(moment)
    assert len(text) == 27
    assert parse_time(text) == moment
    assert parse_time(text).tzinfo is UTC


@given(MOMENTS, MOMENTS)
def test_times_sort_as_text(one: datetime, other: datetime) -> None:
    assert (format_time(one) < format_time(other)) == (one < other)


def test_a_time_is_written_in_utc_with_microseconds() -> None:
    assert format_time(datetime(2026, 1, 31, 14, 0, 0, 1, timezone(timedelta(hours=2)))) == (
        "2026-01-31T12:00:00.000001Z"
    )


@pytest.mark.parametrize(
    "text",
    ["", "2026-01-31", "2026-01-31T12:00:00Z", "2026-01-31 12:00:00.000001Z", "2026-13-31T12:00:00.000001Z",
     "2026-01-31T12:00:00.000001+00:00", "2026-01-31T12:00:00.000001"],
)  # fmt: skip
def test_another_shape_is_no_time(text: str) -> None:
    with pytest.raises(ValueError, match=r"does not match format|unconverted"):
        parse_time(text)
