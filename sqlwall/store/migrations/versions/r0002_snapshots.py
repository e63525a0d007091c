"""The index of snapshots, and the trigger that holds their retention lock."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_SQLITE_GUARDS = (
    """CREATE TRIGGER sqlwall_snapshots_locked_delete BEFORE DELETE ON sqlwall_snapshots
       WHEN OLD.locked_until > strftime('%Y-%m-%dT%H:%M:%fZ', 'now')
       BEGIN SELECT RAISE(ABORT, 'the snapshot is under a retention lock'); END""",
    """CREATE TRIGGER sqlwall_snapshots_locked_update BEFORE UPDATE ON sqlwall_snapshots
       WHEN NEW.locked_until < OLD.locked_until OR NEW.id <> OLD.id OR NEW.digest <> OLD.digest
       BEGIN SELECT RAISE(ABORT, 'the snapshot is under a retention lock'); END""",
    # INSERT OR REPLACE deletes without the trigger for deletes.
    """CREATE TRIGGER sqlwall_snapshots_no_replace BEFORE INSERT ON sqlwall_snapshots
       WHEN EXISTS (SELECT 1 FROM sqlwall_snapshots WHERE id = NEW.id)
       BEGIN SELECT RAISE(ABORT, 'the snapshot is there already'); END""",
)
_POSTGRESQL_GUARDS = (
    """CREATE FUNCTION sqlwall_snapshots_guard() RETURNS trigger LANGUAGE plpgsql AS $$
       BEGIN
         IF TG_OP = 'TRUNCATE' THEN
           RAISE EXCEPTION 'snapshots may be under a retention lock';
         END IF;
         IF TG_OP = 'DELETE' THEN
           IF OLD.locked_until > to_char(now() AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') THEN
             RAISE EXCEPTION 'the snapshot is under a retention lock';
           END IF;
           RETURN OLD;
         END IF;
         IF NEW.locked_until < OLD.locked_until OR NEW.id <> OLD.id OR NEW.digest <> OLD.digest THEN
           RAISE EXCEPTION 'the snapshot is under a retention lock';
         END IF;
         RETURN NEW;
       END $$""",
    """CREATE TRIGGER sqlwall_snapshots_guard BEFORE UPDATE OR DELETE ON sqlwall_snapshots
       FOR EACH ROW EXECUTE FUNCTION sqlwall_snapshots_guard()""",
    """CREATE TRIGGER sqlwall_snapshots_no_truncate BEFORE TRUNCATE ON sqlwall_snapshots
       FOR EACH STATEMENT EXECUTE FUNCTION sqlwall_snapshots_guard()""",
)


def upgrade() -> None:
    """Create the table and its guard."""
    op.create_table(
        "sqlwall_snapshots",
        sa.Column("id", sa.Text, primary_key=True),
        *(sa.Column(name, sa.Text, nullable=False) for name in ("created", "agent", "session", "database")),
        sa.Column("database_oid", sa.BigInteger, nullable=False),
        *(sa.Column(name, sa.Text, nullable=False) for name in ("system", "xid", "state")),
        sa.Column("rows", sa.BigInteger, nullable=False),
        sa.Column("size", sa.BigInteger, nullable=False),
        *(
            sa.Column(name, sa.Text, nullable=False)
            for name in ("relations", "statement", "digest", "undoes")
        ),
        sa.Column("undone_by", sa.Text),
        sa.Column("locked_until", sa.Text, nullable=False),
    )
    op.create_index("sqlwall_snapshots_by_agent", "sqlwall_snapshots", ["agent", "created"])
    op.create_index("sqlwall_snapshots_by_state", "sqlwall_snapshots", ["state"])
    dialect = op.get_bind().dialect.name
    for guard in _SQLITE_GUARDS if dialect == "sqlite" else _POSTGRESQL_GUARDS:
        op.execute(guard)


def downgrade() -> None:
    """Snapshots are not thrown away by a change of version."""
    raise NotImplementedError("a store with snapshots is not taken back")
