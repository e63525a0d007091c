"""Facts as short lines, so that a case reads as what the statement does."""

from __future__ import annotations

from sqlwall.sql.statement import Bounded, Effect, Statement


def effect_line(effect: Effect) -> str:
    """As `update app.t (a, b) no_where`, `set "search_path" = x`."""
    line = effect.operation.value
    if effect.relation is not None:
        line += f" {effect.relation}"
    if effect.subject is not None:
        line += f' "{effect.subject}"'
    if effect.value is not None:
        line += f" = {effect.value}"
    if effect.columns:
        line += f" ({', '.join(effect.columns)})"
    if effect.bounded is not Bounded.BOUNDED:
        line += f" {effect.bounded.value}"
    return line


def effect_lines(statement: Statement) -> list[str]:
    """One line for each effect."""
    return [effect_line(effect) for effect in statement.effects]
