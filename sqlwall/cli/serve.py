"""``sqlwall serve``: the wall, until a signal ends it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Annotated, Final

import typer
from psycopg import ProgrammingError
from psycopg.conninfo import conninfo_to_dict

from sqlwall.cli.options import ConfigFile, RulesetOption, Store, configuration
from sqlwall.cli.output import reported, say
from sqlwall.cli.rulesets import find_ruleset
from sqlwall.config import Config
from sqlwall.errors import ConfigError, SqlwallError, UpstreamError
from sqlwall.proxy.supervisor import Supervisor, run

if TYPE_CHECKING:
    from sqlwall.console.app import Served

# What serving needs is loaded while the workers load theirs: it is their time that a start takes.
# ruff: noqa: PLC0415

#: Seconds for which an answer holds: whoever asks for /readyz does not make the wall log in each time.
UPSTREAM_INTERVAL: Final = 5.0


@reported
def serve(
    upstream: Annotated[
        str | None,
        typer.Option(help="the server, postgresql://USER@HOST:PORT/DBNAME; better SQLWALL_UPSTREAM"),
    ] = None,
    config: ConfigFile = None,
    ruleset: RulesetOption = None,
    store: Store = None,
    listen: Annotated[str | None, typer.Option(help="address for agents, HOST:PORT")] = None,
    console: Annotated[
        str | None,
        typer.Option("--console", "--metrics", help="address of /metrics, /healthz and /readyz, HOST:PORT"),
    ] = None,
    workers: Annotated[int | None, typer.Option(help="worker processes; 0 is one per core")] = None,
) -> None:
    """Serve agents until SIGTERM or Ctrl-C. SIGHUP reads configuration and rulesets anew.

    A server that does not answer is no reason not to start: agents are told, and /readyz says so until it does.
    """
    flags: dict[str, object] = {"upstream": upstream, "ruleset": ruleset, "store": store, "workers": workers}
    flags |= address_flags("listen", "listen", listen) | address_flags("console", "metrics", console)
    loader = partial(configuration, config, flags)
    found = loader()
    if upstream is not None and has_password(upstream):
        say(
            "sqlwall: warning: everyone on this machine can read the password in --upstream (ps); "
            "use SQLWALL_UPSTREAM or upstream.password_file",
            err=True,
        )
    try:
        run(found, loader, find_ruleset, start_console, check)
    except OSError as error:
        address = f"{found.listen.host}:{found.listen.port}"
        raise _address_error("listen", address, error) from None


def address_flags(flag: str, section: str, address: str | None) -> dict[str, object]:
    """``HOST:PORT`` as two flags of a section."""
    if address is None:
        return {}
    host, separator, port = address.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    if not separator or not host or not port.isdecimal() or (":" in host and not bracketed):
        raise ConfigError(f"--{flag} {address}: write HOST:PORT, such as 127.0.0.1:6543 or [::1]:6543")
    return {f"{section}.host": host[1:-1] if bracketed else host, f"{section}.port": port}


def has_password(dsn: str) -> bool:
    """Whether a DSN that others can see holds a password."""
    try:
        return bool(conninfo_to_dict(dsn).get("password"))
    except (ProgrammingError, UnicodeError, ValueError):
        return False  # whoever reads the configuration says what is wrong with it


def check(config: Config) -> None:
    """What would stop every worker is said once."""
    from sqlwall.proxy.upstream import UpstreamSettings
    from sqlwall.rules.loader import load
    from sqlwall.store.database import open_store

    UpstreamSettings.of(config.upstream)
    load(*find_ruleset(config.ruleset.path))
    open_store(config.store.url).dispose()


async def start_console(supervisor: Supervisor) -> Served:
    """The console over a supervisor. Raises SqlwallError if its address cannot be had."""
    from sqlwall.console.app import create_app, serve_app

    own = supervisor.config.metrics
    probe = UpstreamProbe(lambda: supervisor.config)

    async def problems() -> list[str]:
        found, unreachable = await asyncio.gather(supervisor.problems(), probe.problems())
        return [*found, *unreachable]

    app = create_app(supervisor.metrics, problems, own.host)
    try:
        return await serve_app(app, own.host, own.port)
    except OSError as error:
        raise _address_error("console", f"{own.host}:{own.port}", error) from None


class UpstreamProbe:
    """Whether the server lets the wall in, asked as sessions ask, at most every `interval` seconds.

    Says no more than that the server does not answer or refuses: who may read /readyz need not know its address.
    """

    def __init__(self, read_config: Callable[[], Config], interval: float = UPSTREAM_INTERVAL) -> None:
        self._read_config = read_config
        self._interval = interval
        self._lock = asyncio.Lock()
        self._asked_at = -interval
        self._found: list[str] = []

    async def problems(self) -> list[str]:
        """One problem, or none."""
        async with self._lock:
            if time.monotonic() - self._asked_at >= self._interval:
                self._found = await self._ask()
                self._asked_at = time.monotonic()
            return self._found

    async def _ask(self) -> list[str]:
        from sqlwall.proxy.upstream import UpstreamSettings, connect_upstream
        from sqlwall.wire.frontend import terminate

        config = self._read_config()
        try:
            settings = UpstreamSettings.of(config.upstream, config.timeouts.upstream_connect)
            upstream = await connect_upstream(settings, {"database": config.upstream.dbname or "postgres"})
        except UpstreamError as error:
            what = _KINDS.get(error.sqlstate[:2], "does not let the wall in")
            return [f"upstream: {what} ({error.sqlstate})"]
        except (SqlwallError, OSError):
            return ["upstream: does not answer"]
        upstream.pipe.write(terminate())
        upstream.pipe.close()
        return []


#: What the class of a SQLSTATE says of the server.
_KINDS: Final = {
    "08": "does not answer",
    "28": "refuses the wall's login",
    "3D": "does not have the database",
    "53": "has no room for more sessions",
    "57": "is starting or stopping",
}


def _address_error(flag: str, address: str, error: OSError) -> SqlwallError:
    reason = error.strerror or str(error)
    return SqlwallError(f"cannot listen on {address}: {reason}; choose another with --{flag} HOST:PORT")
