"""The catalog that was told everything it knows, and what a schema's name says by itself."""

from __future__ import annotations

import pytest

from sqlwall.rules.context import (
    Home,
    RelationKind,
    ResolvedRelation,
    StaticCatalog,
    kind_of_schema,
    ordinary_schema,
)
from sqlwall.sql.statement import FunctionName, Relation


@pytest.mark.parametrize(
    ("schema", "kind"),
    [
        ("pg_catalog", RelationKind.CATALOG),
        ("information_schema", RelationKind.CATALOG),
        ("pg_toast", RelationKind.CATALOG),
        ("pg_temp", RelationKind.TEMP),
        ("pg_temp_12", RelationKind.TEMP),
        ("PG_CATALOG", RelationKind.UNKNOWN),
        ("public", RelationKind.UNKNOWN),
    ],
)
def test_a_schema_alone_says_what_it_holds(schema: str, kind: RelationKind) -> None:
    assert kind_of_schema(schema) is kind


def test_the_ordinary_schema_is_the_first_that_is_not_postgresqls() -> None:
    assert ordinary_schema(("$user", "pg_catalog", "shop", "public")) == "shop"
    assert ordinary_schema(()) == "public"


def test_a_told_relation_is_found_along_the_search_path() -> None:
    catalog = StaticCatalog(("a", "b"), relations={"b.t": RelationKind.VIEW})
    assert catalog.resolve(Relation(None, "t")) == ResolvedRelation("b", "t", RelationKind.VIEW)


def test_untold_names_resolve_as_on_a_fresh_database() -> None:
    catalog = StaticCatalog()
    assert catalog.resolve(Relation(None, "pg_class")) == ResolvedRelation(
        "pg_catalog", "pg_class", RelationKind.CATALOG
    )
    assert catalog.resolve(Relation(None, "t")) == ResolvedRelation("public", "t", RelationKind.UNKNOWN)
    assert catalog.resolve(Relation("PG_CATALOG", "pg_class")) == ResolvedRelation(
        "PG_CATALOG", "pg_class", RelationKind.UNKNOWN
    )


def test_an_extensions_function_has_a_home_that_names_it() -> None:
    catalog = StaticCatalog(extensions={"similarity": "pg_trgm"})
    assert Home("public", "pg_trgm") in catalog.homes(FunctionName(None, "similarity"))


def test_only_types_can_be_inert() -> None:
    catalog = StaticCatalog(inert=frozenset({"mood"}))
    assert catalog.homes(FunctionName(None, "mood", "type"))[0].is_inert
    assert not catalog.homes(FunctionName(None, "mood", "function"))[0].is_inert


def test_an_overloaded_name_has_two_homes() -> None:
    catalog = StaticCatalog(overloads=frozenset({"lower"}))
    schemas = [home.schema for home in catalog.homes(FunctionName(None, "lower"))]
    assert schemas == ["pg_catalog", "public"]
    assert catalog.column_is_function("lower")
