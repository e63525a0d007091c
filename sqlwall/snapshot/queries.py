"""SQL of ours around a guarded write: on the observer's session, and on the agent's own.

Every relation, function, operator and type is qualified: neither search_path nor a temporary object can stand in.
Addresses are inlined as digits; names come from the catalog and are quoted.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from sqlwall.snapshot.images import (
    EXACT_SETTINGS,
    READ_AS,
    Tid,
    copy_line,
    qualify,
    quote_identifier,
    quote_literal,
    read_tid,
    tid_array,
    tid_text,
)
from sqlwall.snapshot.manifest import Column

Row = Sequence[bytes | None]

#: What an observer must know of tables before it reads them: one row per relation.
#: The parameter is an array of their object ids. Virtual generated columns have no image.
RELATIONS: Final = f"""
SELECT c.oid::pg_catalog.int8, n.nspname::text, c.relname::text, c.relkind::text,
  pg_catalog.pg_relation_size(c.oid), c.reltuples::pg_catalog.float8,
  (SELECT pg_catalog.array_agg(ARRAY[a.attname::text, pg_catalog.format_type(a.atttypid, a.atttypmod),
      a.attnum::text, a.attgenerated::text, a.attidentity::text, {READ_AS}] ORDER BY a.attnum)
    FROM pg_catalog.pg_attribute a
    WHERE a.attrelid OPERATOR(pg_catalog.=) c.oid AND a.attnum OPERATOR(pg_catalog.>) 0 AND NOT a.attisdropped
      AND a.attgenerated::text OPERATOR(pg_catalog.<>) 'v'),
  (SELECT pg_catalog.array_agg(a.attname::text ORDER BY k.place)
    FROM pg_catalog.pg_constraint p, LATERAL pg_catalog.unnest(p.conkey) WITH ORDINALITY AS k (number, place),
      pg_catalog.pg_attribute a
    WHERE p.conrelid OPERATOR(pg_catalog.=) c.oid AND p.contype::text OPERATOR(pg_catalog.=) 'p'
      AND a.attrelid OPERATOR(pg_catalog.=) c.oid AND a.attnum OPERATOR(pg_catalog.=) k.number),
  pg_catalog.has_table_privilege(c.oid, 'SELECT') AND NOT pg_catalog.row_security_active(c.oid)
FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid OPERATOR(pg_catalog.=) c.relnamespace
WHERE c.oid OPERATOR(pg_catalog.=) ANY (%s::pg_catalog.oid[])
"""

#: Which cluster and database this is.
IDENTITY: Final = """
SELECT (SELECT system_identifier FROM pg_catalog.pg_control_system())::text,
  (SELECT oid FROM pg_catalog.pg_database WHERE datname OPERATOR(pg_catalog.=) pg_catalog.current_database())::int8,
  pg_catalog.current_setting('server_version_num')::int4
"""

#: Which of these tables refer to which, by their own keys or by those of the tables that they are partitions of.
#: The parameter, twice, is an array of object ids; operators compare the parent's column with the child's.
FOREIGN_KEYS: Final = """
WITH kin AS (
  SELECT o.oid, o.oid AS ancestor FROM pg_catalog.unnest(%s::pg_catalog.oid[]) AS o (oid)
  UNION SELECT o.oid, a.relid FROM pg_catalog.unnest(%s::pg_catalog.oid[]) AS o (oid),
    LATERAL pg_catalog.pg_partition_ancestors(o.oid) AS a (relid))
SELECT DISTINCT child.oid::pg_catalog.int8, parent.oid::pg_catalog.int8,
  (SELECT pg_catalog.array_agg(ARRAY[f.attname::text, p.attname::text, n.nspname::text, o.oprname::text]
      ORDER BY u.place)
    FROM ROWS FROM (pg_catalog.unnest(k.conkey), pg_catalog.unnest(k.confkey), pg_catalog.unnest(k.conpfeqop))
      WITH ORDINALITY AS u (theirs, ours, operator, place)
    JOIN pg_catalog.pg_attribute f ON f.attrelid OPERATOR(pg_catalog.=) k.conrelid
      AND f.attnum OPERATOR(pg_catalog.=) u.theirs
    JOIN pg_catalog.pg_attribute p ON p.attrelid OPERATOR(pg_catalog.=) k.confrelid
      AND p.attnum OPERATOR(pg_catalog.=) u.ours
    JOIN pg_catalog.pg_operator o ON o.oid OPERATOR(pg_catalog.=) u.operator
    JOIN pg_catalog.pg_namespace n ON n.oid OPERATOR(pg_catalog.=) o.oprnamespace)
