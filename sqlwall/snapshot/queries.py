"""SQL of ours around a guarded write: on the observer's session, and on the agent's own.

Every relation, function, operator and type is qualified: neither search_path nor a temporary object can stand in.
Addresses are inlined as digits; names come from the catalog and are quoted.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from sqlwall.snapshot.images import (
    EXACT_SETTINGS,
    Tid,
    qualify,
    quote_identifier,
    quote_literal,
    tid_array,
    tid_text,
)
from sqlwall.snapshot.manifest import Column

#: What an observer must know of tables before it reads them: one row per relation.
#: The parameter is an array of their object ids. Virtual generated columns have no image.
RELATIONS: Final = """
SELECT c.oid::pg_catalog.int8, n.nspname::text, c.relname::text, c.relkind::text,
  pg_catalog.pg_relation_size(c.oid), c.reltuples::pg_catalog.float8,
  (SELECT pg_catalog.array_agg(ARRAY[a.attname::text, pg_catalog.format_type(a.atttypid, a.atttypmod),
      a.attnum::text, a.attgenerated::text, a.attidentity::text] ORDER BY a.attnum)
    FROM pg_catalog.pg_attribute a
    WHERE a.attrelid OPERATOR(pg_catalog.=) c.oid AND a.attnum OPERATOR(pg_catalog.>) 0 AND NOT a.attisdropped
      AND a.attgenerated::text OPERATOR(pg_catalog.<>) 'v'),
  (SELECT pg_catalog.array_agg(a.attname::text ORDER BY k.place)
    FROM pg_catalog.pg_constraint p, LATERAL pg_catalog.unnest(p.conkey) WITH ORDINALITY AS k (number, place),
      pg_catalog.pg_attribute a
    WHERE p.conrelid OPERATOR(pg_catalog.=) c.oid AND p.contype::text OPERATOR(pg_catalog.=) 'p'
      AND a.attrelid OPERATOR(pg_catalog.=) c.oid AND a.attnum OPERATOR(pg_catalog.=) k.number)
FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid OPERATOR(pg_catalog.=) c.relnamespace
WHERE c.oid OPERATOR(pg_catalog.=) ANY (%s::pg_catalog.oid[])
"""

#: Which cluster and database this is.
IDENTITY: Final = """
SELECT (SELECT system_identifier FROM pg_catalog.pg_control_system())::text,
  (SELECT oid FROM pg_catalog.pg_database WHERE datname OPERATOR(pg_catalog.=) pg_catalog.current_database())::int8,
  pg_catalog.current_setting('server_version_num')::int4
"""

#: What became of a transaction: committed, aborted, in progress, or NULL if that is too long ago to be known.
STATUS: Final = "SELECT pg_catalog.pg_xact_status(%s::pg_catalog.text::pg_catalog.xid8)"


def observe_rows(schema: str, name: str, columns: Sequence[Column], tids: Iterable[Tid]) -> str:
    """COPY of the rows at these addresses as others see them: address, xmin, then the image."""
    listed = "".join(f", t.{quote_identifier(column.name)}" for column in columns)
    return (
        f"COPY (SELECT t.ctid, t.xmin{listed} FROM ONLY {qualify(schema, name)} AS t"
        f" WHERE t.ctid OPERATOR(pg_catalog.=) ANY ({tid_array(tids)})) TO STDOUT"
    )


def observe_again(schema: str, name: str, tids: Iterable[Tid]) -> str:
    """Addresses and xmin of the rows that are still there."""
    return (
        f"COPY (SELECT t.ctid, t.xmin FROM ONLY {qualify(schema, name)} AS t"
        f" WHERE t.ctid OPERATOR(pg_catalog.=) ANY ({tid_array(tids)})) TO STDOUT"
    )


def observe_touched(schema: str, name: str) -> str:
    """Addresses of all rows that any transaction has locked, updated or deleted since they were written."""
    return (
        f"COPY (SELECT t.ctid FROM ONLY {qualify(schema, name)} AS t"
        " WHERE t.xmax OPERATOR(pg_catalog.<>) '0'::pg_catalog.xid) TO STDOUT"
    )


def reading_rights(oids: Iterable[str]) -> bytes:
    """On the agent's session: whether it may read each relation whole, by privilege and row security."""
    listed = ",".join(str(int(oid)) for oid in oids)
    return (
        "SELECT o.oid::pg_catalog.text,"
        " pg_catalog.has_table_privilege(o.oid, 'SELECT')::pg_catalog.text,"
        " pg_catalog.row_security_active(o.oid)::pg_catalog.text"
        f" FROM pg_catalog.unnest('{{{listed}}}'::pg_catalog.oid[]) AS o (oid)"
    ).encode()


def visible_rows(schema: str, name: str, tids: Iterable[Tid]) -> bytes:
    """On the agent's session: which of these row versions its transaction still sees."""
    return (
        f"SELECT t.ctid FROM ONLY {qualify(schema, name)} AS t"
        f" WHERE t.ctid OPERATOR(pg_catalog.=) ANY ({tid_array(tids)})"
    ).encode()


def successors(schema: str, name: str, tids: Iterable[Tid]) -> bytes:
    """On the agent's session: the newest version of each row, its own address if it is gone."""
    relation = quote_literal(qualify(schema, name))
    return (
        f"SELECT pg_catalog.currtid2({relation}::pg_catalog.text, u.tid)"
        f" FROM pg_catalog.unnest({tid_array(tids)}) AS u (tid)"
    ).encode()


def own_rows(schema: str, name: str, xid: int, first_block: int) -> bytes:
    """On the agent's session: the visible rows that its own transaction wrote, from a block on.

    A row version that is visible while its transaction is in progress is our own. xmin has 32 bits; the distance to our
    top transaction's id, which is never above those of its savepoints, gives the other 32 (MECHANICS, section 4).
    """
    age = "pg_catalog.age"
    top = f"{age}('{xid & 0xFFFFFFFF}'::pg_catalog.xid)"
    full = (
        f"((({xid}::pg_catalog.int8 OPERATOR(pg_catalog.+) ({top} OPERATOR(pg_catalog.-) {age}(t.xmin))::pg_catalog.int8)"
        "::pg_catalog.text)::pg_catalog.xid8)"
    )
    start = f" AND t.ctid OPERATOR(pg_catalog.>=) '{tid_text(first_block << 16)}'::pg_catalog.tid"
    return (
        f"SELECT t.ctid FROM ONLY {qualify(schema, name)} AS t"
        f" WHERE CASE WHEN {age}(t.xmin) OPERATOR(pg_catalog.<=) {top}"
        f" THEN pg_catalog.pg_xact_status({full}) OPERATOR(pg_catalog.=) 'in progress'::pg_catalog.text"
        f" ELSE false END{start if first_block else ''}"
    ).encode()


def own_images(schema: str, name: str, columns: Sequence[Column], tids: Iterable[Tid]) -> bytes:
    """On the agent's session: the rows at these addresses, address first, then the values in text form."""
    listed = "".join(f", t.{quote_identifier(column.name)}" for column in columns)
    return (
        f"SELECT t.ctid{listed} FROM ONLY {qualify(schema, name)} AS t"
        f" WHERE t.ctid OPERATOR(pg_catalog.=) ANY ({tid_array(tids)})"
    ).encode()


def exact_settings() -> bytes:
    """On the agent's session: the settings under which values have their exact text, until a ROLLBACK TO."""
    calls = ", ".join(
        f"pg_catalog.set_config('{name}', '{value}', true)" for name, value in EXACT_SETTINGS.items()
    )
    return f"SELECT {calls}".encode()
