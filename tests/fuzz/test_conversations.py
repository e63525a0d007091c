"""Random conversations through a real connection and a model of PostgreSQL: nothing refused is changed, nothing
unjudged arrives, no answer is missing, and what is allowed is byte for byte what the server says.
"""

from __future__ import annotations

import asyncio
import os
import re

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from sqlwall.rules.loader import load
from sqlwall.wire import frontend
from sqlwall.wire.frames import FrameReader, Side
from tests.e2e.wall import waiving
from tests.fuzz.conversation import World, converse, direct
from tests.fuzz.model import COPIES, INTERNAL, PREPARES, WRITES

#: More of them for a longer run: 20 minutes are about 100,000.
EXAMPLES = int(os.environ.get("SQLWALL_FUZZ_EXAMPLES", "300"))
SYNC, FLUSH = frontend.sync(), frontend.flush()
SNEAKY = "UPDATE watched SET v = 2 WHERE id = 1"
PLAIN = "INSERT INTO orders VALUES (1)"
READS = ["SELECT 1", "SELECT 1/0", ""]
PERMITTED = [*READS, PLAIN, "UPDATE orders SET note = 'x' WHERE id = 1"]
CONTROL = [
    "BEGIN", "COMMIT", "ROLLBACK", "SAVEPOINT a", "ROLLBACK TO a", "COMMIT AND CHAIN", "ROLLBACK AND CHAIN",
    "BEGIN READ WRITE", "BEGIN READ ONLY", "SET TRANSACTION READ ONLY",
]  # fmt: skip
REFUSED = [
    "DELETE FROM payroll",
    "nonsense",
    "SET TRANSACTION READ WRITE",
    "PREPARE TRANSACTION 'x'",
    "EXECUTE nope",
]
NAMING = [*PREPARES, "EXECUTE x", "DEALLOCATE x", "DEALLOCATE ALL", "DISCARD ALL"]
TEXTS = [*PERMITTED, SNEAKY, *CONTROL, *NAMING, *REFUSED, *COPIES]
NAMES = [b"", b"x", b"y"]
END = [SYNC, frontend.query(b"COMMIT"), frontend.query(b"SELECT 1")]
#: Refusals of shape, which the server itself would not make, and of writes in a block that a string, or a pipeline
#: behind its first statement, has opened: such a block is read-only. A string is refused whole where one of its names does not exist.
SHAPES = re.compile(
    rb"\[(mixed-write|flushed-write|embedded-transaction-control|read-only|unsettled-pipeline|pipelined-copy|embedded-prepare|executed-command"
    rb"|fetched-command|stale-control)\]|C25006\0|C26000\0"
)

texts, names = st.sampled_from(TEXTS), st.sampled_from(NAMES)
encoded = texts.map(str.encode)
messages = st.one_of(
    st.builds(frontend.query, encoded),
    st.builds(lambda *parts: frontend.query("; ".join(parts).encode()), texts, texts),
    st.builds(lambda *parts: frontend.query("; ".join(parts).encode()), texts, texts, texts),
    st.builds(frontend.parse, names, encoded),
    st.builds(frontend.bind, names, names),
    st.builds(frontend.describe, st.sampled_from(frontend.Kind), names),
    st.builds(frontend.execute, names),
    st.builds(frontend.close, st.sampled_from(frontend.Kind), names),
    st.just(SYNC),
    st.just(FLUSH),
    st.builds(
        lambda text, name: frontend.parse(name, text) + frontend.bind(name, name) + frontend.execute(name),
        encoded,
        st.just(b""),
    ),
    st.just(frontend.copy_data(b"1\n")),
    st.just(frontend.copy_done()),
    st.just(frontend.copy_fail(b"x")),
    st.just(frontend.function_call(1598)),
)
wild = st.one_of(messages, st.binary(max_size=20), messages.map(lambda message: message[:-1]))


@pytest.fixture(scope="module")
def world() -> World:
    return World(load(waiving("orders", "watched"), "fuzz.yaml"))


def check_arrivals(seen: list[str]) -> None:
    """Only allowed texts, our own and poisons have arrived."""
    allowed = {*PERMITTED, SNEAKY, *CONTROL, *NAMING, *COPIES, *INTERNAL, "EXECUTE nope"}
    for text in seen:
        assert text in allowed or re.fullmatch("_sqlwall_[0-9a-f]{24}", text), text


