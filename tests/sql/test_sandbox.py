"""The parser in a process of its own: the same facts, and whatever becomes of it the text is refused and we live."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import orjson
import pytest
import uvloop
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from sqlwall.sql.parse import IN_PROCESS_LIMIT, TooLarge, analyze_guarded, analyze_text
from sqlwall.sql.sandbox import ANSWER_LIMIT, MEMORY_LIMIT, Facts, ParserSandbox, decode, encode
from sqlwall.sql.statement import Operation, Unparsable

DATA = Path(__file__).parent / "data"
TEXTS = [
    *(case["sql"] for case in yaml.safe_load((DATA / "effects.yaml").read_text())),
    *(DATA / "planted.sql").read_text().splitlines(),
    *(DATA / "hostile.sql").read_text().splitlines(),
]
LARGE = b"INSERT INTO t VALUES " + b", ".join(b"(%d, 'some text')" % number for number in range(20_000))
PATIENCE = 20.0


@pytest.fixture
async def sandbox() -> AsyncIterator[ParserSandbox]:
    """A parser that has time enough on a busy machine."""
    opened = ParserSandbox(deadline=PATIENCE)
    yield opened
    await opened.close()


def children() -> list[int]:
    """The sandboxes that this process has started and that run."""
    found = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    return [
        pid
        for pid in map(int, found)
        if is_running(pid) and b"sqlwall.sql.sandbox" in of_process(pid, "cmdline")
    ]


def of_process(pid: int | None, what: str) -> bytes:
    """What the system says about a process."""
    return Path(f"/proc/{pid}/{what}").read_bytes()


def is_running(pid: int) -> bool:
    """Whether a process is there and no mere remnant."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


async def ends(pid: int) -> bool:
    """Whether a process ends soon; nobody tells when it is not a child of ours."""
    deadline = time.monotonic() + PATIENCE
    while is_running(pid):
        if time.monotonic() > deadline:
            return False
        await asyncio.sleep(0.01)
    return True


# -- the same facts


async def test_a_large_text_has_the_facts_that_it_would_have_here(sandbox: ParserSandbox) -> None:
    assert len(LARGE) > IN_PROCESS_LIMIT
    assert analyze_text(LARGE) == TooLarge()
    facts = await sandbox.analyze(LARGE)
    assert facts == analyze_guarded(LARGE)
    assert isinstance(facts, tuple)
    assert facts[0].effects[0].operation is Operation.INSERT
    assert (sandbox.requests, sandbox.deaths, sandbox.timeouts) == (1, 0, 0)


async def test_every_known_text_has_the_same_facts_from_one_child(sandbox: ParserSandbox) -> None:
    await sandbox.analyze(b"SELECT 1")
    pid = sandbox.pid
    for text in TEXTS:
        assert await sandbox.analyze(text.encode()) == analyze_guarded(text.encode()), text
    assert sandbox.pid == pid


@pytest.mark.parametrize(
    "text", [b"", b";", b"SELEC", b"\0", b"\xff", b"SELECT '\xc3\xa9' FROM FROM"], ids=repr
)
async def test_what_is_no_statement_is_said_as_here(sandbox: ParserSandbox, text: bytes) -> None:
    assert await sandbox.analyze(text) == analyze_guarded(text)


async def test_texts_that_come_together_get_their_own_answers(sandbox: ParserSandbox) -> None:
    texts = [b"SELECT %d FROM t%d" % (number, number) for number in range(8)]
    answers = await asyncio.gather(*map(sandbox.analyze, texts))
    assert answers == [analyze_guarded(text) for text in texts]


def same(facts: Facts) -> Facts:
    """Facts after the journey between the processes."""
    return decode(orjson.loads(encode(facts)))


@pytest.mark.parametrize("text", TEXTS)
def test_facts_survive_the_journey(text: str) -> None:
    facts = analyze_guarded(text.encode())
    assert same(facts) == facts


@settings(deadline=None)
@given(st.sampled_from(["42601", "54001"]), st.text(st.characters(codec="utf-8")), st.integers(0, 2**31))
def test_faults_survive_the_journey(state: str, message: str, position: int) -> None:
    assert same(Unparsable(state, message, position)) == Unparsable(state, message, position)


JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@settings(deadline=None)
@given(JSON.filter(lambda value: isinstance(value, dict)))
def test_any_object_is_an_error_that_the_parent_expects(value: dict[str, Any]) -> None:
    with pytest.raises((KeyError, TypeError, ValueError)):
        decode(value)


# -- what may become of it


async def test_a_text_that_takes_too_long_is_refused_and_the_next_one_is_read() -> None:
    sandbox = ParserSandbox(deadline=0.05)
    answer = await sandbox.analyze(LARGE * 20)
    assert answer == Unparsable("54001", "statement could not be parsed within 0.05 s")
    assert sandbox.timeouts == 1
    assert sandbox.pid is None
    sandbox.deadline = PATIENCE
    assert await sandbox.analyze(b"SELECT 1") == analyze_guarded(b"SELECT 1")
    await sandbox.close()


async def test_a_child_that_died_between_two_texts_is_replaced(sandbox: ParserSandbox) -> None:
    await sandbox.analyze(b"SELECT 1")
    pid = sandbox.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    assert await ends(pid)
    answer = await sandbox.analyze(b"SELECT 2")
    if sandbox.deaths:
        # The parent had not heard of it yet: that text is refused, and the next one read.
        assert answer == Unparsable("54001", "statement is too complex to be parsed")
        answer = await sandbox.analyze(b"SELECT 2")
    assert answer == analyze_guarded(b"SELECT 2")
    assert sandbox.pid not in (None, pid)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM])
async def test_a_child_that_dies_over_a_text_refuses_it_and_is_replaced(
    sandbox: ParserSandbox, number: int
) -> None:
    await sandbox.analyze(b"SELECT 1")
    pid = sandbox.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    asked = asyncio.ensure_future(sandbox.analyze(b"SELECT 2"))
    await asyncio.sleep(0)
    os.kill(pid, number)
    with contextlib.suppress(ProcessLookupError):  # it is gone and buried
        os.kill(pid, signal.SIGCONT)
    assert await asked == Unparsable("54001", "statement is too complex to be parsed")
    assert sandbox.deaths == 1
    assert await sandbox.analyze(b"SELECT 3") == analyze_guarded(b"SELECT 3")


async def test_a_text_that_needs_too_much_memory_is_refused_in_time_and_the_worker_lives() -> None:
    """By the child's bound of memory, or by the clock, whichever comes first."""
    sandbox = ParserSandbox()
    before = _resident()
    answer = await sandbox.analyze(b"SELECT " + b", ".join([b"1"] * 3_000_000))
    assert isinstance(answer, Unparsable)
    assert answer.sqlstate == "54001"
    assert _resident() - before < 100 * 1024**2
    sandbox.deadline = PATIENCE
    assert await sandbox.analyze(b"SELECT 1") == analyze_guarded(b"SELECT 1")
    await sandbox.close()


def _resident() -> int:
    """Bytes of memory that this process holds."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize(
    "text",
    [b"SELECT " + b"(" * 200_000 + b"1" + b")" * 200_000, b"SELECT " + b"f(" * 100_000 + b")" * 100_000,
     b"SELECT " + b"NOT " * 200_000 + b"true", b"SELECT 1" + b"::int" * 100_000, b"SELECT " + b"-1 + " * 50_000 + b"1"],
    ids=lambda text: repr(text[:16]),
)  # fmt: skip
async def test_a_text_that_breaks_parsers_is_an_answer(sandbox: ParserSandbox, text: bytes) -> None:
    answer = await sandbox.analyze(text)
    assert isinstance(answer, tuple | Unparsable)
    assert await sandbox.analyze(b"SELECT 1") == analyze_guarded(b"SELECT 1")


async def test_a_child_that_answers_nonsense_is_replaced(
    sandbox: ParserSandbox, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Whatever it says instead: too much, no JSON, JSON of another shape, an end in the middle."""
    for said in (
        b"\xff\xff\xff\xff",
        b"\0\0\0\1{",
        b"\0\0\0\2{}",
        b"\0\0\0\4null",
        b"\0\0\0\2[]",
        b"\0\0\0\5ab",
        b"\0\0",
    ):
        script = tmp_path / "python"
        escaped = "".join("\\" + format(byte, "03o") for byte in said)
        script.write_text(f"#!/bin/sh\nprintf '{escaped}'\n")
        script.chmod(0o700)
        with monkeypatch.context() as patch:
            patch.setattr(sys, "executable", str(script))
            deaths = sandbox.deaths
            answer = await sandbox.analyze(b"SELECT 1")
            assert answer == Unparsable("54001", "statement is too complex to be parsed"), said
            assert sandbox.deaths == deaths + 1
    assert await sandbox.analyze(b"SELECT 1") == analyze_guarded(b"SELECT 1")
    assert ANSWER_LIMIT < 0xFFFFFFFF


