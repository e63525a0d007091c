"""Agents come, change their password and go; their passwords are nowhere."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy import Engine

from sqlwall.errors import ConfigError, StoreError
from sqlwall.store.agents import add_agent, find, list_agents, revoke, rotate
from sqlwall.store.database import describe, reading, writing
from sqlwall.store.schema import AGENTS
from sqlwall.store.scram import Verifier


def knows(engine: Engine, name: str, password: str) -> bool:
    """Whether the stored verifier is that of the password."""
    agent = find(engine, name)
    assert agent is not None
    verifier = agent.scram()
    return verifier == Verifier.of_password(password, salt=verifier.salt, iterations=verifier.iterations)


def test_an_agent_is_found_as_it_was_added(engine: Engine) -> None:
    password = add_agent(engine, "ada", ruleset="read-only", connection_limit=3, note="für Ada")
    agent = find(engine, "ada")
    assert agent is not None
    assert (agent.name, agent.ruleset, agent.connection_limit, agent.note) == (
        "ada",
        "read-only",
        3,
        "für Ada",
    )
    assert agent.is_active
    assert (agent.rotated_at, agent.revoked_at) == (None, None)
    assert knows(engine, "ada", password)
    assert not knows(engine, "ada", password + "x")
    assert agent.verifier not in repr(agent)


def test_the_password_is_nowhere(file_engine: Engine) -> None:
    password = add_agent(file_engine, "ada")
    rotated = rotate(file_engine, "ada")
    path = Path(describe(file_engine))
    stored = b"".join(file.read_bytes() for file in path.parent.glob(f"{path.name}*"))
    assert b"SCRAM-SHA-256$4096:" in stored
    for secret in (password, rotated):
        assert len(secret) == 32
        assert secret.encode() not in stored


def test_defaults_are_the_walls(engine: Engine) -> None:
    add_agent(engine, "ada")
    agent = find(engine, "ada")
    assert agent is not None
    assert (agent.ruleset, agent.connection_limit, agent.note) == (None, None, "")


def test_nobody_is_found(engine: Engine) -> None:
    add_agent(engine, "ada")
    for name in ("bob", "", "ADA", "ada ", "ada\0", "a%", "a" * 64, "\ud800", "' OR 1=1 --"):
        assert find(engine, name) is None


@pytest.mark.parametrize("name", ["", "Ada", "a b", "a\n", "ada\n", "é", "a" * 64, 'a"b', "a.b", "a/b"])
def test_a_bad_name_is_refused(file_engine: Engine, name: str) -> None:
    with pytest.raises(ConfigError, match="1 to 63 of a-z, 0-9, _ and -"):
        add_agent(file_engine, name)
    assert list_agents(file_engine) == ()


@pytest.mark.parametrize("limit", [-1, 2**31])
def test_a_bad_limit_is_refused(file_engine: Engine, limit: int) -> None:
    with pytest.raises(ConfigError, match="connection limit"):
        add_agent(file_engine, "ada", connection_limit=limit)


@pytest.mark.parametrize("limit", [0, 2**31 - 1])
def test_a_limit_at_the_bound_is_kept(file_engine: Engine, limit: int) -> None:
    add_agent(file_engine, "ada", connection_limit=limit)
    agent = find(file_engine, "ada")
    assert agent is not None
    assert agent.connection_limit == limit


def test_a_name_in_use_is_refused_and_its_password_stays(engine: Engine) -> None:
    password = add_agent(engine, "ada")
    with pytest.raises(
        ConfigError, match="agent ada exists; `sqlwall agent rotate ada` gives it a new password"
    ):
        add_agent(engine, "ada")
    assert knows(engine, "ada", password)


def test_rotating_ends_the_old_password(engine: Engine) -> None:
    old = add_agent(engine, "ada", note="kept")
    new = rotate(engine, "ada")
    assert knows(engine, "ada", new)
    assert not knows(engine, "ada", old)
    agent = find(engine, "ada")
    assert agent is not None
    assert agent.rotated_at is not None
    assert agent.note == "kept"


def test_a_revoked_agent_stays_on_the_list_and_cannot_be_rotated(engine: Engine) -> None:
    add_agent(engine, "ada")
    add_agent(engine, "bob")
    revoke(engine, "ada")
    agent = find(engine, "ada")
    assert agent is not None
    assert not agent.is_active
    assert [(agent.name, agent.is_active) for agent in list_agents(engine)] == [("ada", False), ("bob", True)]
    with pytest.raises(ConfigError, match="agent ada is revoked; `sqlwall agent add ada` starts it afresh"):
        rotate(engine, "ada")
    with pytest.raises(ConfigError, match="is revoked"):
        revoke(engine, "ada")


def test_a_revoked_name_starts_afresh(engine: Engine) -> None:
    old = add_agent(engine, "ada", ruleset="read-only", connection_limit=1, note="old")
    revoke(engine, "ada")
    new = add_agent(engine, "ada")
    agent = find(engine, "ada")
    assert agent is not None
    assert agent.is_active
    assert (agent.ruleset, agent.connection_limit, agent.note) == (None, None, "")
    assert knows(engine, "ada", new)
    assert not knows(engine, "ada", old)


@pytest.mark.parametrize("act", [rotate, revoke])
def test_who_is_not_there_cannot_be_changed(engine: Engine, act: object) -> None:
    assert callable(act)
    with pytest.raises(ConfigError, match="there is no agent 'ada'; `sqlwall agent list` shows them"):
        act(engine, "ada")


def test_a_damaged_verifier_is_said_and_not_shown(engine: Engine) -> None:
    add_agent(engine, "ada")
    with writing(engine) as connection:
        connection.execute(sa.update(AGENTS).values(verifier="SCRAM-SHA-256$hunter2"))
    agent = find(engine, "ada")
    assert agent is not None
    with pytest.raises(
        StoreError, match="a stored SCRAM verifier is damaged; rotate the agent's password"
    ) as caught:
        agent.scram()
    assert "hunter2" not in str(caught.value)


def test_of_several_that_add_a_name_one_does(engine: Engine) -> None:
    start = threading.Barrier(4)
    passwords: list[str] = []
    refusals: list[ConfigError] = []

    def add() -> None:
        start.wait(10)
        try:
            passwords.append(add_agent(engine, "ada"))
        except ConfigError as error:
            refusals.append(error)

    threads = [threading.Thread(target=add) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(passwords), len(refusals)) == (1, 3)
    assert knows(engine, "ada", passwords[0])
    with reading(engine) as connection:
        assert connection.scalar(sa.select(sa.func.count()).select_from(AGENTS)) == 1
