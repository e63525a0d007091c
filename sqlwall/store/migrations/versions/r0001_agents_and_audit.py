"""Agents, the audit chain, and the triggers that keep it append-only."""

from __future__ import annotations

import secrets

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_SQLITE_GUARDS = (
    """CREATE TRIGGER sqlwall_audit_no_update BEFORE UPDATE ON sqlwall_audit
       BEGIN SELECT RAISE(ABORT, 'the audit record is append-only'); END""",
    """CREATE TRIGGER sqlwall_audit_no_delete BEFORE DELETE ON sqlwall_audit
       BEGIN SELECT RAISE(ABORT, 'the audit record is append-only'); END""",
)
_POSTGRESQL_GUARDS = (
    """CREATE FUNCTION sqlwall_audit_append_only() RETURNS trigger LANGUAGE plpgsql AS
       $$BEGIN RAISE EXCEPTION 'the audit record is append-only'; END$$""",
    """CREATE TRIGGER sqlwall_audit_guard BEFORE UPDATE OR DELETE OR TRUNCATE ON sqlwall_audit
       FOR EACH STATEMENT EXECUTE FUNCTION sqlwall_audit_append_only()""",
)


def upgrade() -> None:
    """Create the tables; a mistake in a shell is stopped by the triggers, a determined hand by the chain."""
    _create_agents()
    _create_audit()
    dialect = op.get_bind().dialect.name
    for guard in _SQLITE_GUARDS if dialect == "sqlite" else _POSTGRESQL_GUARDS:
        op.execute(guard)


def _create_agents() -> None:
    op.create_table(
        "sqlwall_agents",
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("verifier", sa.Text, nullable=False),
        sa.Column("ruleset", sa.Text),
        sa.Column("connection_limit", sa.Integer),
        sa.Column("note", sa.Text, nullable=False),
        sa.Column("created_at", sa.Text, nullable=False),
        sa.Column("rotated_at", sa.Text),
        sa.Column("revoked_at", sa.Text),
    )
    settings = op.create_table(
        "sqlwall_settings",
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("value", sa.Text, nullable=False),
    )
    op.bulk_insert(settings, [{"name": "mock_authentication_seed", "value": secrets.token_hex(32)}])


def _create_audit() -> None:
    op.create_table(
        "sqlwall_audit",
        sa.Column("position", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), primary_key=True),
        sa.Column("writer", sa.Text, nullable=False),
        sa.Column("sequence", sa.BigInteger, nullable=False),
        sa.Column("event", sa.Text, nullable=False),
        sa.Column("time", sa.Text, nullable=False),
        sa.Column("kind", sa.Text, nullable=False),
        *(sa.Column(name, sa.Text) for name in ("agent", "session", "client", "database", "statement")),
        sa.Column("statement_bytes", sa.BigInteger),
        sa.Column("statement_sha256", sa.Text),
        sa.Column("parameters", sa.BigInteger),
        *(sa.Column(name, sa.Text) for name in ("operation", "target", "action", "rule", "reason")),
        *(sa.Column(name, sa.Text) for name in ("sqlstate", "outcome")),
        sa.Column("rows", sa.BigInteger),
        sa.Column("duration_us", sa.BigInteger),
        sa.Column("prev_hash", sa.Text, nullable=False),
        sa.Column("hash", sa.Text, nullable=False),
        sa.UniqueConstraint("writer", "sequence", name="sqlwall_audit_chain"),
    )
    op.create_table(
        "sqlwall_audit_heads",
        sa.Column("writer", sa.Text, primary_key=True),
        sa.Column("sequence", sa.BigInteger, nullable=False),
        sa.Column("hash", sa.Text, nullable=False),
    )


def downgrade() -> None:
    """There is nothing older to return to."""
    raise NotImplementedError("the first revision cannot be undone")
