"""The gate's questions to the server, and what their answers prove. Pure: SQL texts, rows in, a decision out.

`pg_locks` is the best witness of which relations a transaction wrote, the transaction's own counters of how many rows
(MECHANICS, section 1). Every relation, function, operator and type is qualified: a temporary table named pg_locks or a
search_path with its own `=` must not blind the gate.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from sqlwall.snapshot.catalogs import UNTOUCHED, Explained
from sqlwall.snapshot.proof import Deltas
from sqlwall.sql.statement import Operation

#: One row: the transaction's id, NULL if it has written nothing.
XID_QUERY: Final = b"SELECT pg_catalog.pg_current_xact_id_if_assigned()::pg_catalog.text"

_COUNTERS: Final = (
    b"pg_catalog.pg_stat_get_xact_tuples_inserted(c.oid)::pg_catalog.text,"
    b" pg_catalog.pg_stat_get_xact_tuples_updated(c.oid)::pg_catalog.text,"
    b" pg_catalog.pg_stat_get_xact_tuples_deleted(c.oid)::pg_catalog.text"
)
#: Locked as SELECT FOR UPDATE does it, which assigns an id and changes no row.
_ROW_LOCKS: Final = "RowShareLock"
#: One row per relation and mode that a reader never takes, with a NULL for the name of one that is gone, and whether
#: the agent's role may read all of it, and whether anything on it can wait for the end of the transaction.
_LOCKED: Final = (
    b"SELECT l.relation::pg_catalog.text, n.nspname::pg_catalog.text, c.relname::pg_catalog.text,"
    b" c.relkind::pg_catalog.text, " + _COUNTERS + b", l.mode,"
    b" (pg_catalog.has_table_privilege(c.oid, 'SELECT') AND NOT pg_catalog.row_security_active(c.oid))"
    b"::pg_catalog.text, pg_catalog.has_table_privilege(c.oid, 'SELECT')::pg_catalog.text,"
    b" (EXISTS (SELECT FROM pg_catalog.pg_trigger t WHERE t.tgrelid OPERATOR(pg_catalog.=) c.oid"
    b" AND t.tgdeferrable))::pg_catalog.text"
    b" FROM pg_catalog.pg_lock_status() l LEFT JOIN pg_catalog.pg_class c ON c.oid OPERATOR(pg_catalog.=) l.relation"
    b" LEFT JOIN pg_catalog.pg_namespace n ON n.oid OPERATOR(pg_catalog.=) c.relnamespace"
    b" WHERE l.pid OPERATOR(pg_catalog.=) pg_catalog.pg_backend_pid()"
    b" AND l.locktype OPERATOR(pg_catalog.=) 'relation'::pg_catalog.text"
    b" AND l.mode OPERATOR(pg_catalog.=) ANY (ARRAY['RowShareLock','RowExclusiveLock','ShareUpdateExclusiveLock',"
    b"'ShareLock','ShareRowExclusiveLock','ExclusiveLock','AccessExclusiveLock']::pg_catalog.text[])"
)
#: Catalogs release their locks early: only their counters tell of GRANT, CREATE, lo_unlink (MECHANICS, section 14).
#: PostgreSQL's own have object ids below FirstNormalObjectId (access/transam.h), and an index on these finds them.
_CATALOGS: Final = (
    b"SELECT c.oid::pg_catalog.text, 'pg_catalog'::pg_catalog.text, c.relname::pg_catalog.text,"
    b" c.relkind::pg_catalog.text, " + _COUNTERS + b", NULL::pg_catalog.text, NULL::pg_catalog.text,"
    b" NULL::pg_catalog.text, NULL::pg_catalog.text FROM pg_catalog.pg_class c"
    b" WHERE c.oid OPERATOR(pg_catalog.<) 16384::pg_catalog.oid"
    b" AND c.relnamespace OPERATOR(pg_catalog.=) 11::pg_catalog.oid"
    b" AND c.relkind OPERATOR(pg_catalog.=) 'r'::pg_catalog.\"char\""
    b" AND (pg_catalog.pg_stat_get_xact_tuples_inserted(c.oid) OPERATOR(pg_catalog.>) 0"
    b" OR pg_catalog.pg_stat_get_xact_tuples_updated(c.oid) OPERATOR(pg_catalog.>) 0"
    b" OR pg_catalog.pg_stat_get_xact_tuples_deleted(c.oid) OPERATOR(pg_catalog.>) 0)"
)
#: How many WITH HOLD cursors the transaction has declared.
HELD_QUERY: Final = (
    b"SELECT pg_catalog.count(*)::pg_catalog.text FROM pg_catalog.pg_cursor() h WHERE h.is_holdable"
    b" AND h.creation_time OPERATOR(pg_catalog.>=) pg_catalog.transaction_timestamp()"
)
#: The last row: the transaction's isolation level, the xmin of its snapshot, and how many WITH HOLD cursors it has
#: declared, a function's dynamic SQL perhaps, which run only at COMMIT. An answer without it is not complete.
_END: Final = (
    b"SELECT 'end', pg_catalog.current_setting('transaction_isolation'),"
    b" pg_catalog.pg_snapshot_xmin(pg_catalog.pg_current_snapshot())::pg_catalog.text,"
    b" (" + HELD_QUERY + b"), NULL, NULL, NULL, NULL, NULL, NULL, NULL"
)
#: What the open transaction has locked for writing, and which catalogs it has changed. The server plans it anew each
#: time, since what it has prepared in the agent's session code of the agent's could prepare otherwise: so it is short.
WITNESS_QUERY: Final = _LOCKED + b" UNION ALL " + _CATALOGS + b" UNION ALL " + _END
#: The counters before the first write. Those of ordinary tables are read for every relation that has any, since what
#: will be written is not known yet.
BASELINE_QUERY: Final = (
    b"SELECT c.oid::pg_catalog.text, n.nspname::pg_catalog.text, c.relname::pg_catalog.text,"
    b" c.relkind::pg_catalog.text, " + _COUNTERS + b", NULL::pg_catalog.text"
    b" FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid OPERATOR(pg_catalog.=) c.relnamespace"
    b" WHERE c.relkind OPERATOR(pg_catalog.=) ANY (ARRAY['r','m']::pg_catalog.\"char\"[])"
    b" AND (pg_catalog.pg_stat_get_xact_tuples_inserted(c.oid) OPERATOR(pg_catalog.>) 0"
    b" OR pg_catalog.pg_stat_get_xact_tuples_updated(c.oid) OPERATOR(pg_catalog.>) 0"
    b" OR pg_catalog.pg_stat_get_xact_tuples_deleted(c.oid) OPERATOR(pg_catalog.>) 0)"
)

#: Lock modes that rows alone never need: TRUNCATE, DDL, LOCK TABLE.
_DEFINING: Final = frozenset(
    {"ShareUpdateExclusiveLock", "ShareLock", "ShareRowExclusiveLock", "ExclusiveLock", "AccessExclusiveLock"}
)

#: What a table's three counters count, in this order.
_COUNTED: Final = (Operation.INSERT, Operation.UPDATE, Operation.DELETE)

_NO_MODES: Final[frozenset[str]] = frozenset()
#: Isolation levels in which each statement has a snapshot of its own.
_FRESH: Final = frozenset({"read committed", "read uncommitted"})

Row = Sequence[bytes | None]


@dataclass(frozen=True, slots=True)
class Rights:
    """Whether the agent's role may read a relation, and whether all of it, past row security."""

    may_read: bool
    reads_all: bool