async def test_a_child_that_cannot_be_started_refuses_the_text(
    sandbox: ParserSandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(sys, "executable", "/nowhere/python")
        assert await sandbox.analyze(b"SELECT 1") == Unparsable(
            "54001", "statement is too complex to be parsed"
        )
    assert await sandbox.analyze(b"SELECT 1") == analyze_guarded(b"SELECT 1")


# -- who waits


async def test_no_more_texts_wait_than_may() -> None:
    sandbox = ParserSandbox(deadline=PATIENCE, queue_limit=2)
    answers = await asyncio.gather(*(sandbox.analyze(b"SELECT %d" % number) for number in range(5)))
    assert answers[:2] == [analyze_guarded(b"SELECT %d" % number) for number in range(2)]
    for answer in answers[2:]:
        assert answer == Unparsable("53400", "too many large statements of this agent are being parsed")
    assert await sandbox.analyze(b"SELECT 9") == analyze_guarded(b"SELECT 9")
    await sandbox.close()


async def test_each_agent_has_a_queue_of_its_own() -> None:
    sandbox = ParserSandbox(deadline=PATIENCE, queue_limit=2)
    flood = [asyncio.ensure_future(sandbox.analyze(b"SELECT %d" % number, "flood")) for number in range(5)]
    mine = [asyncio.ensure_future(sandbox.analyze(b"SELECT 10", "mine")) for _ in range(2)]
    assert await asyncio.gather(*mine) == [analyze_guarded(b"SELECT 10")] * 2
    refused = [answer for answer in await asyncio.gather(*flood) if isinstance(answer, Unparsable)]
    assert [answer.sqlstate for answer in refused] == ["53400"] * 3
    await sandbox.close()


async def test_whoever_has_had_least_of_the_parser_is_next(sandbox: ParserSandbox) -> None:
    """A queue full of texts that take long: one who needs little waits for the one that is being read, and no more."""
    order: list[str] = []

    async def ask(agent: str, text: bytes) -> None:
        assert isinstance(await sandbox.analyze(text, agent), tuple)
        order.append(agent)

    await sandbox.analyze(b"SELECT 1")
    async with asyncio.TaskGroup() as group:
        for _ in range(6):
            group.create_task(ask("flood", LARGE))
        await asyncio.sleep(0)
        for _ in range(6):
            group.create_task(ask("mine", b"SELECT 2"))
    assert order == ["flood", *["mine"] * 6, *["flood"] * 5]


async def test_one_that_is_patient_waits_however_many_wait() -> None:
    sandbox = ParserSandbox(deadline=PATIENCE, queue_limit=1)
    texts = [b"SELECT %d" % number for number in range(5)]
    answers = await asyncio.gather(*(sandbox.analyze(text, "a", is_patient=True) for text in texts))
    assert answers == [analyze_guarded(text) for text in texts]
    await sandbox.close()


async def test_an_answer_to_a_text_that_nobody_waits_for_is_not_taken_for_the_next(
    sandbox: ParserSandbox,
) -> None:
    await sandbox.analyze(b"SELECT 1")
    pid = sandbox.pid
    asked = asyncio.ensure_future(sandbox.analyze(LARGE * 5))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    asked.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asked
    assert await sandbox.analyze(b"DROP TABLE t") == analyze_guarded(b"DROP TABLE t")
    assert sandbox.pid != pid


async def test_one_who_waits_may_leave_and_the_others_are_answered(sandbox: ParserSandbox) -> None:
    first = asyncio.ensure_future(sandbox.analyze(LARGE))
    second = asyncio.ensure_future(sandbox.analyze(b"SELECT 2"))
    third = asyncio.ensure_future(sandbox.analyze(b"SELECT 3"))
    await asyncio.sleep(0)
    second.cancel()
    assert await first == analyze_guarded(LARGE)
    assert await third == analyze_guarded(b"SELECT 3")
    with pytest.raises(asyncio.CancelledError):
        await second


# -- what it may do


async def test_a_child_knows_no_secret_and_may_do_little(
    sandbox: ParserSandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SQLWALL_SNAPSHOTS_KEY", "hunter2")
    monkeypatch.setenv("PGPASSWORD", "hunter2")
    await sandbox.analyze(b"SELECT 1")
    assert b"hunter2" not in of_process(sandbox.pid, "environ")
    limits = of_process(sandbox.pid, "limits").decode()
    bounds = {line[:26].strip(): line[26:].split()[:2] for line in limits.splitlines()[1:]}
    assert bounds["Max address space"] == [str(MEMORY_LIMIT)] * 2
    assert bounds["Max file size"] == ["0", "0"]
    assert bounds["Max core file size"] == ["0", "0"]
    assert bounds["Max open files"] == ["16", "16"]


async def test_closing_ends_the_child_and_may_be_done_twice() -> None:
    await ParserSandbox(deadline=PATIENCE).close()
    sandbox = ParserSandbox(deadline=PATIENCE)
    await sandbox.analyze(b"SELECT 1")
    pid = sandbox.pid
    assert pid is not None
    await sandbox.close()
    await sandbox.close()
    assert not is_running(pid)
    assert isinstance(await sandbox.analyze(b"SELECT 1"), Unparsable)
    assert sandbox.pid is None


ORPHAN = """
import asyncio, sys
from sqlwall.sql.sandbox import ParserSandbox
async def main():
    sandbox = ParserSandbox(20)
    await sandbox.analyze(b"SELECT 1")
    print(sandbox.pid, flush=True)
    await asyncio.sleep(600)
asyncio.run(main())
"""


async def test_a_child_ends_when_its_parent_is_killed() -> None:
    parent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", ORPHAN, stdout=asyncio.subprocess.PIPE
    )
    assert parent.stdout is not None
    pid = int(await parent.stdout.readline())
    assert is_running(pid)
    parent.kill()
    await parent.wait()
    assert await ends(pid)


def test_a_child_that_is_slow_to_start_is_not_left_behind() -> None:
    """The deadline falls into the start of the process, of which nobody knows yet."""
    before = children()

    async def analyze(deadline: float) -> None:
        opened = ParserSandbox(deadline)
        assert isinstance(await opened.analyze(b"SELECT 1"), Unparsable)
        await opened.close()
        assert opened.pid is None

    for microseconds in (0, 100, 300, 1000, 3000):
        uvloop.run(analyze(microseconds / 1e6))
    assert children() == before


def test_what_waits_when_the_parser_is_closed_starts_no_other_child() -> None:
    before = children()

    async def close_while_they_wait() -> None:
        opened = ParserSandbox(PATIENCE)
        reading = [asyncio.ensure_future(opened.analyze(LARGE, str(agent))) for agent in range(3)]
        await asyncio.sleep(0)
        assert opened.requests == len(reading)
        await opened.close()
        found = await asyncio.gather(*reading, opened.analyze(b"SELECT 1"))
        assert isinstance(found[-1], Unparsable)
        assert opened.pid is None

    uvloop.run(close_while_they_wait())
    assert children() == before


def test_a_task_that_is_cancelled_again_and_again_leaves_no_child() -> None:
    before = children()

    async def cancel() -> None:
        for turns in range(12):
            opened = ParserSandbox(PATIENCE)
            reading = asyncio.ensure_future(opened.analyze(b"SELECT 1"))
            for _ in range(turns):
                await asyncio.sleep(0)
            reading.cancel()
            await asyncio.sleep(0)
            reading.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await reading
            await opened.close()

    uvloop.run(cancel())
    assert children() == before
