"""Django: those of its tests that look closely at the database, on psycopg 3. Needs a server with ICU."""

from __future__ import annotations

from pathlib import Path

from tests.clients.suite import Outcome, Suite, Target
from tests.clients.tools import (
    SUITE_TIMEOUT,
    SuiteError,
    connect,
    drop_databases,
    environment,
    fetch_sdist,
    make_venv,
    read_unittest,
    run_logged,
    venv_python,
)

VERSION = "5.2.19"

LABELS = (
    "backends", "transactions", "transaction_hooks", "queries", "introspection", "schema", "inspectdb", "indexes",
    "constraints", "select_for_update", "bulk_create", "aggregation", "aggregation_regress", "annotations",
    "db_functions", "expressions", "expressions_case", "expressions_window", "lookup", "model_fields", "migrations",
    "postgres_tests", "raw_query", "timezones", "async", "custom_columns", "datatypes", "datetimes", "delete",
    "distinct_on_fields", "fixtures", "get_or_create", "many_to_many", "multiple_database", "ordering",
    "prefetch_related", "save_delete_hooks", "serializers", "sessions_tests", "cache", "test_utils", "update", "basic",
    "composite_pk", "dbshell", "force_insert_update", "foreign_object", "m2m_through", "model_inheritance",
    "generic_relations", "or_lookups", "queryset_pickle", "select_related", "unmanaged_models", "validation",
)  # fmt: skip

SETTINGS = """
import os

def database(name):
    return {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": name,
        "USER": os.environ["PGUSER"],
        "PASSWORD": os.environ["PGPASSWORD"],
        "HOST": os.environ["PGHOST"],
        "PORT": os.environ["PGPORT"],
        "OPTIONS": OPTIONS,
    }

OPTIONS = {"server_side_binding": bool(os.environ.get("SERVER_SIDE_BINDING"))}
DATABASES = {"default": database("clients_django_default"), "other": database("clients_django_other")}
SECRET_KEY = "of no use"
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
DEFAULT_AUTO_FIELD = "django.db.models.AutoField"
USE_TZ = False
"""


def fetch(folder: Path) -> None:
    """The source, an environment, and settings."""
    source = fetch_sdist(folder, f"Django=={VERSION}")
    source.rename(folder / "source")
    (folder / "source" / "tests" / "clients_settings.py").write_text(SETTINGS)
    make_venv(
        folder, "-e", str(folder / "source"), "psycopg[binary]", "psycopg-pool", "jinja2", "PyYAML", "tblib", "Pillow",
        "sqlparse", "argon2-cffi", "bcrypt", "numpy", "docutils", "pytz", "tzdata",
    )  # fmt: skip


def run(target: Target, folder: Path, log: Path) -> Outcome:
    """The runner makes its own databases from these names, with ``test_`` before them."""
    with connect(target) as connection:
        if not connection.execute("SELECT 1 FROM pg_collation WHERE collname = 'sv-x-icu'").fetchone():
            raise SuiteError("needs a server with ICU collations; name one in SQLWALL_TEST_DSN")
    drop_databases(target, "test_clients_django_default", "test_clients_django_other")
    run_logged(
        [venv_python(folder), "runtests.py", "--settings=clients_settings", "--parallel=1", "--noinput", *LABELS],
        log, cwd=folder / "source" / "tests", env=environment(target), timeout=2 * SUITE_TIMEOUT,
    )  # fmt: skip
    return read_unittest(log)


SUITE = Suite("django", f"Django {VERSION} on psycopg 3: {len(LABELS)} of its test packages", fetch, run)