NO_RIGHTS: Final = Rights(may_read=False, reads_all=False)


@dataclass(frozen=True, slots=True)
class Moment:
    """Of the transaction: its isolation level, and the oldest transaction that its snapshot sees as open."""

    isolation: str = ""
    oldest: int = 0

    @property
    def is_fresh(self) -> bool:
        """Whether each statement of the transaction has a snapshot of its own."""
        return self.isolation in _FRESH


@dataclass(frozen=True, slots=True)
class Witness:
    """What one relation tells: rows inserted, updated, deleted, counted since the counters were last flushed.

    `rights` is what the agent's role may do with it, as far as it was asked.
    """

    schema: str
    name: str
    kind: str
    counts: tuple[int, int, int]
    modes: frozenset[str]
    rights: Rights = field(default=NO_RIGHTS, compare=False)

    @property
    def label(self) -> str:
        """The server's own name for it, as messages show it."""
        return f"{self.schema}.{self.name}"


@dataclass(frozen=True, slots=True)
class Witnesses:
    """All of them, by object id. `gone` counts locks of relations without a name, `row_locks` FOR UPDATE and its
    like, `held` cursors WITH HOLD that it has declared.

    `is_complete` says that the whole answer to WITNESS_QUERY is in; a baseline never is. `can_defer` says that a
    relation that was written or locked has a trigger or constraint that can wait for the end of the transaction.
    """

    relations: Mapping[str, Witness] = field(default_factory=dict)
    gone: int = 0
    row_locks: int = 0
    is_complete: bool = False
    can_defer: bool = field(default=False, compare=False)
    moment: Moment = field(default=Moment(), compare=False)
    held: int = 0


