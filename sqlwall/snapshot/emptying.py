"""What must be known around a TRUNCATE: how far it reaches, and what its storage was before and is after. SQL and rows.

TRUNCATE gives each table, index, TOAST table and restarted sequence a new file. A file's number is never given twice,
so that it tells which TRUNCATE left a table as it stands, whatever savepoints were undone since. A second TRUNCATE in
the same subtransaction keeps the file and changes no catalog (`ExecuteTruncateGuts`, commands/tablecmds.c).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlwall.snapshot.catalogs import Window
from sqlwall.snapshot.images import qualify, quote_identifier, quote_literal
from sqlwall.snapshot.manifest import Column
from sqlwall.sql.statement import Relation

Row = Sequence[bytes | None]

#: On the observer's session: hold a lock of that number, which has no other meaning, and let go of it.
HOLD: Final = "SELECT pg_catalog.pg_advisory_lock(%s::pg_catalog.int8)"
LET_GO: Final = "SELECT pg_catalog.pg_advisory_unlock(%s::pg_catalog.int8)"


@dataclass(frozen=True, slots=True)
class Member:
    """A relation that a TRUNCATE reaches. `kind` is relkind, `is_temporary` that it is another session's or ours;
    `is_named` says that the text names it, or a table above it; the rest is reached by CASCADE.
    """

    oid: int
    schema: str
    name: str
    kind: str
    is_temporary: bool
    has_bad_index: bool
    is_named: bool

    @property
    def label(self) -> str:
        """Its name in messages."""
        return f"{self.schema}.{self.name}"


@dataclass(frozen=True, slots=True)
class OwnedSequence:
    """A sequence that belongs to a column. `owner` is the role it belongs to."""

    oid: int
    schema: str
    name: str
    owner: str

    @property
    def label(self) -> str:
        """Its name in messages."""
        return f"{self.schema}.{self.name}"


@dataclass(frozen=True, slots=True)
class Stored:
    """One relation with a file. `home` is the table that it is a part of; `definition` all else that pg_class says."""

    home: str
    kind: str
    file: str
    definition: str


def resolve(tables: Iterable[Relation]) -> bytes:
    """On the agent's session: the object id of each name as the server reads it now, 0 for none, in their order."""
    names = (
        qualify(table.schema, table.name) if table.schema else quote_identifier(table.name)
        for table in tables
    )
    listed = ", ".join(
        f"coalesce(pg_catalog.to_regclass({quote_literal(name)}::pg_catalog.text)::pg_catalog.oid,"
        " 0::pg_catalog.oid)::pg_catalog.text"
        for name in names
    )
    return f"SELECT {listed}".encode()


#: On the observer's session: all relations that a TRUNCATE of these reaches. Parameters: object ids; whether ONLY
#: stands before each; whether it cascades. A reference to a partitioned table is one to each of its partitions, and
#: back (`heap_truncate_find_FKs`, catalog/heap.c).
REACHED: Final = """
WITH RECURSIVE named AS (
  SELECT o.oid, o.is_only FROM ROWS FROM (unnest(%s::oid[]), unnest(%s::bool[])) AS o (oid, is_only)
), below AS (
  SELECT oid, is_only FROM named
  UNION SELECT i.inhrelid, false FROM below b JOIN pg_inherits i ON i.inhparent = b.oid WHERE NOT b.is_only
), reached AS (
  SELECT oid FROM below
  UNION SELECT k.conrelid FROM reached r
    CROSS JOIN LATERAL (SELECT r.oid UNION SELECT a.relid FROM pg_partition_ancestors(r.oid) AS a (relid)) AS up (oid)
    JOIN pg_constraint k ON k.contype = 'f' AND k.confrelid = up.oid
    WHERE %s::bool
)
SELECT c.oid::int8, n.nspname::text, c.relname::text, c.relkind::text, c.relpersistence = 't',
  EXISTS (SELECT FROM pg_index i WHERE i.indrelid = c.oid AND NOT (i.indisvalid AND i.indisready AND i.indislive)
    AND c.relkind = 'r'),
  c.oid IN (SELECT oid FROM below)
FROM (SELECT DISTINCT oid FROM reached) AS r JOIN pg_class c ON c.oid = r.oid
JOIN pg_namespace n ON n.oid = c.relnamespace
ORDER BY 1
"""

#: On the observer's session: the sequences of these tables' columns.
SEQUENCES: Final = """
SELECT s.oid::int8, n.nspname::text, s.relname::text, pg_get_userbyid(s.relowner)::text
FROM pg_depend d JOIN pg_class s ON s.oid = d.objid AND s.relkind = 'S'
JOIN pg_namespace n ON n.oid = s.relnamespace
WHERE d.classid = 'pg_class'::regclass AND d.refclassid = 'pg_class'::regclass AND d.refobjid = ANY (%s::oid[])
  AND d.refobjsubid > 0 AND d.deptype IN ('a', 'i')
ORDER BY 1
"""


def read_members(rows: Iterable[Sequence[Any]]) -> tuple[Member, ...]:
    """The answer to REACHED."""
    return tuple(Member(*row) for row in rows)


def read_sequences(rows: Iterable[Sequence[Any]]) -> tuple[OwnedSequence, ...]:
    """The answer to SEQUENCES."""
    return tuple(OwnedSequence(*row) for row in rows)


