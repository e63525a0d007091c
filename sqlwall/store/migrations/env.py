"""What alembic runs to apply revisions: on the connection, and in the transaction, that `upgrade` was given."""

from __future__ import annotations

from alembic import context

from sqlwall.store.schema import METADATA, REVISION_TABLE

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=METADATA,
    version_table=REVISION_TABLE,
)
with context.begin_transaction():
    context.run_migrations()
