"""Whoever changes the record is found: what was altered, taken out, moved, put in, or cut off, and where."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection, Engine

from sqlwall.errors import StoreError
from sqlwall.store.audit import AuditWriter
from sqlwall.store.chain import FIELDS, AuditedText, AuditKind, AuditRecord, Head, digest
from sqlwall.store.database import open_store, writing
from sqlwall.store.schema import AUDIT, HEADS
from sqlwall.store.verify import Fault, FaultKind, export, heads, tail, verify

COUNT = 6
TEXT_FIELDS = [name for name in FIELDS if isinstance(AUDIT.c[name].type, sa.Text) and name != "writer"]
NUMBER_FIELDS = [name for name in FIELDS if name not in TEXT_FIELDS and name not in ("writer", "sequence")]


def record(number: int) -> AuditRecord:
    return AuditRecord(
        AuditKind.STATEMENT,
        agent="bot" if number % 2 else "ada",
        session="S",
        client="127.0.0.1:5",
        database="shop",
        statement=AuditedText.of(f"DELETE FROM t WHERE id = {number}".encode()),
        parameters=0,
        operation="delete",
        target="public.t",
        action="allow",
        rule="small-writes",
        reason="",
        outcome="ok",
        rows=number,
        duration_us=10 * number,
    )


def fill(engine: Engine, count: int = COUNT) -> Head:
    """A chain: the genesis and so many records, in several transactions."""
    writer = AuditWriter(engine)
    for number in range(0, count, 2):
        writer.append([record(at) for at in range(number, min(number + 2, count))])
    assert writer.head is not None
    return writer.head


@contextmanager
def unguarded(engine: Engine) -> Iterator[Connection]:
    """What a determined hand can do: the triggers are gone first."""
    with writing(engine) as connection:
        if engine.dialect.name == "sqlite":
            connection.exec_driver_sql("DROP TRIGGER IF EXISTS sqlwall_audit_no_update")
            connection.exec_driver_sql("DROP TRIGGER IF EXISTS sqlwall_audit_no_delete")
        else:
            connection.exec_driver_sql("DROP TRIGGER IF EXISTS sqlwall_audit_guard ON sqlwall_audit")
        yield connection


def faults(engine: Engine, outside: Sequence[Head] = ()) -> list[tuple[FaultKind, int]]:
    return [(fault.kind, fault.sequence) for fault in verify(engine, outside).faults]


def test_a_chain_that_nobody_touched_has_no_faults(engine: Engine) -> None:
    head = fill(engine)
    report = verify(engine, [head])
    assert report.faults == ()
    assert report.records == COUNT + 1
    assert report.heads == (head,) == heads(engine)


def test_an_empty_store_has_no_faults(engine: Engine) -> None:
    report = verify(engine)
    assert (report.records, report.faults, report.heads) == (0, (), ())


@pytest.mark.parametrize("name", TEXT_FIELDS)
def test_an_altered_text_is_found(file_engine: Engine, name: str) -> None:
    fill(file_engine)
    with unguarded(file_engine) as connection:
        connection.execute(sa.update(AUDIT).where(AUDIT.c.sequence == 3).values({name: "0" * 64}))
    found = faults(file_engine)
    assert (FaultKind.ALTERED, 3) in found
    assert {kind for kind, _ in found} <= {FaultKind.ALTERED, FaultKind.BROKEN}


@pytest.mark.parametrize("name", NUMBER_FIELDS)
def test_an_altered_number_is_found(file_engine: Engine, name: str) -> None:
    fill(file_engine)
    with unguarded(file_engine) as connection:
        connection.execute(sa.update(AUDIT).where(AUDIT.c.sequence == 3).values({name: 999}))
    assert faults(file_engine) == [(FaultKind.ALTERED, 3)]


def test_a_null_for_an_empty_text_is_found(engine: Engine) -> None:
    fill(engine)
    with unguarded(engine) as connection:
        connection.execute(sa.update(AUDIT).where(AUDIT.c.sequence == 3).values(reason=None))
    assert faults(engine) == [(FaultKind.ALTERED, 3)]


def test_an_altered_record_with_its_hash_made_anew_breaks_the_next(engine: Engine) -> None:
    fill(engine)
    with unguarded(engine) as connection:
        row = connection.execute(
            sa.select(*(AUDIT.c[name] for name in FIELDS)).where(AUDIT.c.sequence == 3)
        ).one()
        values = {**row._mapping, "rows": 0}
        connection.execute(
            sa.update(AUDIT)
            .where(AUDIT.c.sequence == 3)
            .values(rows=0, hash=digest([values[n] for n in FIELDS]))
        )
    assert faults(engine) == [(FaultKind.BROKEN, 4)]


@pytest.mark.parametrize("gone", [0, 1, 3, COUNT - 1])
def test_a_missing_record_is_found(engine: Engine, gone: int) -> None:
    fill(engine)
    with unguarded(engine) as connection:
        connection.execute(sa.delete(AUDIT).where(AUDIT.c.sequence == gone))
    assert faults(engine) == [(FaultKind.MISSING, gone)]


def test_several_missing_records_are_one_fault_that_says_so(engine: Engine) -> None:
    fill(engine)
    with unguarded(engine) as connection:
        connection.execute(sa.delete(AUDIT).where(AUDIT.c.sequence.in_((2, 3, 4))))
    (fault,) = verify(engine).faults
    assert fault.kind is FaultKind.MISSING
    assert fault.why == "records 2 to 4 should stand before record 5"
    assert str(fault).startswith(f"missing: record 2 of {fault.writer}: records 2 to 4")


def renumber(connection: Connection, moves: dict[int, int]) -> None:
    for old, new in moves.items():
        connection.execute(sa.update(AUDIT).where(AUDIT.c.sequence == old).values(sequence=1000 + new))
    connection.execute(
        sa.update(AUDIT).where(AUDIT.c.sequence >= 1000).values(sequence=AUDIT.c.sequence - 1000)
    )


def test_reordered_records_are_found(engine: Engine) -> None:
    fill(engine)
    with unguarded(engine) as connection:
        renumber(connection, {2: 3, 3: 2})
    found = faults(engine)
    assert {(FaultKind.ALTERED, 2), (FaultKind.ALTERED, 3)} <= set(found)


def test_a_record_taken_out_and_the_rest_moved_up_is_found(engine: Engine) -> None:
    fill(engine)
    with unguarded(engine) as connection:
        connection.execute(sa.delete(AUDIT).where(AUDIT.c.sequence == 2))
        renumber(connection, {number: number - 1 for number in range(3, COUNT + 1)})
    kinds = {kind for kind, _ in faults(engine)}
    assert {FaultKind.ALTERED, FaultKind.BROKEN, FaultKind.CUT} <= kinds


@pytest.mark.parametrize("kept", [0, 1, COUNT - 1])
def test_a_cut_tail_is_found_by_the_head(engine: Engine, kept: int) -> None:
    fill(engine)
    with unguarded(engine) as connection:
        connection.execute(sa.delete(AUDIT).where(AUDIT.c.sequence > kept))
    assert faults(engine) == [(FaultKind.CUT, kept + 1)]


def test_a_tail_cut_together_with_the_head_is_found_by_a_head_kept_outside(engine: Engine) -> None:
    head = fill(engine)
    with unguarded(engine) as connection:
        connection.execute(sa.delete(AUDIT).where(AUDIT.c.sequence > 3))
        last = connection.scalar(sa.select(AUDIT.c.hash).where(AUDIT.c.sequence == 3))
        connection.execute(sa.update(HEADS).values(sequence=3, hash=last))
    assert faults(engine) == []
    assert faults(engine, [head]) == [(FaultKind.CUT, 4)]


def test_a_chain_that_is_gone_is_found(engine: Engine) -> None:
    head = fill(engine)
    with unguarded(engine) as connection:
        connection.execute(sa.delete(AUDIT))
    assert faults(engine) == [(FaultKind.CUT, 0)]
    with unguarded(engine) as connection:
        connection.execute(sa.delete(HEADS))
    assert faults(engine) == []
    assert faults(engine, [head]) == [(FaultKind.CUT, 0), (FaultKind.CUT, 0)]


def test_a_chain_without_a_head_is_found(engine: Engine) -> None:
    fill(engine)
    with writing(engine) as connection:
        connection.execute(sa.delete(HEADS))
    assert faults(engine) == [(FaultKind.CUT, COUNT + 1)]


@pytest.mark.parametrize("values", [{"hash": "0" * 64}, {"sequence": 3}])
def test_a_head_that_was_altered_is_found(engine: Engine, values: dict[str, object]) -> None:
    fill(engine)
    with writing(engine) as connection:
        connection.execute(sa.update(HEADS).values(values))
    ((kind, _),) = faults(engine)
    assert kind is FaultKind.FORGED


def test_a_record_that_was_put_in_is_found(engine: Engine) -> None:
    """The triggers do not stop an insert."""
    head = fill(engine)
    with writing(engine) as connection:
        connection.execute(
            AUDIT.insert().values(
                writer=head.writer, sequence=COUNT + 1, event="E", time="T", kind="statement",
                prev_hash=head.hash, hash="0" * 64,
            )
        )  # fmt: skip
    assert set(faults(engine)) == {(FaultKind.ALTERED, COUNT + 1), (FaultKind.FORGED, COUNT)}


def test_a_chain_written_anew_is_found_by_a_head_kept_outside(engine: Engine) -> None:
    head = fill(engine)
    with unguarded(engine) as connection:
        rows = connection.execute(sa.select(*(AUDIT.c[n] for n in FIELDS)).order_by(AUDIT.c.sequence)).all()
        previous = "0" * 64
        for row in rows:
            values = {**row._mapping, "agent": "nobody", "prev_hash": previous}
            previous = digest([values[name] for name in FIELDS])
            connection.execute(
                sa.update(AUDIT).where(AUDIT.c.sequence == row.sequence)
                .values(agent="nobody", prev_hash=values["prev_hash"], hash=previous)
            )  # fmt: skip
        connection.execute(sa.update(HEADS).values(hash=previous))
    assert faults(engine) == []
    assert faults(engine, [head]) == [(FaultKind.FORGED, COUNT)]


def test_an_older_head_kept_outside_still_fits(engine: Engine) -> None:
    writer = AuditWriter(engine)
    writer.append([record(1)])
    old = writer.head
    assert old is not None
    writer.append([record(2)])
    assert faults(engine, [old]) == []


def test_a_fault_in_one_chain_is_not_one_of_another(engine: Engine) -> None:
    one, other = fill(engine), fill(engine)
    with unguarded(engine) as connection:
        connection.execute(
            sa.update(AUDIT).where(AUDIT.c.sequence == 2, AUDIT.c.writer == one.writer).values(rows=99)
        )
    report = verify(engine, [one, other])
    assert report.records == 2 * (COUNT + 1)
    assert [(fault.kind, fault.writer, fault.sequence) for fault in report.faults] == [
        (FaultKind.ALTERED, one.writer, 2)
    ]


def test_a_record_moved_to_another_chain_is_found_in_both(engine: Engine) -> None:
    one, other = fill(engine), fill(engine)
    with unguarded(engine) as connection:
        connection.execute(sa.delete(AUDIT).where(AUDIT.c.writer == other.writer, AUDIT.c.sequence == 2))
        connection.execute(
            sa.update(AUDIT)
            .where(AUDIT.c.writer == one.writer, AUDIT.c.sequence == 2)
            .values(writer=other.writer)
        )
    found = {(fault.writer, fault.kind) for fault in verify(engine).faults}
    assert (one.writer, FaultKind.MISSING) in found
    assert (other.writer, FaultKind.ALTERED) in found


def test_bytes_that_are_no_text_are_a_fault_not_an_end(file_engine: Engine) -> None:
    engine = file_engine
    fill(engine)
    with unguarded(engine) as connection:
        connection.exec_driver_sql(
            "UPDATE sqlwall_audit SET agent = CAST(x'ff80' AS TEXT) WHERE sequence = 2"
        )
        connection.exec_driver_sql("UPDATE sqlwall_audit SET rows = x'00' WHERE sequence = 4")
        connection.exec_driver_sql("UPDATE sqlwall_audit SET rows = 1.5 WHERE sequence = 5")
    assert faults(engine) == [(FaultKind.ALTERED, at) for at in (2, 4, 5)]


CHANGES: dict[str, Callable[[Connection, int, int], object]] = {
    "alter": lambda connection, at, _: connection.execute(
        sa.update(AUDIT).where(AUDIT.c.sequence == at).values(action="deny")
    ),
    "remove": lambda connection, at, _: connection.execute(sa.delete(AUDIT).where(AUDIT.c.sequence == at)),
    "cut": lambda connection, at, _: connection.execute(sa.delete(AUDIT).where(AUDIT.c.sequence >= at)),
    "swap": lambda connection, at, other: renumber(connection, {at: other, other: at}),
}


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    what=st.sampled_from(sorted(CHANGES)),
    places=st.lists(st.integers(0, COUNT), min_size=2, max_size=2, unique=True),
)
def test_no_change_goes_unseen(
    tmp_path_factory: pytest.TempPathFactory, what: str, places: list[int]
) -> None:
    engine = open_store(tmp_path_factory.mktemp("store") / "store.sqlite")
    fill(engine)
    with unguarded(engine) as connection:
        CHANGES[what](connection, *places)
    assert faults(engine)
    engine.dispose()


# -- the guard


@pytest.mark.parametrize(
    "statement",
    ["UPDATE sqlwall_audit SET agent = 'x'", "DELETE FROM sqlwall_audit", "TRUNCATE sqlwall_audit"],
)
def test_a_mistake_in_a_shell_is_stopped(engine: Engine, statement: str) -> None:
    if statement.startswith("TRUNCATE") and engine.dialect.name == "sqlite":
        statement = "DELETE FROM sqlwall_audit WHERE true"
    fill(engine)
    with pytest.raises(StoreError, match="the audit record is append-only"):
        with writing(engine) as connection:
            connection.exec_driver_sql(statement)
    assert faults(engine) == []


# -- reading


def test_the_tail_is_the_last_records_of_all_chains_oldest_first(engine: Engine) -> None:
    fill(engine)
    fill(engine)
    rows = tail(engine, 4)
    assert [row["sequence"] for row in rows] == [3, 4, 5, 6]
    assert set(rows[0]) == {*FIELDS, "hash"}
    assert {row["agent"] for row in tail(engine, 100, "ada")} == {"ada"}
    assert len(tail(engine, 100)) == 2 * (COUNT + 1)
    assert tail(engine, 5, "nobody") == ()


def test_an_export_holds_every_record_and_can_be_checked_alone(engine: Engine) -> None:
    one, other = fill(engine), fill(engine)
    lines = [json.loads(line) for line in export(engine)]
    records, ends = lines[:-2], lines[-2:]
    assert [Head.parse(line["head"]) for line in ends] == sorted((one, other), key=lambda head: head.writer)
    for line in records:
        assert digest([line[name] for name in FIELDS]) == line["hash"]
    for head in (one, other):
        chain = [line for line in records if line["writer"] == head.writer]
        assert [line["sequence"] for line in chain] == list(range(COUNT + 1))
        assert [line["hash"] for line in chain[:-1]] == [line["prev_hash"] for line in chain[1:]]
        assert chain[-1]["hash"] == head.hash


def test_a_fault_reads_as_a_sentence() -> None:
    fault = Fault(FaultKind.ALTERED, "W", 3, "E", "its content does not match its hash")
    assert str(fault) == "altered: record 3 of W (event E): its content does not match its hash"
