"""What undoing asks of the database: SQL that compares, takes away, puts back and checks; what can stand against it.

All of it runs in one transaction of the undo role, with triggers and foreign keys switched off where the role may,
which is why keys are checked here, in both directions (MECHANICS, section 5). Each table has temporary ones beside it:

    after    rows that the snapshot's transaction left or added: they must be there still, and go
    before   rows as they were: they come back
    match    which row of the table each row of `after` is
    fresh    addresses of the rows that were put back

Rows carry the number of their step, as several snapshots may be undone at once, the latest first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final

from sqlwall.snapshot.images import qualify, quote_identifier, quote_literal
from sqlwall.snapshot.manifest import Change, Column

#: Characters of a row in a message.
ROW_LENGTH: Final = 200
#: Conflicts of one kind and table that are named one by one.
SHOWN: Final = 100
_STEP: Final = "_sqlwall_step"


class ConflictKind(Enum):
    """Why a row cannot be brought back. The value is what people read."""

    CHANGED = "changed since"
    GONE = "gone since"
    MOVING = "being changed by somebody else just now"
    KEY_REUSED = "its key is in use again"
    NAME_TAKEN = "its name is in use again"
    DEPENDED_ON = "something depends on it now"
    UNIQUE_TAKEN = "its place is taken, or a trigger altered it"
    PARENT_GONE = "the row that it refers to is gone"
    CHILD_ADDED = "refers to a row that undo would take away"
    ALTERED = "the table was altered since"
    MISSING = "the table is gone"
    DRAWN = "its numbers would be handed out twice"
    SIDE_EFFECT = "a trigger wrote there while rows were brought back"
    UNSUPPORTED = "cannot be undone exactly"


@dataclass(frozen=True, slots=True)
class Conflict:
    """One reason not to undo. `row` names it by its key, or shows its start; empty where it is about the table."""

    snapshot: str
    relation: str
    kind: ConflictKind
    row: str = ""
    detail: str = ""

    def __str__(self) -> str:
        row = f" ({self.row})" if self.row else ""
        detail = f": {self.detail}" if self.detail else ""
        return f"{self.relation}{row}: {self.kind.value}{detail}"


@dataclass(frozen=True, slots=True)
class KeyColumn:
    """A column of a unique key with the operator that its index compares with."""

    name: str
    schema: str
    operator: str

    def equals(self, left: str, right: str) -> str:
        """Whether two rows have the same value in it."""
        name = quote_identifier(self.name)
        return f"{left}.{name} OPERATOR({quote_identifier(self.schema)}.{self.operator}) {right}.{name}"


@dataclass(frozen=True, slots=True)
class Reference:
    """A foreign key between a touched table and any other, as it is declared.

    `children`, `parents`: the touched tables on each side, by object id. `pairs`: the child's column, the parent's, the
    operator's schema and name. `child_key`: columns that name a row of the child.
    """

    name: str
    child: tuple[str, str, str]
    parent: tuple[str, str, str]
    children: tuple[int, ...]
    parents: tuple[int, ...]
    pairs: tuple[tuple[str, ...], ...]
    child_key: tuple[str, ...]

    def matches(self, parent: str, child: str) -> str:
        """Whether a row of the parent is the one that a row of the child refers to."""
        return " AND ".join(
            f"{parent}.{quote_identifier(ours)} OPERATOR({quote_identifier(schema)}.{operator})"
            f" {child}.{quote_identifier(theirs)}"
            for theirs, ours, schema, operator in self.pairs
        )


#: The keys of these tables: the primary one, and those that are checked late, which replica mode does not check at all.
KEYS: Final = """
SELECT i.indrelid::int8, c.relname::text, i.indisprimary, i.indimmediate, m.amname = 'btree', i.indnullsnotdistinct,
  (SELECT array_agg(ARRAY[a.attname::text, n.nspname::text, o.oprname::text] ORDER BY k.place)
    FROM unnest(i.indkey::int2[], i.indclass::oid[]) WITH ORDINALITY AS k (number, class, place)
    JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.number
    JOIN pg_opclass p ON p.oid = k.class
    JOIN pg_amop s ON s.amopfamily = p.opcfamily AND s.amoplefttype = p.opcintype AND s.amoprighttype = p.opcintype
      AND s.amopstrategy = 3
    JOIN pg_operator o ON o.oid = s.amopopr
    JOIN pg_namespace n ON n.oid = o.oprnamespace)
FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_am m ON m.oid = c.relam
WHERE i.indrelid = ANY (%s::oid[]) AND (i.indisprimary OR NOT i.indimmediate)
"""

#: Foreign keys that one of these tables, or one that it is a partition of, has or is referred to by.
REFERENCES: Final = """
WITH kin AS (
  SELECT o.oid, o.oid AS ancestor FROM unnest(%s::oid[]) AS o (oid)
  UNION SELECT o.oid, a.relid FROM unnest(%s::oid[]) AS o (oid), LATERAL pg_partition_ancestors(o.oid) AS a (relid))
SELECT k.conname::text, ARRAY[cn.nspname::text, c.relname::text, c.relkind::text],
  ARRAY[pn.nspname::text, p.relname::text, p.relkind::text],
  ARRAY(SELECT kin.oid::int8 FROM kin WHERE kin.ancestor = k.conrelid),
  ARRAY(SELECT kin.oid::int8 FROM kin WHERE kin.ancestor = k.confrelid),
  (SELECT array_agg(ARRAY[f.attname::text, r.attname::text, n.nspname::text, o.oprname::text] ORDER BY u.place)
    FROM ROWS FROM (unnest(k.conkey), unnest(k.confkey), unnest(k.conpfeqop))
      WITH ORDINALITY AS u (theirs, ours, operator, place)
    JOIN pg_attribute f ON f.attrelid = k.conrelid AND f.attnum = u.theirs
    JOIN pg_attribute r ON r.attrelid = k.confrelid AND r.attnum = u.ours
    JOIN pg_operator o ON o.oid = u.operator
    JOIN pg_namespace n ON n.oid = o.oprnamespace),
  coalesce((SELECT array_agg(a.attname::text ORDER BY u.place)
    FROM pg_constraint y, unnest(y.conkey) WITH ORDINALITY AS u (number, place), pg_attribute a
    WHERE y.conrelid = k.conrelid AND y.contype = 'p' AND a.attrelid = y.conrelid AND a.attnum = u.number), '{}'),
  coalesce((to_jsonb(k) ->> 'conperiod')::bool, false), coalesce((to_jsonb(k) ->> 'conenforced')::bool, true)
FROM pg_constraint k
JOIN pg_class c ON c.oid = k.conrelid JOIN pg_namespace cn ON cn.oid = c.relnamespace
JOIN pg_class p ON p.oid = k.confrelid JOIN pg_namespace pn ON pn.oid = p.relnamespace
WHERE k.contype = 'f' AND k.conparentid = 0
  AND (k.conrelid IN (SELECT ancestor FROM kin) OR k.confrelid IN (SELECT ancestor FROM kin))
ORDER BY 1, 2
"""

#: What acts on rows of these tables beyond what is asked: triggers and rules, and whether they act in replica mode too.
ACTORS: Final = """
SELECT t.tgrelid::int8, t.tgname::text, t.tgenabled IN ('A', 'R'), t.tgenabled <> 'R' FROM pg_trigger t
WHERE t.tgrelid = ANY (%s::oid[]) AND NOT t.tgisinternal AND t.tgenabled <> 'D'
UNION ALL
SELECT r.ev_class::int8, r.rulename::text, r.ev_enabled IN ('A', 'R'), r.ev_enabled <> 'R' FROM pg_rewrite r
WHERE r.ev_class = ANY (%s::oid[]) AND r.ev_enabled <> 'D' AND r.ev_type <> '1'
ORDER BY 1, 2
"""

#: Row types that columns of these tables hold, at whatever depth, and how many transactions ago one of their attributes
#: was last added, dropped or altered: images of their values go by place.
ROW_TYPES: Final = """
WITH RECURSIVE held AS (
  SELECT a.attrelid, a.attname, a.atttypid AS type FROM pg_attribute a
  WHERE a.attrelid = ANY (%s::oid[]) AND a.attnum > 0 AND NOT a.attisdropped
  UNION
  SELECT h.attrelid, h.attname, inner_type FROM held h JOIN pg_type t ON t.oid = h.type, LATERAL (
    SELECT t.typbasetype UNION ALL SELECT t.typelem
    UNION ALL SELECT r.rngsubtype FROM pg_range r WHERE t.oid IN (r.rngtypid, r.rngmultitypid)
    UNION ALL SELECT a.atttypid FROM pg_attribute a
      WHERE a.attrelid = t.typrelid AND a.attnum > 0 AND NOT a.attisdropped
  ) AS inside (inner_type) WHERE inner_type <> 0)