@dataclass(frozen=True, slots=True)
class Decision:
    """Whether one written relation may stay so; if not, why. `must_cover` says that only with a snapshot."""

    is_permitted: bool
    reason: str
    must_cover: bool = False


@dataclass(frozen=True, slots=True)
class Write:
    """What the server counted for one table that a snapshot has to cover, and what the agent's role may read of it.

    `oid` is its object id in decimal.
    """

    oid: str
    schema: str
    name: str
    deltas: Deltas
    rights: Rights = NO_RIGHTS

    @property
    def label(self) -> str:
        """The server's own name for it, as messages show it."""
        return f"{self.schema}.{self.name}"


@dataclass(frozen=True, slots=True)
class Accepted:
    """Everything that was written is permitted; `uncovered` may stay only with a snapshot."""

    uncovered: tuple[Write, ...] = ()


@dataclass(frozen=True, slots=True)
class Refused:
    """Something is not; `relation` is empty if it is no relation's fault."""

    reason: str
    relation: str = ""
    operation: Operation | None = None


Permitted = Callable[[Operation, str, str], Decision]


def decode_witnesses(rows: Iterable[Row]) -> Witnesses:
    """The answer to WITNESS_QUERY or BASELINE_QUERY. Raises ValueError if it is not one."""
    relations: dict[str, Witness] = {}
    gone = row_locks = held = 0
    can_defer = False
    moment: Moment | None = None
    for row in rows:
        if row[0] == b"end":
            moment = Moment(_text(row[1]), int(row[2] or b""))
            held = int(row[3] or b"")
            continue
        oid, schema, name, kind, inserted, updated, deleted, mode, *more = map(_text, row)
        reads_all, may_read, defers = more or ("", "", "")
        can_defer = can_defer or defers == "true"
        if mode == _ROW_LOCKS:
            row_locks += 1
            continue
        if mode and not name:
            gone += 1
            continue
        counts = (int(inserted), int(updated), int(deleted))
        known = relations.get(oid)
        modes = known.modes if known is not None else _NO_MODES
        rights = Rights(may_read == "true", reads_all == "true")
        relations[oid] = Witness(schema, name, kind, counts, modes | {mode} if mode else modes, rights)
    # What messages should name comes first: what is locked, a table before its TOAST table, which was made after it.
    ordered = dict(sorted(relations.items(), key=lambda one: (not one[1].modes, int(one[0]))))
    return Witnesses(ordered, gone, row_locks, moment is not None, can_defer, moment or Moment(), held)


def _text(value: bytes | None) -> str:
    return "" if value is None else value.decode()


