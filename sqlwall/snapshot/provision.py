"""SQL that gives sqlwall its own roles in a database, and functions that look past row security where the proof must.

Three roles: what agents' sessions log in as is the least of them; the observer reads everything and writes nothing; the
undo role writes rows and may switch triggers off. The functions run on the agent's session with the observer's rights
and tell only what its own transaction has done: which row versions are gone, and what took their place (MECHANICS 14,
"RLS flip"). The wall refuses any text of an agent that names them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from sqlwall.snapshot.images import EXACT_SETTINGS, READ_AS, quote_identifier
from sqlwall.snapshot.trash import SCHEMA as TRASH

#: The schema of our functions. Its prefix is reserved: no ruleset can allow an agent anything in it.
SCHEMA: Final = "_sqlwall"

_SETTINGS: Final = " ".join(
    f"SET {name} = {'pg_catalog' if name == 'search_path' else repr(value)}"
    for name, value in EXACT_SETTINGS.items()
)
#: Fresh snapshot in each (VOLATILE), as the statements of an agent have.
_HEAD: Final = f"LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET row_security = off {_SETTINGS} AS"

#: Our own row versions: visible, and written by a transaction in progress (`queries.own_rows` says why).
_OWN: Final = """CASE WHEN age(t.xmin) <= age(($2 & 4294967295)::text::xid)
        THEN pg_xact_status(($2 + age(($2 & 4294967295)::text::xid) - age(t.xmin))::text::xid8) = 'in progress'
        ELSE false END"""

FUNCTIONS: Final = (
    f"""CREATE OR REPLACE FUNCTION {SCHEMA}.visible(relation oid, tids tid[]) RETURNS SETOF tid {_HEAD} $_$
BEGIN
  RETURN QUERY EXECUTE format('SELECT t.ctid FROM ONLY %s AS t WHERE t.ctid = ANY ($1)', relation::regclass)
    USING tids;
END $_$""",
    f"""CREATE OR REPLACE FUNCTION {SCHEMA}.successors(relation oid, tids tid[]) RETURNS SETOF tid {_HEAD} $_$
BEGIN
  RETURN QUERY SELECT currtid2(relation::regclass::text, u.tid) FROM unnest(tids) AS u (tid);
END $_$""",
    f"""CREATE OR REPLACE FUNCTION {SCHEMA}.own(relation oid, xid bigint, first tid) RETURNS SETOF tid {_HEAD} $_$
BEGIN
  RETURN QUERY EXECUTE format($q$SELECT t.ctid FROM ONLY %s AS t WHERE t.ctid >= $1 AND {_OWN}$q$, relation::regclass)
    USING first, xid;
END $_$""",
    f"""CREATE OR REPLACE FUNCTION {SCHEMA}.own_images(relation oid, xid bigint, tids tid[])
RETURNS TABLE (tid tid, place int, value text) {_HEAD} $_$
DECLARE listed text;
BEGIN
  SELECT string_agg(format($q$(%s, CASE WHEN num_nulls(t.%I) = 0 THEN format('%%s', t.%I%s) END)$q$,
      a.attnum, a.attname, a.attname, '::' || nullif({READ_AS}, '')), ', ')
    INTO listed FROM pg_attribute a
    WHERE a.attrelid = relation AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated <> 'v';
  RETURN QUERY EXECUTE format($q$SELECT t.ctid, v.place, v.value FROM ONLY %s AS t
      CROSS JOIN LATERAL (VALUES %s) AS v (place, value) WHERE t.ctid = ANY ($1) AND {_OWN}$q$,
      relation::regclass, coalesce(listed, '(0, NULL)'))
    USING tids, xid;
END $_$""",
)
SIGNATURES: Final = (
    "visible(oid, tid[])", "successors(oid, tid[])", "own(oid, bigint, tid)",
    "own_images(oid, bigint, tid[])",
)  # fmt: skip


def agent(name: str, schemas: Sequence[str], *, is_read_only: bool) -> tuple[str, ...]:
    """Statements that make a role for agents' sessions, with rights on the tables of these schemas."""
    role = quote_identifier(name)
    rights = "SELECT" if is_read_only else "SELECT, INSERT, UPDATE, DELETE"
    created = [f"CREATE ROLE {role} LOGIN"]
    for schema in map(quote_identifier, schemas):
        created += [
            f"GRANT USAGE ON SCHEMA {schema} TO {role}",
            f"GRANT {rights} ON ALL TABLES IN SCHEMA {schema} TO {role}",
        ]
        if not is_read_only:
            created.append(f"GRANT USAGE ON ALL SEQUENCES IN SCHEMA {schema} TO {role}")
    return tuple(created)


def roles(observer: str, undo: str) -> tuple[str, ...]:
    """Statements for the cluster, once. Passwords are set apart from them: no text of ours holds one."""
    seeing, undoing = quote_identifier(observer), quote_identifier(undo)
    return (
        f"CREATE ROLE {seeing} LOGIN BYPASSRLS",
        f"GRANT pg_read_all_data TO {seeing}",
        f"ALTER ROLE {seeing} SET default_transaction_read_only = on",
        f"CREATE ROLE {undoing} LOGIN BYPASSRLS",
        f"GRANT pg_read_all_data, pg_write_all_data TO {undoing}",
        f"GRANT SET ON PARAMETER session_replication_role TO {undoing}",
    )


def reach(observer: str, undo: str) -> tuple[str, ...]:
    """Statements for one database: the right to connect, and undo's temporary tables."""
    return (
        "DO $_$ BEGIN EXECUTE format('GRANT CONNECT ON DATABASE %I TO "
        f"{_format(observer)}, {_format(undo)}', current_database()); EXECUTE format('GRANT TEMPORARY ON DATABASE %I"
        f" TO {_format(undo)}', current_database()); END $_$",
    )


def trash(undo: str, agent: str) -> tuple[str, ...]:
    """Statements for one database: where dropped tables go, and undo's right to what agents own, to bring them back.

    Without these a DROP TABLE is refused, whatever the ruleset says.
    """
    undoing, asking = quote_identifier(undo), quote_identifier(agent)
    return (
        f"CREATE SCHEMA IF NOT EXISTS {TRASH}",
        f"REVOKE ALL ON SCHEMA {TRASH} FROM PUBLIC",
        f"GRANT USAGE, CREATE ON SCHEMA {TRASH} TO {asking}, {undoing}",
        f"GRANT {asking} TO {undoing}",
    )


def _format(name: str) -> str:
    """A name inside a constant that format() reads."""
    return quote_identifier(name).replace("%", "%%").replace("'", "''")


def functions(observer: str, agent: str) -> tuple[str, ...]:
    """Statements for one database: the schema, its functions, and the right to call them for the role of agents."""
    seeing, asking = quote_identifier(observer), quote_identifier(agent)
    created: list[str] = [f"CREATE SCHEMA IF NOT EXISTS {SCHEMA}", *FUNCTIONS]
    for signature in SIGNATURES:
        name = f"{SCHEMA}.{signature}"
        created += [
            f"REVOKE ALL ON FUNCTION {name} FROM PUBLIC",
            f"GRANT EXECUTE ON FUNCTION {name} TO {asking}",
            f"ALTER FUNCTION {name} OWNER TO {seeing}",
        ]
    created += [f"REVOKE ALL ON SCHEMA {SCHEMA} FROM PUBLIC", f"GRANT USAGE ON SCHEMA {SCHEMA} TO {asking}"]
    return tuple(created)
