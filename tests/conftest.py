"""Fixtures that every room may use; what they do is in the modules imported here."""

from __future__ import annotations

from tests.postgres import database, database_template, postgres, pytest_runtest_makereport

__all__ = ["database", "database_template", "postgres", "pytest_runtest_makereport"]
