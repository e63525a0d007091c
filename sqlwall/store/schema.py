"""The tables of the store. What they hold is said here; how they came to be is in `migrations`."""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa

#: SQLite gives only an INTEGER PRIMARY KEY its own numbers.
_POSITION = sa.BigInteger().with_variant(sa.Integer(), "sqlite")

METADATA: Final = sa.MetaData()

#: Who may connect. `verifier` is SCRAM-SHA-256 in PostgreSQL's own notation; the password itself is nowhere.
AGENTS: Final = sa.Table(
    "sqlwall_agents",
    METADATA,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("verifier", sa.Text, nullable=False),
    sa.Column("ruleset", sa.Text),
    sa.Column("connection_limit", sa.Integer),
    sa.Column("note", sa.Text, nullable=False),
    sa.Column("created_at", sa.Text, nullable=False),
    sa.Column("rotated_at", sa.Text),
    sa.Column("revoked_at", sa.Text),
)

#: The record. Rows are only ever added; a trigger refuses the rest. `position` is local order and is not hashed.
AUDIT: Final = sa.Table(
    "sqlwall_audit",
    METADATA,
    sa.Column("position", _POSITION, primary_key=True),
    sa.Column("writer", sa.Text, nullable=False),
    sa.Column("sequence", sa.BigInteger, nullable=False),
    sa.Column("event", sa.Text, nullable=False),
    sa.Column("time", sa.Text, nullable=False),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("agent", sa.Text),
    sa.Column("session", sa.Text),
    sa.Column("client", sa.Text),
    sa.Column("database", sa.Text),
    sa.Column("statement", sa.Text),
    sa.Column("statement_bytes", sa.BigInteger),
    sa.Column("statement_sha256", sa.Text),
    sa.Column("parameters", sa.BigInteger),
    sa.Column("operation", sa.Text),
    sa.Column("target", sa.Text),
    sa.Column("action", sa.Text),
    sa.Column("rule", sa.Text),
    sa.Column("reason", sa.Text),
    sa.Column("sqlstate", sa.Text),
    sa.Column("outcome", sa.Text),
    sa.Column("rows", sa.BigInteger),
    sa.Column("duration_us", sa.BigInteger),
    sa.Column("prev_hash", sa.Text, nullable=False),
    sa.Column("hash", sa.Text, nullable=False),
    sa.UniqueConstraint("writer", "sequence", name="sqlwall_audit_chain"),
)

#: Where each chain ends, moved in the same transaction as the rows: shows a cut tail to whoever has no outside copy.
HEADS: Final = sa.Table(
    "sqlwall_audit_heads",
    METADATA,
    sa.Column("writer", sa.Text, primary_key=True),
    sa.Column("sequence", sa.BigInteger, nullable=False),
    sa.Column("hash", sa.Text, nullable=False),
)

#: Snapshots that are kept, one blob each. `relations` and `undoes` are JSON lists; `digest` is the SHA-256 of the
#: blob's trailer, so that another blob cannot take its place. A trigger keeps rows whose `locked_until` is to come.
SNAPSHOTS: Final = sa.Table(
    "sqlwall_snapshots",
    METADATA,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("created", sa.Text, nullable=False),
    sa.Column("agent", sa.Text, nullable=False),
    sa.Column("session", sa.Text, nullable=False),
    sa.Column("database", sa.Text, nullable=False),
    sa.Column("database_oid", sa.BigInteger, nullable=False),
    sa.Column("system", sa.Text, nullable=False),
    sa.Column("xid", sa.Text, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("rows", sa.BigInteger, nullable=False),
    sa.Column("size", sa.BigInteger, nullable=False),
    sa.Column("relations", sa.Text, nullable=False),
    sa.Column("statement", sa.Text, nullable=False),
    sa.Column("digest", sa.Text, nullable=False),
    sa.Column("undoes", sa.Text, nullable=False),
    sa.Column("undone_by", sa.Text),
    sa.Column("locked_until", sa.Text, nullable=False),
    sa.Index("sqlwall_snapshots_by_agent", "agent", "created"),
    sa.Index("sqlwall_snapshots_by_state", "state"),
)

#: Values that belong to this store as a whole, made once when it is created.
SETTINGS: Final = sa.Table(
    "sqlwall_settings",
    METADATA,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("value", sa.Text, nullable=False),
)

#: Where alembic notes the revision; a name of its own, since the database may be shared.
REVISION_TABLE: Final = "sqlwall_revision"

#: The setting that makes up salts for names that are no agent's, so that they answer like any other (`scram.py`).
MOCK_SEED: Final = "mock_authentication_seed"
