"""A body is read to its last byte, and nothing is read that is not there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sqlwall.errors import ProtocolError
from sqlwall.wire.body import (
    BodyReader,
    c_string,
    frame_bytes,
    int16_bytes,
    int32_bytes,
    uint16_bytes,
    uint32_bytes,
    value_bytes,
)
from tests.wire.feeding import frame

WORDS = st.binary(max_size=20).filter(lambda word: b"\0" not in word)

#: How a field is written, read, and drawn.
FIELDS: dict[str, tuple[Callable[[Any], bytes], Callable[[BodyReader], Any], st.SearchStrategy[Any]]] = {
    "byte": (lambda value: bytes([value]), BodyReader.byte, st.integers(0, 255)),
    "uint16": (uint16_bytes, BodyReader.uint16, st.integers(0, 2**16 - 1)),
    "int16": (int16_bytes, BodyReader.int16, st.integers(-(2**15), 2**15 - 1)),
    "uint32": (uint32_bytes, BodyReader.uint32, st.integers(0, 2**32 - 1)),
    "int32": (int32_bytes, BodyReader.int32, st.integers(-(2**31), 2**31 - 1)),
    "string": (c_string, BodyReader.string, WORDS),
    "value": (value_bytes, BodyReader.value, st.none() | st.binary(max_size=20)),
}


def reader(body: bytes) -> BodyReader:
    return BodyReader(frame("Q", body))


@given(st.lists(st.sampled_from(sorted(FIELDS)), max_size=8), st.data())
def test_fields_come_back_in_their_order(names: list[str], data: st.DataObject) -> None:
    values = [data.draw(FIELDS[name][2]) for name in names]
    body = reader(b"".join(FIELDS[name][0](value) for name, value in zip(names, values, strict=True)))
    for left, (name, value) in enumerate(zip(names, values, strict=True)):
        assert body.has_more(), left
        assert FIELDS[name][1](body) == value
    assert not body.has_more()
    body.finish()


@pytest.mark.parametrize("name", FIELDS)
@given(data=st.data())
def test_a_field_that_is_cut_short_is_a_violation(name: str, data: st.DataObject) -> None:
    write, read, values = FIELDS[name]
    raw = write(data.draw(values))
    cut = data.draw(st.integers(0, len(raw) - 1))
    with pytest.raises(ProtocolError):
        read(reader(raw[:cut]))


@given(st.binary(max_size=20), st.integers(-3, 30))
def test_bytes_are_taken_only_if_they_are_there(raw: bytes, length: int) -> None:
    if 0 <= length <= len(raw):
        assert reader(raw).take(length) == raw[:length]
        body = reader(raw)
        body.skip(length)
        assert body.rest() == raw[length:]
        return
    with pytest.raises(ProtocolError, match="insufficient data left in message"):
        reader(raw).take(length)
    with pytest.raises(ProtocolError, match="insufficient data left in message"):
        reader(raw).skip(length)


@pytest.mark.parametrize("length", [-2, -(2**31), 5, 2**31 - 1])
def test_the_length_of_a_value_is_believed_only_if_it_fits(length: int) -> None:
    with pytest.raises(ProtocolError, match="insufficient data left in message"):
        reader(int32_bytes(length) + b"1234").value()


def test_a_body_with_bytes_left_is_a_violation() -> None:
    body = reader(b"1\0x")
    assert body.string() == b"1"
    with pytest.raises(ProtocolError, match="invalid message format"):
        body.finish()


def test_a_string_cannot_hold_a_nul() -> None:
    with pytest.raises(ValueError, match="cannot hold a NUL"):
        c_string(b"DROP\0")


@given(st.integers(0, 255), st.binary(max_size=100))
def test_a_message_counts_itself_but_not_its_type(code: int, body: bytes) -> None:
    raw = frame_bytes(code, body)
    assert raw[0] == code
    assert int.from_bytes(raw[1:5], "big") == len(raw) - 1
    assert raw[5:] == body


@pytest.mark.parametrize(
    ("write", "value"),
    [(uint16_bytes, 2**16), (uint16_bytes, -1), (int16_bytes, 2**15), (uint32_bytes, 2**32), (uint32_bytes, -1), (int32_bytes, 2**31)],
)  # fmt: skip
def test_a_number_that_does_not_fit_is_never_sent(write: Callable[[int], bytes], value: int) -> None:
    with pytest.raises(OverflowError):
        write(value)