FROM pg_catalog.pg_constraint k
JOIN kin child ON child.ancestor OPERATOR(pg_catalog.=) k.conrelid
JOIN kin parent ON parent.ancestor OPERATOR(pg_catalog.=) k.confrelid
WHERE k.contype::text OPERATOR(pg_catalog.=) 'f'
"""

#: A transaction of the observer's own whose end waits until all that the server has logged is on its disk. What is not,
#: a crash takes back, ids of open transactions with it: the next transaction would be given the same.
FLUSH: Final = (
    "SELECT pg_catalog.pg_logical_emit_message(true, 'sqlwall'::pg_catalog.text, ''::pg_catalog.text)"
)

#: What became of a transaction: committed, aborted, in progress, or NULL if that is too long ago to be known.
STATUS: Final = "SELECT pg_catalog.pg_xact_status(%s::pg_catalog.text::pg_catalog.xid8)"


def observe_rows(schema: str, name: str, columns: Sequence[Column], tids: Iterable[Tid]) -> str:
    """COPY of the rows at these addresses as others see them: address, xmin, then the image."""
    listed = "".join(f", {column.image('t')}" for column in columns)
    return (
        f"COPY (SELECT t.ctid, t.xmin{listed} FROM ONLY {qualify(schema, name)} AS t"
        f" WHERE t.ctid OPERATOR(pg_catalog.=) ANY ({tid_array(tids)})) TO STDOUT"
    )


def count_rows(schema: str, name: str, most: int) -> str:
    """How many rows a table has, counted up to `most`."""
    return (
        "SELECT pg_catalog.count(*)::pg_catalog.int8 FROM"
        f" (SELECT FROM ONLY {qualify(schema, name)} LIMIT {int(most)}) AS counted"
    )


def observe_again(schema: str, name: str, tids: Iterable[Tid]) -> str:
    """Addresses and xmin of the rows that are still there."""
    return (
        f"COPY (SELECT t.ctid, t.xmin FROM ONLY {qualify(schema, name)} AS t"
        f" WHERE t.ctid OPERATOR(pg_catalog.=) ANY ({tid_array(tids)})) TO STDOUT"
    )


def observe_ends(schema: str, name: str, tids: Iterable[Tid], xid: int, pid: int) -> str:
    """Addresses and xmin of rows, and whether the transaction `xid` of session `pid` has certainly not ended them.

    Who ends a row version writes its id into xmax, and so does who locks it. A transaction that is over, or whose id
    another session holds, is not ours; of a number that may be a MultiXactId nothing is known. Ids of savepoints that
    were released are held by nobody.
    """
    age = "pg_catalog.age"
    full = (
        f"((({xid}::pg_catalog.int8 OPERATOR(pg_catalog.+) ({age}('{xid & 0xFFFFFFFF}'::pg_catalog.xid)"
        f" OPERATOR(pg_catalog.-) {age}(t.xmax))::pg_catalog.int8)::pg_catalog.text)::pg_catalog.xid8)"
    )
    oldest = (
        "(SELECT pg_catalog.mxid_age(d.datminmxid) FROM pg_catalog.pg_database d"
        " WHERE d.datname OPERATOR(pg_catalog.=) pg_catalog.current_database())"
    )
    held = (
        "EXISTS (SELECT FROM pg_catalog.pg_locks l WHERE l.locktype OPERATOR(pg_catalog.=) 'transactionid'"
        " AND l.mode OPERATOR(pg_catalog.=) 'ExclusiveLock' AND l.granted"
        f" AND l.transactionid OPERATOR(pg_catalog.=) t.xmax AND l.pid OPERATOR(pg_catalog.<>) {pid})"
    )
    return (
        "COPY (SELECT t.ctid, t.xmin, CASE WHEN t.xmax OPERATOR(pg_catalog.=) '0'::pg_catalog.xid THEN true"
        f" WHEN pg_catalog.mxid_age(t.xmax) OPERATOR(pg_catalog.>) 0"
        f" AND pg_catalog.mxid_age(t.xmax) OPERATOR(pg_catalog.<=) {oldest} THEN false"
        f" WHEN pg_catalog.pg_xact_status({full}) OPERATOR(pg_catalog.=) 'in progress' THEN {held} ELSE true END"
        f" FROM ONLY {qualify(schema, name)} AS t"
        f" WHERE t.ctid OPERATOR(pg_catalog.=) ANY ({tid_array(tids)})) TO STDOUT"
    )


#: On the agent's session: which one it is.
PID: Final = b"SELECT pg_catalog.pg_backend_pid()"


def observe_children(
    child: tuple[str, str], parent: tuple[str, str], pairs: Iterable[Sequence[str]], tids: Iterable[Tid]
) -> str:
    """Addresses of the rows that refer to these rows of a parent: what a cascade can have reached."""
    equal = " AND ".join(
        f"p.{quote_identifier(ours)} OPERATOR({quote_identifier(schema)}.{operator}) c.{quote_identifier(theirs)}"
        for theirs, ours, schema, operator in pairs
    )
    return (
        f"COPY (SELECT c.ctid FROM ONLY {qualify(*child)} AS c WHERE EXISTS (SELECT FROM ONLY {qualify(*parent)} AS p"
        f" WHERE p.ctid OPERATOR(pg_catalog.=) ANY ({tid_array(tids)}) AND {equal})) TO STDOUT"
    )


def observe_touched(schema: str, name: str) -> str:
    """Addresses of all rows that any transaction has locked, updated or deleted since they were written."""
    return (
        f"COPY (SELECT t.ctid FROM ONLY {qualify(schema, name)} AS t"
        " WHERE t.xmax OPERATOR(pg_catalog.<>) '0'::pg_catalog.xid) TO STDOUT"
    )


#: On the observer's session: whether our functions are there, made by somebody whom row security does not bind.
HELPERS: Final = """
SELECT pg_catalog.count(*)::pg_catalog.int4 FROM pg_catalog.pg_proc p
  JOIN pg_catalog.pg_namespace n ON n.oid OPERATOR(pg_catalog.=) p.pronamespace
  JOIN pg_catalog.pg_roles o ON o.oid OPERATOR(pg_catalog.=) p.proowner
