"""How a table is dropped so that it can come back: it goes to a schema of our own, and an empty one is dropped for it.

SQL on the agent's session, under settings that qualify every name (`queries.exact_settings`), and what its rows mean.
Everything that belongs to the table goes with it and keeps its object id. Only foreign keys to other tables are taken
off, as a table that is gone binds nobody; their definitions are kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from sqlwall.snapshot.images import qualify, quote_identifier, quote_literal
from sqlwall.snapshot.manifest import Column, KeptKey, Move, MovedPart

#: Where dropped tables are. Its prefix is reserved: no ruleset can allow an agent anything in it.
SCHEMA: Final = "_sqlwall_trash"
#: Bytes of a relation's old name in its name there; NAMEDATALEN leaves 63 in all.
_NAME_BYTES: Final = 48

Row = Sequence[bytes | None]


@dataclass(frozen=True, slots=True)
class Standing:
    """Whether a table could be dropped here and now at all."""

    isolation: str
    has_event_triggers: bool
    may_use_trash: bool


@dataclass(frozen=True, slots=True)
class Candidate:
    """A table that is about to be dropped.

    `is_ours` says that the agent's role may do what its owner may; `is_written` that the open transaction has written
    or emptied it, `is_readable` that the role reads all of its rows.
    """

    oid: int
    schema: str
    name: str
    kind: str
    persistence: str
    is_ours: bool
    may_create: bool
    is_extension: bool
    is_child: bool
    is_subscribed: bool
    is_written: bool
    is_readable: bool

    @property
    def label(self) -> str:
        """Its name in messages."""
        return f"{self.schema}.{self.name}"


@dataclass(frozen=True, slots=True)
class Dependent:
    """Something that is no part of the tables and would go with them, or keep them. `kind` is its catalog."""

    description: str
    kind: str
    keeps: bool


def _oids(oids: Iterable[int]) -> str:
    return "'{" + ",".join(str(int(oid)) for oid in oids) + "}'::oid[]"


#: Temporary relations and types stand in for nothing.
PINNED_PATH: Final = b"SELECT pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true)"


def standing() -> bytes:
    """One row of `Standing`."""
    schema = f"to_regnamespace('{SCHEMA}')"
    return (
        "SELECT current_setting('transaction_isolation'),"
        " EXISTS (SELECT FROM pg_catalog.pg_event_trigger WHERE evtenabled <> 'D' AND evtevent <> 'login')::text,"
        f" ({schema} IS NOT NULL AND has_schema_privilege({schema}, 'USAGE')"
        f" AND has_schema_privilege({schema}, 'CREATE'))::text"
    ).encode()


def read_standing(row: Row) -> Standing:
    """The answer to `standing`."""
    isolation, has_triggers, may_use = [(value or b"").decode() for value in row]
    return Standing(isolation, has_triggers == "true", may_use == "true")


def candidates(oids: Iterable[int]) -> bytes:
    """One row of `Candidate` for each."""
    return (
        "SELECT c.oid::text, n.nspname::text, c.relname::text, c.relkind::text, c.relpersistence::text,"
        " pg_has_role(c.relowner, 'USAGE')::text, has_schema_privilege(n.oid, 'CREATE')::text,"
        " EXISTS (SELECT FROM pg_catalog.pg_depend d WHERE d.classid = 'pg_catalog.pg_class'::regclass"
        " AND d.objid = c.oid AND d.deptype = 'e')::text,"
        " (c.relispartition OR EXISTS (SELECT FROM pg_catalog.pg_inherits i WHERE i.inhrelid = c.oid))::text,"
        " EXISTS (SELECT FROM pg_catalog.pg_subscription_rel s WHERE s.srrelid = c.oid)::text,"
        " EXISTS (SELECT FROM pg_catalog.pg_locks l WHERE l.pid = pg_backend_pid() AND l.locktype = 'relation'"
        " AND l.relation = c.oid AND l.mode IN ('RowExclusiveLock', 'ExclusiveLock'))::text,"
        " (has_table_privilege(c.oid, 'SELECT') AND NOT row_security_active(c.oid))::text"
        f" FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace"
        f" WHERE c.oid = ANY ({_oids(oids)}) ORDER BY c.oid"
    ).encode()


def read_candidates(rows: Iterable[Row]) -> list[Candidate]:
    """The answer to `candidates`."""
    found: list[Candidate] = []
    for row in rows:
        oid, schema, name, kind, persistence, *flags = [(value or b"").decode() for value in row]
        found.append(
            Candidate(int(oid), schema, name, kind, persistence, *(flag == "true" for flag in flags))
        )
    return found


def lock(candidates: Iterable[Candidate]) -> tuple[bytes, ...]:
    """As DROP locks them."""
    return tuple(
        f"LOCK TABLE ONLY {qualify(one.schema, one.name)} IN ACCESS EXCLUSIVE MODE".encode()
        for one in candidates
    )


#: Whether a dependent, `d` in `pg_depend`, is a part of these tables: it goes where they go.
_IS_PART: Final = """CASE d.classid
  WHEN 'pg_catalog.pg_class'::regclass THEN d.objid IN (SELECT h.oid FROM homes h)
    OR EXISTS (SELECT FROM pg_catalog.pg_index i JOIN homes h ON h.oid = i.indrelid WHERE i.indexrelid = d.objid)
    OR (d.deptype IN ('a', 'i')
      AND EXISTS (SELECT FROM pg_catalog.pg_class s WHERE s.oid = d.objid AND s.relkind = 'S'))
  WHEN 'pg_catalog.pg_type'::regclass THEN EXISTS (SELECT FROM pg_catalog.pg_type t
      LEFT JOIN pg_catalog.pg_type e ON e.oid = t.typelem
      WHERE t.oid = d.objid AND (t.typrelid IN (SELECT oid FROM homes) OR e.typrelid IN (SELECT oid FROM homes)))
  WHEN 'pg_catalog.pg_attrdef'::regclass THEN EXISTS (SELECT FROM pg_catalog.pg_attrdef a
      JOIN homes h ON h.oid = a.adrelid WHERE a.oid = d.objid)
  WHEN 'pg_catalog.pg_constraint'::regclass THEN EXISTS (SELECT FROM pg_catalog.pg_constraint k
      JOIN homes h ON h.oid = k.conrelid WHERE k.oid = d.objid)
  WHEN 'pg_catalog.pg_trigger'::regclass THEN EXISTS (SELECT FROM pg_catalog.pg_trigger t
      LEFT JOIN pg_catalog.pg_constraint k ON k.oid = t.tgconstraint
      WHERE t.oid = d.objid AND (t.tgrelid IN (SELECT oid FROM homes) OR k.conrelid IN (SELECT oid FROM homes)))
  WHEN 'pg_catalog.pg_policy'::regclass THEN EXISTS (SELECT FROM pg_catalog.pg_policy p
      JOIN homes h ON h.oid = p.polrelid WHERE p.oid = d.objid)
  WHEN 'pg_catalog.pg_rewrite'::regclass THEN EXISTS (SELECT FROM pg_catalog.pg_rewrite r
      JOIN homes h ON h.oid = r.ev_class WHERE r.oid = d.objid)
  ELSE false END"""


def dependents(oids: Iterable[int]) -> bytes:
    """What depends on these tables, or on a part of them, and is no part itself: one row of `Dependent` for each.

    A part's own parts are looked at too, so that a view on an index's constraint or a default that draws from an owned
    sequence is found.
    """
    return (
        "WITH RECURSIVE homes AS (SELECT c.oid FROM pg_catalog.pg_class c"
        f" WHERE c.oid = ANY ({_oids(oids)}) UNION SELECT c.reltoastrelid FROM pg_catalog.pg_class c"
        f" WHERE c.oid = ANY ({_oids(oids)}) AND c.reltoastrelid <> 0),"
        " tree AS (SELECT 'pg_catalog.pg_class'::regclass::oid AS classid, h.oid AS objid, true AS is_part,"
        " 'i'::\"char\" AS deptype FROM homes h"
        f" UNION SELECT d.classid, d.objid, ({_IS_PART}), d.deptype FROM tree t JOIN pg_catalog.pg_depend d"
        " ON d.refclassid = t.classid AND d.refobjid = t.objid WHERE t.is_part)"
        " SELECT pg_describe_object(t.classid, t.objid, 0), t.classid::regclass::text,"
        " bool_or(t.deptype = 'n')::text FROM tree t"
        " GROUP BY t.classid, t.objid HAVING NOT bool_or(t.is_part) ORDER BY 1"
    ).encode()


def read_dependents(rows: Iterable[Row]) -> list[Dependent]:
    """The answer to `dependents`."""
    return [
        Dependent((description or b"").decode(), (kind or b"").decode(), keeps == b"true")
        for description, kind, keeps in rows
    ]


def columns(oids: Iterable[int]) -> bytes:
    """Columns of these tables, in order."""
    return (
        "SELECT a.attrelid::text, a.attname::text, format_type(a.atttypid, a.atttypmod), a.attnum::text,"
        " a.attgenerated::text, a.attidentity::text FROM pg_catalog.pg_attribute a"
        f" WHERE a.attrelid = ANY ({_oids(oids)}) AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated <> 'v'"
        " ORDER BY a.attrelid, a.attnum"
    ).encode()


def parts(oids: Iterable[int]) -> bytes:
    """Relations that go with these tables: table, object id, kind, name. TOAST stays where it is."""
    return (
        "SELECT i.indrelid::text, c.oid::text, 'i', c.relname::text FROM pg_catalog.pg_index i"
        f" JOIN pg_catalog.pg_class c ON c.oid = i.indexrelid WHERE i.indrelid = ANY ({_oids(oids)})"
        " UNION ALL SELECT d.refobjid::text, c.oid::text, 'S', c.relname::text FROM pg_catalog.pg_depend d"
        " JOIN pg_catalog.pg_class c ON c.oid = d.objid AND c.relkind = 'S'"
        " WHERE d.classid = 'pg_catalog.pg_class'::regclass AND d.refclassid = 'pg_catalog.pg_class'::regclass"
        f" AND d.refobjid = ANY ({_oids(oids)}) AND d.refobjsubid > 0 AND d.deptype IN ('a', 'i') ORDER BY 1, 2"
    ).encode()


def keys(oids: Iterable[int]) -> bytes:
    """Foreign keys from these tables to others: table, name, definition, comment, whether any of its triggers is set
    to act otherwise than all do.
    """
    return (
        "SELECT k.conrelid::text, k.conname::text, pg_get_constraintdef(k.oid),"
        " obj_description(k.oid, 'pg_constraint'), EXISTS (SELECT FROM pg_catalog.pg_trigger t"
        " JOIN pg_catalog.pg_constraint o ON o.oid = t.tgconstraint"
        " WHERE (o.oid = k.oid OR o.conparentid = k.oid) AND t.tgenabled <> 'O')::text"
        f" FROM pg_catalog.pg_constraint k WHERE k.contype = 'f' AND k.conrelid = ANY ({_oids(oids)})"
        f" AND k.conparentid = 0 AND k.confrelid <> ALL ({_oids(oids)}) ORDER BY 1, 2"
    ).encode()


def bystanders(oids: Iterable[int]) -> bytes:
    """Relations that are locked when these tables go: those that they refer to, and their own TOAST."""
    return (
        f"SELECT k.confrelid::text FROM pg_catalog.pg_constraint k WHERE k.contype = 'f'"
        f" AND k.conrelid = ANY ({_oids(oids)})"
        " UNION SELECT c.reltoastrelid::text FROM pg_catalog.pg_class c"
        f" WHERE c.oid = ANY ({_oids(oids)})"
        " UNION SELECT i.indexrelid::text FROM pg_catalog.pg_class c"
        " JOIN pg_catalog.pg_index i ON i.indrelid = c.reltoastrelid"
        f" WHERE c.oid = ANY ({_oids(oids)})"
    ).encode()


def name_in_trash(name: str, oid: int) -> str:
    """What a relation is called there: no other can be called so."""
    return f"{name.encode()[:_NAME_BYTES].decode(errors='ignore')}_{oid}"


def plan(
    wanted: Sequence[Candidate], columns: Iterable[Row], parts: Iterable[Row], keys: Iterable[Row]
) -> tuple[Move, ...]:
    """The moves of these tables, from the answers to the questions of the same names."""
    listed: dict[int, list[Column]] = {one.oid: [] for one in wanted}
    for oid, *rest in columns:
        name, kind, number, generated, identity = [(value or b"").decode() for value in rest]
        listed[int(oid or b"0")].append(Column(name, kind, int(number), generated, identity))
    carried: dict[int, list[MovedPart]] = {one.oid: [] for one in wanted}
    for home, *rest in parts:
        oid_, kind, name = [(value or b"").decode() for value in rest]
        carried[int(home or b"0")].append(MovedPart(int(oid_), kind, name, name_in_trash(name, int(oid_))))
    kept: dict[int, list[KeptKey]] = {one.oid: [] for one in wanted}
    for home, name_, definition, comment, _ in keys:
        kept[int(home or b"0")].append(
            KeptKey(
                (name_ or b"").decode(),
                (definition or b"").decode(),
                None if comment is None else comment.decode(),
            )
        )
    return tuple(
        Move(
            one.oid, one.schema, one.name, name_in_trash(one.name, one.oid),
            tuple(listed[one.oid]), tuple(carried[one.oid]), tuple(kept[one.oid]),
        )
        for one in wanted
    )  # fmt: skip


def drop_keys(move: Move, schema: str, name: str) -> tuple[str, ...]:
    """Take off what binds other tables."""
    return tuple(
        f"ALTER TABLE ONLY {qualify(schema, name)} DROP CONSTRAINT {quote_identifier(key.name)}"
        for key in move.keys
    )


_KINDS: Final = {"i": "INDEX", "S": "SEQUENCE"}


def into_trash(move: Move) -> tuple[str, ...]:
    """Move a table there, then give it and its parts names that no other has there."""
    return (
        f"ALTER TABLE {qualify(move.schema, move.name)} SET SCHEMA {SCHEMA}",
        f"ALTER TABLE {qualify(SCHEMA, move.name)} RENAME TO {quote_identifier(move.trash)}",
        *(
            f"ALTER {_KINDS[part.kind]} {qualify(SCHEMA, part.name)} RENAME TO {quote_identifier(part.trash)}"
            for part in move.parts
        ),
    )


def out_of_trash(move: Move) -> tuple[str, ...]:
    """The way back."""
    return (
        *(
            f"ALTER {_KINDS[part.kind]} {qualify(SCHEMA, part.trash)} RENAME TO {quote_identifier(part.name)}"
            for part in move.parts
        ),
        f"ALTER TABLE {qualify(SCHEMA, move.trash)} RENAME TO {quote_identifier(move.name)}",
        f"ALTER TABLE {qualify(SCHEMA, move.name)} SET SCHEMA {quote_identifier(move.schema)}",
    )


def add_key(move: Move, key: KeptKey) -> tuple[str, ...]:
    """Put a foreign key on again; every row is checked."""
    table = f"{qualify(move.schema, move.name)}"
    name = quote_identifier(key.name)
    added = f"ALTER TABLE ONLY {table} ADD CONSTRAINT {name} {key.definition}"
    if key.comment is None:
        return (added,)
    return (added, f"COMMENT ON CONSTRAINT {name} ON {table} IS {quote_literal(key.comment)}")


def make_stub(schema: str, name: str) -> str:
    """An empty table to be dropped."""
    return f"CREATE TABLE {qualify(schema, name)} ()"


def drop_stub(schema: str, name: str) -> str:
    """Drop it."""
    return f"DROP TABLE {qualify(schema, name)}"


def discard(move: Move) -> str:
    """Drop it for good."""
    return f"DROP TABLE {qualify(SCHEMA, move.trash)}"


def found_at(oids: Iterable[int]) -> bytes:
    """Where these relations are now: object id, schema, name."""
    return (
        "SELECT c.oid::text, n.nspname::text, c.relname::text FROM pg_catalog.pg_class c"
        f" JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = ANY ({_oids(oids)})"
    ).encode()


def oid_of(schema: str, name: str) -> bytes:
    """The object id of a relation."""
    return f"SELECT to_regclass({quote_literal(qualify(schema, name))})::oid::text".encode()


def digest(schema: str, name: str, columns: Sequence[Column]) -> str:
    """What tells whether a row of a table was changed: their number, and a sum over all they hold."""
    listed = ", ".join(f"t.{quote_identifier(column.name)}" for column in columns)
    return (
        f"SELECT count(*) || ' ' || coalesce(sum(hashtextextended(ROW({listed})::text, 0)::numeric), 0)"
        f" FROM ONLY {qualify(schema, name)} AS t"
    )
