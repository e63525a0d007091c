"""The promises are tested against a whole wall."""

from __future__ import annotations

from tests.e2e.conftest import database_template, open_wall, wall, writing_wall

__all__ = ["database_template", "open_wall", "wall", "writing_wall"]