def lock(members: Iterable[Member], roots: Mapping[int, bool]) -> tuple[bytes, ...]:
    """On the agent's session: hold off every writer of these tables; readers, the observer among them, go on.

    `roots` are the tables that the text names, with whether ONLY stands before them: each is locked with all below it,
    as a privilege on a table above is one on those below.
    """
    return tuple(
        f"LOCK TABLE {'' if roots.get(member.oid) is False else 'ONLY '}{qualify(member.schema, member.name)}"
        " IN EXCLUSIVE MODE".encode()
        for member in members
        if member.oid in roots or not member.is_named
    )


def lock_sequence(sequence: OwnedSequence) -> bytes:
    """On the agent's session: let nobody draw from it. Its owner stays who it was, and no catalog is written.

    There is no LOCK for sequences; whoever may restart one may say this.
    """
    return (
        f"ALTER SEQUENCE {qualify(sequence.schema, sequence.name)} OWNER TO {quote_identifier(sequence.owner)}"
    ).encode()


def sequence_state(oid: int, schema: str, name: str) -> bytes:
    """On the agent's session: where a sequence stands."""
    return (
        f"SELECT {oid}::pg_catalog.text, s.last_value::pg_catalog.text, s.is_called::pg_catalog.text"
        f" FROM {qualify(schema, name)} AS s"
    ).encode()


def observe_all(schema: str, name: str, columns: Sequence[Column]) -> str:
    """COPY of every row of one table."""
    listed = ", ".join(column.image("t") for column in columns)
    return f"COPY (SELECT {listed} FROM ONLY {qualify(schema, name)} AS t) TO STDOUT"


def wait(key: int) -> tuple[bytes, ...]:
    """On the agent's session: wait until the observer lets go. Only a cancel or statement_timeout ends it before."""
    return (
        b"SELECT pg_catalog.set_config('lock_timeout', '0', true)",
        f"SELECT pg_catalog.pg_advisory_xact_lock_shared({int(key)}::pg_catalog.int8)".encode(),
    )


#: What pg_class says that no TRUNCATE changes.
_LASTING: Final = (
    "relname", "relnamespace", "reltype", "reloftype", "relowner", "relam", "reltablespace", "reltoastrelid",
    "relhasindex", "relisshared", "relpersistence", "relkind", "relnatts", "relchecks", "relhasrules",
    "relhastriggers", "relhassubclass", "relrowsecurity", "relforcerowsecurity", "relispopulated", "relreplident",
    "relispartition", "relacl", "reloptions", "relpartbound",
)  # fmt: skip


def storage(tables: Iterable[int], sequences: Iterable[int]) -> bytes:
    """On the agent's session: the files of these tables with their indexes and TOAST, and of these sequences."""
    ours, numbers = (",".join(map(str, oids)) for oids in (tables, sequences))
    same = "OPERATOR(pg_catalog.=)"
    lasting = ", ".join(f"c.{column}" for column in _LASTING)
    return (
        f"WITH homes AS (SELECT c.oid, c.reltoastrelid FROM pg_catalog.pg_class c"
        f" WHERE c.oid {same} ANY ('{{{ours}}}'::pg_catalog.oid[])),"
        " heaps AS (SELECT h.oid, h.oid AS home FROM homes h"
        " UNION ALL SELECT h.reltoastrelid, h.oid FROM homes h),"
        " parts AS (SELECT h.oid, h.home FROM heaps h"
        f" UNION ALL SELECT i.indexrelid, h.home FROM heaps h JOIN pg_catalog.pg_index i ON i.indrelid {same} h.oid"
        f" UNION ALL SELECT s.oid, s.oid FROM pg_catalog.unnest('{{{numbers}}}'::pg_catalog.oid[]) AS s (oid))"
        " SELECT c.oid::pg_catalog.text, p.home::pg_catalog.text, c.relkind::pg_catalog.text,"
        f" c.relfilenode::pg_catalog.text, ROW({lasting})::pg_catalog.text"
        f" FROM parts p JOIN pg_catalog.pg_class c ON c.oid {same} p.oid"
    ).encode()


def read_storage(rows: Iterable[Row]) -> dict[str, Stored]:
    """The answer to `storage`, by object id."""
    return {
        decoded[0]: Stored(*decoded[1:])
        for decoded in ([(value or b"").decode() for value in row] for row in rows)
    }


def unexplained(before: Mapping[str, Stored], after: Mapping[str, Stored], counted: Window) -> str:
    """What a TRUNCATE did besides giving its tables new files, in words; empty if nothing.

    Each new file is one update of pg_class. As no file changes without one, that many updates leave none for anything
    else; and each changed nothing but the file.
    """
    if before.keys() != after.keys():
        return "a table was given or has lost an index while it was emptied"
    for oid, stored in before.items():
        if (stored.home, stored.kind, stored.definition) != (
            after[oid].home, after[oid].kind, after[oid].definition,
        ):  # fmt: skip
            return "a definition was changed while a table was emptied"
    fresh = sum(stored.file != after[oid].file for oid, stored in before.items())
    if counted != ({"pg_class": (0, fresh, 0)} if fresh else {}):
        return "more was changed in the catalogs than a TRUNCATE changes"
    return ""