WHERE n.nspname OPERATOR(pg_catalog.=) '_sqlwall'::pg_catalog.name AND p.prosecdef
  AND p.proname OPERATOR(pg_catalog.=) ANY (ARRAY['visible', 'successors', 'own', 'own_images']::pg_catalog.name[])
  AND (o.rolbypassrls OR o.rolsuper)
"""
#: How many they are.
HELPER_COUNT: Final = 4


class Direct:
    """On the agent's session, with the rights of its role: which row versions its transaction sees, and what it wrote.

    Answers are rows of one address each; those with images are for `read_images`.
    """

    def __init__(self, schema: str, name: str, columns: Sequence[Column], xid: int) -> None:
        self._relation = qualify(schema, name)
        self._columns = columns
        self.xid = xid

    def visible(self, tids: Iterable[Tid]) -> bytes:
        """Which of these row versions the transaction still sees."""
        return (
            f"SELECT t.ctid FROM ONLY {self._relation} AS t"
            f" WHERE t.ctid OPERATOR(pg_catalog.=) ANY ({tid_array(tids)})"
        ).encode()

    def successors(self, tids: Iterable[Tid]) -> bytes:
        """The newest version of each row, its own address if it is gone."""
        return (
            f"SELECT pg_catalog.currtid2({quote_literal(self._relation)}::pg_catalog.text, u.tid)"
            f" FROM pg_catalog.unnest({tid_array(tids)}) AS u (tid)"
        ).encode()

    def own(self, first_block: int, end_block: int | None = None) -> bytes:
        """The visible rows that the transaction wrote, from a block on, up to another or the end.

        A row version that is visible while its transaction is in progress is our own. xmin has 32 bits; the distance
        to our top transaction's id, which is never above those of its savepoints, gives the other 32 (MECHANICS 4).
        """
        age = "pg_catalog.age"
        top = f"{age}('{self.xid & 0xFFFFFFFF}'::pg_catalog.xid)"
        full = (
            f"((({self.xid}::pg_catalog.int8 OPERATOR(pg_catalog.+)"
            f" ({top} OPERATOR(pg_catalog.-) {age}(t.xmin))::pg_catalog.int8)::pg_catalog.text)::pg_catalog.xid8)"
        )
        bounds = ""
        if first_block:
            bounds += f" AND t.ctid OPERATOR(pg_catalog.>=) '{tid_text(first_block << 16)}'::pg_catalog.tid"
        if end_block is not None:
            bounds += f" AND t.ctid OPERATOR(pg_catalog.<) '{tid_text(end_block << 16)}'::pg_catalog.tid"
        return (
            f"SELECT t.ctid FROM ONLY {self._relation} AS t"
            f" WHERE CASE WHEN {age}(t.xmin) OPERATOR(pg_catalog.<=) {top}"
            f" THEN pg_catalog.pg_xact_status({full}) OPERATOR(pg_catalog.=) 'in progress'::pg_catalog.text"
            f" ELSE false END{bounds}"
        ).encode()

    @property
    def is_cut_cheaply(self) -> bool:
        """Whether `own` of some blocks is less work than `own` of all."""
        return True

    def own_images(self, tids: Iterable[Tid]) -> bytes:
        """The rows at these addresses."""
        return self._images(tid_array(tids))

    def heir_images(self, tids: Iterable[Tid]) -> bytes:
        """The newest versions of the rows at these addresses."""
        return self._images(f"ARRAY({self.successors(tids).decode()})")

    def _images(self, tids: str) -> bytes:
        listed = "".join(f", {column.image('t')}" for column in self._columns)
        return (
            f"COPY (SELECT t.ctid{listed} FROM ONLY {self._relation} AS t"
            f" WHERE t.ctid OPERATOR(pg_catalog.=) ANY ({tids})) TO STDOUT"
        ).encode()

    def read_images(self, rows: Iterable[Row], lines: Iterable[bytes]) -> list[tuple[Tid, bytes]]:
        """Address and image of each row, a line of COPY text without its end, from the answer to a question for images.

        `rows` and `lines` are what it consists of.
        """
        found = []
        for line in lines:
            tid, _, image = line.partition(b"\t")
            found.append((read_tid(tid), image))
        return found


class Helped(Direct):
    """The same through our functions, which look past row security and missing privileges (`snapshot.provision`)."""

    def __init__(self, oid: int, columns: Sequence[Column], xid: int) -> None:
        super().__init__("", "", columns, xid)
        self._oid = f"{oid}::pg_catalog.oid"

    def visible(self, tids: Iterable[Tid]) -> bytes:
        """See `Direct`."""
        return f"SELECT f.* FROM _sqlwall.visible({self._oid}, {tid_array(tids)}) AS f".encode()

    def successors(self, tids: Iterable[Tid]) -> bytes:
        """See `Direct`."""
        return f"SELECT f.* FROM _sqlwall.successors({self._oid}, {tid_array(tids)}) AS f".encode()

    def own(self, first_block: int, end_block: int | None = None) -> bytes:
        """See `Direct`. Here the end bounds the answer, not the work."""
        first = f"'{tid_text(first_block << 16)}'::pg_catalog.tid"
        end = ""
        if end_block is not None:
            end = f" WHERE f OPERATOR(pg_catalog.<) '{tid_text(end_block << 16)}'::pg_catalog.tid"
        return f"SELECT f FROM _sqlwall.own({self._oid}, {self.xid}::pg_catalog.int8, {first}) AS f{end}".encode()

    @property
    def is_cut_cheaply(self) -> bool:
        """See `Direct`."""
        return False

    def _images(self, tids: str) -> bytes:
        """Here one row for each value, with the number of its column."""
        return (
            f"SELECT f.tid, f.place, f.value FROM _sqlwall.own_images({self._oid}, {self.xid}::pg_catalog.int8,"
            f" {tids}) AS f"
        ).encode()

    def read_images(self, rows: Iterable[Row], lines: Iterable[bytes]) -> list[tuple[Tid, bytes]]:
        """See `Direct`."""
        found: dict[bytes, dict[int, bytes | None]] = {}
        for tid, place, value in rows:
            found.setdefault(tid or b"", {})[int(place or b"0")] = value
        return [
            (read_tid(tid), copy_line([values[column.number] for column in self._columns])[:-1])
            for tid, values in found.items()
        ]


def exact_settings() -> bytes:
    """On the agent's session: the settings under which values have their exact text, until a ROLLBACK TO."""
    calls = ", ".join(
        f"pg_catalog.set_config('{name}', '{value}', true)" for name, value in EXACT_SETTINGS.items()
    )
    return f"SELECT {calls}".encode()