SELECT h.attrelid::int8, h.attname::text, format_type(t.oid, NULL), min(age(a.xmin))
FROM held h JOIN pg_type t ON t.oid = h.type JOIN pg_attribute a ON a.attrelid = t.typrelid AND a.attnum > 0
GROUP BY 1, 2, 3 ORDER BY 1, 2, 3
"""
#: How many transactions ago the one was that is named by its whole id.
AGE: Final = "SELECT age((%s::numeric %% 4294967296)::text::xid)"

#: What the open transaction has written to tables that outlive it.
WRITTEN: Final = """
SELECT s.relid::int8, s.schemaname || '.' || s.relname, s.n_tup_ins, s.n_tup_upd, s.n_tup_del
FROM pg_stat_xact_all_tables s JOIN pg_class c ON c.oid = s.relid
WHERE c.relpersistence <> 't' AND s.schemaname NOT IN ('pg_catalog', 'pg_toast')
  AND s.n_tup_ins + s.n_tup_upd + s.n_tup_del > 0
"""

TRANSACTION: Final = "SELECT pg_current_xact_id()::text"
MAY_REPLICATE: Final = "SELECT has_parameter_privilege('session_replication_role', 'SET')"


def differences(change: Change, columns: Sequence[Column]) -> str:
    """What is different about a table since the snapshot, in words; empty if nothing is."""
    then = {column.number: column for column in change.columns}
    now = {column.number: column for column in columns}
    found = [f"column {now[number].name} was added" for number in now if number not in then]
    found += [f"column {then[number].name} was dropped" for number in then if number not in now]
    for number, old in then.items():
        new = now.get(number, old)
        if new.name != old.name:
            found.append(f"column {old.name} is called {new.name}")
        elif new.type != old.type:
            found.append(f"column {old.name} was {old.type} and is {new.type}")
        elif (new.generated, new.identity) != (old.generated, old.identity):
            found.append(f"column {old.name} is generated in another way")
    return ", ".join(found)


@dataclass(frozen=True, slots=True)
class Restore:
    """One table that rows are brought back to. `number` tells its temporary tables apart.

    Without a key, rows are told apart by all that they hold; of equal rows one is as good as another. Rows that stand
    in the way are found by ON CONFLICT, which a table with rules or with a key that is checked late does not take.
    """

    number: int
    oid: int
    schema: str
    name: str
    columns: tuple[Column, ...]
    key: tuple[KeyColumn, ...]
    takes_on_conflict: bool

    @property
    def label(self) -> str:
        """The table's name in messages."""
        return f"{self.schema}.{self.name}"

    @property
    def _relation(self) -> str:
        return f"ONLY {qualify(self.schema, self.name)}"

    def _temporary(self, kind: str) -> str:
        return f"pg_temp._sqlwall_{kind}_{self.number}"

    def _columns(self, prefix: str = "", *, is_written: bool = False) -> str:
        return ", ".join(
            prefix + quote_identifier(column.name)
            for column in self.columns
            if not (is_written and column.generated)
        )

    def _image(self, alias: str) -> str:
        return f"ROW({self._columns(f'{alias}.')})"

    def _text(self, alias: str) -> str:
        images = ", ".join(column.image(alias) for column in self.columns)
        return f'(ROW({images})::text COLLATE "C")'

    def _same(self, left: str, right: str) -> str:
        """Equal to the bit; else equal in text, which is as exact as the snapshot is."""
        return (
            f"({self._image(left)}::record *= {self._image(right)}::record OR {self._text(left)} = {self._text(right)})"
            if self.columns
            else "true"
        )

    def describe(self, alias: str) -> str:
        """An expression that names a row for people."""
        return _named([column.name for column in self.key], alias) if self.key else self._start(alias)

    def _start(self, alias: str) -> str:
        return f"left({self._text(alias)}, {ROW_LENGTH})"

    def prepare(self) -> tuple[str, ...]:
        """Make the temporary tables."""
        made: list[str] = []
        for kind in ("after", "before"):
            made += [
                f"CREATE TEMPORARY TABLE {self._temporary(kind)} ON COMMIT DROP AS"
                f" SELECT {self._columns('t.')} FROM {self._relation} AS t WITH NO DATA",
                f"ALTER TABLE {self._temporary(kind)} ADD COLUMN {_STEP} int4",
            ]
        return (
            *made,
            f"CREATE TEMPORARY TABLE {self._temporary('match')} (step int4, round int4, row tid, tid tid, same bool)"
            " ON COMMIT DROP",
            f"CREATE TEMPORARY TABLE {self._temporary('fresh')} (step int4, tid tid) ON COMMIT DROP",
        )

    def begin_step(self, kind: str, step: int) -> str:
        """Rows that are loaded from now on belong to this step."""
        return f"ALTER TABLE {self._temporary(kind)} ALTER COLUMN {_STEP} SET DEFAULT {step}"

    def load(self, kind: str) -> str:
        """COPY of images into ``after`` or ``before``."""
        return f"COPY {self._temporary(kind)} ({self._columns()}) FROM STDIN"

    def load_empty(self, kind: str, rows: int) -> str:
        """The same for a table without columns."""
        return f"INSERT INTO {self._temporary(kind)} SELECT FROM generate_series(1, {rows})"

    def unload(self, kind: str, step: int, columns: Sequence[Column]) -> str:
        """COPY of what was loaded, to compare it byte for byte with the snapshot, whose columns these are."""
        listed = ", ".join(column.image("t") for column in columns)
        return f"COPY (SELECT {listed} FROM {self._temporary(kind)} AS t WHERE t.{_STEP} = {step}) TO STDOUT"

    def analyze(self, kind: str) -> str:
        """Tell the planner what was loaded."""
        return f"ANALYZE {self._temporary(kind)}"

    def match(self, step: int, round_: int) -> str:
        """Find each row of ``after`` in the table as it is now."""
        after = f"{self._temporary('after')} AS a"
        into = f"INSERT INTO {self._temporary('match')} SELECT {step}, {round_}"
        if self.key:
            equal = " AND ".join(column.equals("t", "a") for column in self.key)
            return (
                f"{into}, a.ctid, t.ctid, {self._same('t', 'a')} FROM {after}"
                f" LEFT JOIN {self._relation} AS t ON {equal} WHERE a.{_STEP} = {step}"
            )
        wanted = f"SELECT {self._text('a')} FROM {after} WHERE a.{_STEP} = {step}"
        place = "row_number() OVER (PARTITION BY {image} ORDER BY {alias}.ctid) AS place"
        ours = place.format(image=self._text("a"), alias="a")
        theirs = place.format(image=self._text("t"), alias="t")
        return (
            f"{into}, l.row, r.tid, true"
            f" FROM (SELECT a.ctid AS row, {self._text('a')} AS image, {ours} FROM {after}"
            f" WHERE a.{_STEP} = {step}) AS l"
            f" LEFT JOIN (SELECT t.ctid AS tid, {self._text('t')} AS image, {theirs} FROM {self._relation} AS t"
            f" WHERE {self._text('t')} IN ({wanted})) AS r USING (image, place)"
        )

    def _matched(self, step: int, round_: int) -> str:
        return (
            f"ARRAY(SELECT m.tid FROM {self._temporary('match')} AS m"
            f" WHERE m.step = {step} AND m.round = {round_} AND m.same)"
        )

    def lock(self, step: int) -> str:
        """Lock the rows that were found. Of one that has moved on the newest version is; the next round tells."""
        return (
            f"SELECT count(*) FROM (SELECT FROM {self._relation} AS t"
            f" WHERE t.ctid = ANY ({self._matched(step, 1)}) FOR UPDATE) AS locked"
        )

    def mismatches(self, step: int) -> str:
        """Rows of ``after`` that are not there as they were left: row, whether one has its key, what differs."""
        differing = ", ".join(
            f"CASE WHEN ({column.image('t')})::text IS DISTINCT FROM ({column.image('a')})::text"
            f" THEN {quote_literal(column.name)} END"
            for column in self.columns
        )
        there = "m.tid IS NOT NULL"
        return (
            f"SELECT {self.describe('a')}, {there},"
            f" CASE WHEN {there} THEN array_to_string(ARRAY[{differing}]::text[], ', ')"
            f" ELSE '' END FROM {self._temporary('match')} AS m JOIN {self._temporary('after')} AS a ON a.ctid = m.row"
            f" LEFT JOIN {self._relation} AS t ON t.ctid = m.tid"
            f" WHERE m.step = {step} AND m.round = 2 AND (m.tid IS NULL OR NOT m.same) LIMIT {SHOWN}"
        )

    def unlocked(self, step: int) -> str:
        """Rows that were found in the second round only: somebody wrote them in between."""
        return (
            f"SELECT {self.describe('a')} FROM {self._temporary('match')} AS m"
            f" JOIN {self._temporary('after')} AS a ON a.ctid = m.row"
            f" WHERE m.step = {step} AND m.round = 2 AND m.same AND m.tid NOT IN"
            f" (SELECT o.tid FROM {self._temporary('match')} AS o"
            f" WHERE o.step = {step} AND o.round = 1 AND o.same) LIMIT {SHOWN}"
        )

    def remove(self, step: int) -> str:
        """Take away the rows of ``after``."""
        return f"DELETE FROM {self._relation} AS t WHERE t.ctid = ANY ({self._matched(step, 2)})"

    def put_back(self, step: int) -> str:
        """Put back the rows of ``before``, with their addresses noted."""
        written = self._columns(is_written=True)
        listed = f" ({written})" if written else ""
        conflict = " ON CONFLICT DO NOTHING" if self.takes_on_conflict else ""
        return (
            f"WITH added AS (INSERT INTO {qualify(self.schema, self.name)}{listed} OVERRIDING SYSTEM VALUE"
            f" SELECT {self._columns('b.', is_written=True)} FROM {self._temporary('before')} AS b"
            f" WHERE b.{_STEP} = {step}{conflict} RETURNING ctid)"
            f" INSERT INTO {self._temporary('fresh')} SELECT {step}, added.ctid FROM added"
        )

    def _fresh(self, step: int | None = None) -> str:
        """A condition: rows that were put back, in this step or in any."""
        only = "" if step is None else f" WHERE f.step = {step}"
        return f"t.ctid = ANY (ARRAY(SELECT f.tid FROM {self._temporary('fresh')} AS f{only}))"

    def missing(self, step: int) -> str:
        """Rows of ``before`` that did not come back as they were: row, and whether another one has their key."""
        back = f"SELECT {self._text('t')} FROM {self._relation} AS t WHERE {self._fresh(step)}"
        lost = (
            f"SELECT {self._text('b')} FROM {self._temporary('before')} AS b"
            f" WHERE b.{_STEP} = {step} EXCEPT ALL {back}"
        )
        equal = " AND ".join(column.equals("o", "b") for column in self.key)
        taken = f"EXISTS (SELECT FROM {self._relation} AS o WHERE {equal})" if self.key else "false"
        return (
            f"SELECT {self.describe('b')}, {taken} FROM {self._temporary('before')} AS b"
            f" WHERE b.{_STEP} = {step} AND {self._text('b')} IN ({lost}) LIMIT {SHOWN}"
        )

    def duplicates(self, key: Sequence[KeyColumn]) -> str:
        """Rows that were put back beside others with the same values of a late-checked key."""
        equal = " AND ".join(column.equals("o", "t") for column in key)
        return (
            f"SELECT {self.describe('t')} FROM {self._relation} AS t JOIN {self._relation} AS o"
            f" ON {equal} AND o.ctid <> t.ctid WHERE {self._fresh()} LIMIT {SHOWN}"
        )

    def hold_parents(self, reference: Reference) -> str:
        """Lock the rows that those put back refer to, as a foreign key would."""
        referring = (
            f"SELECT FROM {self._relation} AS t WHERE {self._fresh()} AND {reference.matches('p', 't')}"
        )
        return (
            f"SELECT count(*) FROM (SELECT FROM {_whole(reference.parent)} AS p"
            f" WHERE EXISTS ({referring}) FOR KEY SHARE OF p) AS held"
        )

    def orphans(self, reference: Reference) -> str:
        """Rows that were put back and refer to nothing."""
        given = " AND ".join(f"t.{quote_identifier(pair[0])} IS NOT NULL" for pair in reference.pairs)
        return (
            f"SELECT {self.describe('t')} FROM {self._relation} AS t WHERE {self._fresh()} AND {given} AND NOT EXISTS"
            f" (SELECT FROM {_whole(reference.parent)} AS p WHERE {reference.matches('p', 't')}) LIMIT {SHOWN}"
        )

    def abandoned(self, reference: Reference) -> str:
        """Rows of a child that refer to a row that was taken away."""
        named = _named(reference.child_key or [pair[0] for pair in reference.pairs], "c")
        return (
            f"SELECT DISTINCT {named} FROM {_whole(reference.child)} AS c"
            f" JOIN {self._temporary('after')} AS a ON {reference.matches('a', 'c')} WHERE NOT EXISTS"
            f" (SELECT FROM {_whole(reference.parent)} AS p WHERE {reference.matches('p', 'c')}) LIMIT {SHOWN}"
        )


def _named(columns: Sequence[str], alias: str) -> str:
    parts = ", ".join(
        f"{quote_literal(name + '=')} || coalesce({alias}.{quote_identifier(name)}::text, 'NULL')"
        for name in columns
    )
    return f"left(array_to_string(ARRAY[{parts}], ', '), {ROW_LENGTH})"


def _whole(relation: tuple[str, str, str]) -> str:
    """A table as a foreign key reads it: with its partitions, without what inherits from it."""
    schema, name, kind = relation
    return ("" if kind == "p" else "ONLY ") + qualify(schema, name)