def play(world: World, script: list[bytes], *, waits: bool, chunk: int) -> tuple[bytes, list[str], bool]:
    """One conversation, checked for what must hold of every one."""
    outcome = asyncio.run(converse(world, [*script, *END], waits=waits, chunk=chunk))
    assert "payroll" not in outcome.committed
    check_arrivals(outcome.seen)
    assert b"_sqlwall_" not in outcome.received
    if not outcome.is_closed:
        assert outcome.received.endswith(b"C\0\0\0\rSELECT 1\0Z\0\0\0\5I"), outcome.received[-200:]
        assert not outcome.is_copying
    else:
        assert b"SFATAL\0" in outcome.received
    FrameReader(Side.BACKEND).feed(outcome.received)
    return outcome.received, outcome.committed, outcome.is_closed


def ex(text: str) -> bytes:
    return frontend.parse(b"", text.encode()) + frontend.bind(b"", b"") + frontend.execute(b"")


def q(text: str) -> bytes:
    return frontend.query(text.encode())


fuzzed = settings(
    deadline=None,
    max_examples=EXAMPLES,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)


@fuzzed
@example([ex(SNEAKY), ex("COMMIT"), ex("DELETE FROM payroll"), SYNC], False, 0)
@example([ex(SNEAKY), FLUSH, q("SELECT 1")], True, 0)
@example([q("BEGIN"), q("SELECT 1/0"), ex("ROLLBACK AND CHAIN"), ex(SNEAKY), ex("COMMIT"), SYNC], False, 0)
@example([ex(PLAIN), FLUSH, frontend.function_call(1), SYNC], True, 0)
@example(
    [q(f"PREPARE x AS {PLAIN}"), q("BEGIN"), frontend.bind(b"", b"x") + frontend.execute(b"") + SYNC], True, 0
)
@example(
    [
        frontend.parse(b"x", b"SELECT 1") + ex("DEALLOCATE x") + ex(f"PREPARE x AS {SNEAKY}") + SYNC,
        q("BEGIN"),
        q("EXECUTE x"),
    ],
    True,
    0,
)
@given(st.lists(messages, max_size=14), st.booleans(), st.sampled_from([0, 1, 7]))
def test_nothing_refused_is_changed_and_no_answer_is_missing(
    world: World, script: list[bytes], waits: bool, chunk: int
) -> None:
    play(world, script, waits=waits, chunk=chunk)


@fuzzed
@given(st.lists(wild, max_size=10), st.booleans())
def test_bytes_of_any_kind_end_in_an_answer_or_in_the_end(
    world: World, script: list[bytes], waits: bool
) -> None:
    outcome = asyncio.run(converse(world, script, waits=waits, chunk=0))
    assert "payroll" not in outcome.committed
    check_arrivals(
        [text for text in outcome.seen if not world.allows(text)]
    )  # bytes may come to another text
    assert b"internal failure" not in outcome.received


honest_texts = st.sampled_from(
    [
        *PERMITTED,
        *(text for text in PREPARES if SNEAKY not in text),
        "EXECUTE x",
        "DEALLOCATE ALL",
        "BEGIN",
        "COMMIT",
        "ROLLBACK",
        "SAVEPOINT a",
        "ROLLBACK TO a",
        "COMMIT AND CHAIN",
    ]
)
pipelines = st.lists(
    st.one_of(
        honest_texts.map(ex),
        st.just(FLUSH),
        honest_texts.map(lambda text: frontend.parse(b"x", text.encode())),
    ),
    max_size=5,
).map(lambda parts: b"".join([*parts, SYNC]))
copies = st.sampled_from([b"c", b"f"]).map(
    lambda end: [
        q("COPY orders FROM STDIN"),
        frontend.copy_data(b"1\n") + (frontend.copy_done() if end == b"c" else frontend.copy_fail(b"x")),
    ]
)
extended_copies = st.sampled_from([True, False]).map(
    lambda sync_first: [
        ex("COPY orders FROM STDIN") + (SYNC if sync_first else b""),
        frontend.copy_data(b"1\n") + frontend.copy_done() + SYNC,
    ]
)
units = st.one_of(
    honest_texts.map(lambda text: [q(text)]),
    st.tuples(honest_texts, honest_texts).map(lambda pair: [q("; ".join(pair))]),
    pipelines.map(lambda item: [item]),
    copies,
    extended_copies,
)


@fuzzed
@given(st.lists(units, max_size=8), st.booleans(), st.sampled_from([0, 1]))
def test_what_is_allowed_is_what_the_server_says(
    world: World, script: list[list[bytes]], waits: bool, chunk: int
) -> None:
    flat = [item for unit in script for item in unit]
    received, committed, is_closed = play(world, flat, waits=waits, chunk=chunk)
    if SHAPES.search(received):
        return
    assert (received, committed) == direct([*flat, *END])
    assert not is_closed


def test_every_text_of_the_model_is_known() -> None:
    assert set(WRITES) <= set(TEXTS)
