"""SQLAlchemy and Django, under agent-safe with an observer: what they mapped is in the snapshots, and they see all there is."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import django
import pytest
import sqlalchemy as sa
from django.conf import settings
from django.db import IntegrityError, connections, models, transaction
from sqlalchemy import orm

from tests.e2e.tools import covered, modelled
from tests.e2e.wall import APP, APP_PASSWORD
from tests.promises.guarded import Guarded, guarded, observer

__all__ = ["guarded", "modelled", "observer"]

# -- SQLAlchemy


class Base(orm.DeclarativeBase):
    """Tables of the shop, as a mapper sees them."""


class Customer(Base):
    """Who orders."""

    __tablename__ = "customers"
    id: orm.Mapped[int] = orm.mapped_column(primary_key=True)
    name: orm.Mapped[str]
    orders: orm.Mapped[list[Order]] = orm.relationship(back_populates="of")


class Order(Base):
    """What is ordered."""

    __tablename__ = "orders"
    id: orm.Mapped[int] = orm.mapped_column(primary_key=True)
    customer: orm.Mapped[int] = orm.mapped_column(sa.ForeignKey("customers.id"))
    note: orm.Mapped[str]
    of: orm.Mapped[Customer] = orm.relationship(back_populates="orders")


class Note(Base):
    """A row whose key the server draws."""

    __tablename__ = "notes"
    id: orm.Mapped[int] = orm.mapped_column(primary_key=True)
    body: orm.Mapped[str]


@contextmanager
def engine(guarded: Guarded, driver: str, **options: Any) -> Iterator[sa.Engine]:
    """An engine through the wall."""
    url = guarded.wall.dsn().replace("postgresql://", f"postgresql+{driver}://")
    made = sa.create_engine(url, **options)
    try:
        yield made
    finally:
        made.dispose()


DRIVERS = ["psycopg", "psycopg2", "pg8000"]


@pytest.mark.parametrize("driver", DRIVERS)
def test_sqlalchemy_maps_objects(guarded: Guarded, driver: str) -> None:
    with covered(guarded, 3), engine(guarded, driver) as made:
        with orm.Session(made) as session, session.begin():
            session.add(
                Customer(id=50, name="new", orders=[Order(id=500, note="a"), Order(id=501, note="b")])
            )
            session.add_all([Note(body=f"note {number}") for number in range(20)])
            session.flush()
            with pytest.raises(sa.exc.IntegrityError), session.begin_nested():
                session.add(Order(id=1, customer=1, note="twice"))
                session.flush()
            with session.begin_nested():
                session.get_one(Order, 2).note = "nested"
        with orm.Session(made) as session:
            found = session.scalars(
                sa.select(Customer).options(orm.selectinload(Customer.orders)).where(Customer.id == 50)
            ).one()
            assert [order.note for order in found.orders] == ["a", "b"]
            order = session.scalars(sa.select(Order).where(Order.id == 3).with_for_update()).one()
            order.note = "locked"
            session.delete(session.get_one(Order, 501))
            session.commit()
            session.get_one(Order, 4).note = "never"
            session.flush()
            session.rollback()
            session.execute(sa.update(Order).where(Order.id.in_([5, 6])).values(note="bulk"))
            session.commit()
            assert session.scalar(sa.select(sa.func.count()).select_from(Note)) == 20


@pytest.mark.parametrize("driver", DRIVERS)
@pytest.mark.parametrize("level", ["SERIALIZABLE", "REPEATABLE READ", "READ COMMITTED", "AUTOCOMMIT"])
def test_sqlalchemy_sets_isolation_levels(guarded: Guarded, driver: str, level: str) -> None:
    shown = "read committed" if level == "AUTOCOMMIT" else level.lower()
    with covered(guarded, 2), engine(guarded, driver, isolation_level=level, pool_size=1) as made:
        for number in (1, 2):
            with made.connect() as client:
                assert client.scalar(sa.text("SHOW transaction_isolation")) == shown
                client.execute(sa.update(Order).where(Order.id == number).values(note=level))
                client.commit()
        with made.connect().execution_options(isolation_level="SERIALIZABLE") as client:
            assert client.get_isolation_level() == "SERIALIZABLE"
            client.execute(sa.update(Order).where(Order.id == 3).values(note="rolled back"))


@pytest.mark.filterwarnings("ignore:Did not recognize type 'place'")
@pytest.mark.parametrize("driver", DRIVERS)
def test_sqlalchemy_inspects_the_database(modelled: Guarded, driver: str) -> None:
    with engine(modelled, driver) as made:
        seen = look_around(made)
    direct = modelled.wall.database.dsn(APP, APP_PASSWORD)
    plain = sa.create_engine(direct.replace("postgresql://", f"postgresql+{driver}://"))
    try:
        assert seen == look_around(plain)
    finally:
        plain.dispose()
    assert "people" in seen and "Their Pets" in seen


def look_around(made: sa.Engine) -> str:
    """All that an inspector can find out, as text."""
    inspector = sa.inspect(made)
    found: list[Any] = [
        inspector.get_schema_names(),
        inspector.get_table_names(),
        inspector.get_view_names(),
        inspector.get_materialized_view_names(),
        inspector.get_sequence_names(),
        inspector.get_view_definition("happy_people"),
        inspector.get_enums(),
        inspector.get_domains(),
    ]
    for asked in (
        inspector.get_multi_columns, inspector.get_multi_pk_constraint, inspector.get_multi_foreign_keys,
        inspector.get_multi_indexes, inspector.get_multi_unique_constraints, inspector.get_multi_check_constraints,
        inspector.get_multi_table_comment, inspector.get_multi_table_options,
    ):  # fmt: skip
        found.append(sorted(asked(kind=sa.engine.reflection.ObjectKind.ANY).items(), key=str))
    metadata = sa.MetaData()
    metadata.reflect(made, views=True)
    found.append([repr(table) for table in metadata.sorted_tables])
    return re.sub(" at 0x[0-9a-f]+", "", "\n".join(map(repr, found)))


# -- Django


@pytest.fixture
def django_connection(modelled: Guarded) -> Iterator[Any]:
    """A connection of Django's through the wall."""
    if not settings.configured:
        settings.configure(DATABASES={}, USE_TZ=True)
        django.setup()
    wall = modelled.wall
    host, port = wall.address
    connections.settings["default"] = connections.configure_settings(
        {"default": {"ENGINE": "django.db.backends.postgresql", "NAME": wall.database.name, "USER": "bot",
                     "PASSWORD": wall.password, "HOST": host, "PORT": port}}
    )["default"]  # fmt: skip
    connection = connections.create_connection("default")
    connections["default"] = connection
    yield connection
    connection.close()