def decide(
    baseline: Witnesses | None,
    now: Witnesses,
    permitted: Permitted,
    *,
    rolled_back: bool = False,
    explained: Explained = UNTOUCHED,
) -> Accepted | Refused:
    """Whether a transaction that has an id may commit, and what a snapshot must cover before.

    Without a baseline the counters may be those of earlier transactions of the session, and count all the same. A table
    that is locked for writing, where no row is counted, may have been written by code that switched the counters off:
    then all that rows can suffer must be permitted. An id with no witness is refused, but for row locks: these assign
    one and change nothing; what else could hide behind them changes a catalog, and is counted there. `rolled_back` says
    that a permitted write was undone by ROLLBACK TO: its locks are gone, the id it took is not. `explained` is what
    was measured beside statements that change definitions: catalogs must have counted that, and nothing else.
    """
    if not now.is_complete:
        return Refused("the server did not say what was written")
    if now.held:
        return Refused("a WITH HOLD cursor of a function's runs at COMMIT, behind the gate")
    if now.gone != explained.gone:
        return Refused("a table was created or dropped behind the statement")
    is_witnessed = now.row_locks > 0 or rolled_back
    uncovered: list[Write] = []
    unseen = set(explained.catalogs)
    for oid, witness in now.relations.items():
        before = baseline.relations.get(oid) if baseline is not None else None
        delta = _delta(before, witness)
        written = _operations(oid, witness, delta, explained)
        if isinstance(written, Refused):
            return written
        if witness.schema == "pg_catalog":
            unseen.discard(witness.name)
        must_cover = False
        for operation in written:
            decision = permitted(operation, *explained.moved.get(oid, (witness.schema, witness.name)))
            if not decision.is_permitted:
                return Refused(f"{operation.value.upper()}: {decision.reason}", witness.label, operation)
            must_cover = must_cover or decision.must_cover
        if must_cover and witness.kind == "S" and oid not in explained.restarted:
            return Refused("UPDATE: no snapshot brings a sequence back", witness.label, Operation.UPDATE)
        if must_cover and oid not in explained.restarted and oid not in explained.moved:
            if "AccessExclusiveLock" in witness.modes and oid not in explained.emptied:
                return Refused("a DROP beside it locks it, so that no snapshot can be taken", witness.label)
            uncovered.append(Write(oid, witness.schema, witness.name, Deltas(*delta), witness.rights))
        is_witnessed = is_witnessed or bool(written)
    if unseen:
        return Refused("the server does not count what was changed in catalogs")
    if not is_witnessed:
        return Refused("something was written that no witness shows, such as a log message")
    return Accepted(tuple(uncovered))


def _delta(before: Witness | None, now: Witness) -> tuple[int, int, int]:
    """What was counted since the baseline; if the counters were flushed in between, all that is there."""
    if before is None:
        return now.counts
    difference = tuple(after - earlier for after, earlier in zip(now.counts, before.counts, strict=True))
    return now.counts if min(difference) < 0 else (difference[0], difference[1], difference[2])


def _operations(
    oid: str, witness: Witness, delta: tuple[int, int, int], explained: Explained
) -> tuple[Operation, ...] | Refused:
    """What was done to one relation; nothing, if others tell of it; Refused where that may never stay."""
    if witness.schema == "pg_catalog":
        return _catalog(witness, delta, explained)
    if oid in explained.moved:
        is_untouched = delta == (0, 0, 0) and witness.modes <= _DEFINING
        return (Operation.DROP,) if is_untouched else Refused("rows of it were written", witness.label)
    if witness.modes & _DEFINING and oid not in explained.locked:
        return Refused("it was locked as only TRUNCATE, LOCK TABLE or a definition locks", witness.label)
    is_bystander = oid in explained.locked and witness.modes <= _DEFINING  # locked, but not to write rows
    match witness.kind:
        case "r" | "m":
            counted = tuple(operation for operation, count in zip(_COUNTED, delta, strict=True) if count)
            if oid in explained.emptied:
                return (Operation.TRUNCATE, *counted)
            return counted or (() if is_bystander else _COUNTED)
        case "S" if is_bystander:
            return ()  # it went with its table
        case "S":
            return (Operation.UPDATE,)  # nextval, setval; currval locks it just so
        case "p" | "v" | "i" | "I" | "t":
            return ()  # partitions, the tables below a view and those of an index are witnesses of their own
        case "f":
            return Refused("it is a foreign table: what was written elsewhere is not known", witness.label)
        case _:
            return Refused("it is no kind of relation that has rows", witness.label)


def _catalog(witness: Witness, delta: tuple[int, int, int], explained: Explained) -> tuple[()] | Refused:
    """A catalog may only have counted what was measured beside statements that may change it."""
    if witness.name in explained.catalogs:
        is_known = delta == explained.catalogs[witness.name] and not witness.modes & _DEFINING
    else:
        # Counts alone are carried over from an earlier transaction of the session.
        is_known = delta == (0, 0, 0) and not witness.modes
    return () if is_known else Refused("a catalog was changed, which is irreversible", witness.label)