def test_django_maps_objects(modelled: Guarded, django_connection: Any) -> None:
    class Person(models.Model):
        name = models.TextField(unique=True)
        share = models.DecimalField(max_digits=5, decimal_places=2, default=1)
        tags = models.JSONField(default=None, db_column="extra")

        class Meta:
            app_label = "shop"
            db_table = "people"
            managed = False

    with covered(modelled, 5):
        people = Person.objects
        made = people.create(name="Cyd", tags={"a": [1]})
        with transaction.atomic():
            people.bulk_create([Person(name=f"bulk {number}", tags={}) for number in range(30)])
            with pytest.raises(IntegrityError), transaction.atomic():
                people.create(name="Cyd", tags={})
            with transaction.atomic():
                people.filter(name="bulk 1").update(share=models.F("share") + 1)
        with transaction.atomic():
            locked = people.select_for_update().get(pk=made.pk)
            locked.share = 5
            locked.save()
        assert people.update_or_create(name="Dan", defaults={"tags": {}})[1]
        assert not people.get_or_create(name="Dan")[1]
        assert len(list(people.filter(name__startswith="bulk").iterator(chunk_size=7))) == 30
        assert people.filter(tags__a__0=1).aggregate(total=models.Sum("share"))["total"] == 5
        made.delete()
    with django_connection.cursor() as cursor:
        introspection = django_connection.introspection
        assert "people" in {table.name for table in introspection.get_table_list(cursor)}
        assert "people_born" in introspection.get_constraints(cursor, "people")
        assert introspection.get_relations(cursor, "Their Pets")["owner"][1] == "people"
        assert introspection.get_sequences(cursor, "people")
        assert [column.name for column in introspection.get_table_description(cursor, "people")][:2] == [
            "id",
            "name",
        ]
