"""``sqlwall serve``: the wall, until a signal ends it."""

from __future__ import annotations

from functools import partial
from typing import Annotated

import typer

from sqlwall.cli.options import ConfigFile, RulesetOption, Store, configuration
from sqlwall.cli.output import Exit, fail, reported
from sqlwall.cli.rulesets import find_ruleset
from sqlwall.config import Config
from sqlwall.console.app import Served, create_app, serve_app
from sqlwall.errors import ConfigError
from sqlwall.proxy.supervisor import Supervisor, run
from sqlwall.proxy.upstream import UpstreamSettings
from sqlwall.rules.loader import load
from sqlwall.store.database import open_store


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
    metrics: Annotated[str | None, typer.Option(help="address of /metrics and /readyz, HOST:PORT")] = None,
    workers: Annotated[int | None, typer.Option(help="worker processes; 0 is one per core")] = None,
) -> None:
    """Serve agents until SIGTERM or Ctrl-C. SIGHUP reads configuration and rulesets anew."""
    flags: dict[str, object] = {"upstream": upstream, "ruleset": ruleset, "store": store, "workers": workers}
    flags |= address_flags("listen", listen) | address_flags("metrics", metrics)
    loader = partial(configuration, config, flags)
    found = loader()
    check(found)
    try:
        run(found, loader, find_ruleset, start_console)
    except OSError as error:
        raise fail(_address_in_use(found, error), Exit.FAILURE) from None


def address_flags(section: str, address: str | None) -> dict[str, object]:
    """``HOST:PORT`` as two flags."""
    if address is None:
        return {}
    host, separator, port = address.rpartition(":")
    if not separator or not port.isdecimal():
        raise ConfigError(f"--{section} {address}: write HOST:PORT, such as 127.0.0.1:6543")
    return {f"{section}.host": host.strip("[]"), f"{section}.port": port}


def check(config: Config) -> None:
    """What would stop every worker is said once, before one is started."""
    UpstreamSettings.of(config.upstream)
    load(*find_ruleset(config.ruleset.path))
    open_store(config.store.url).dispose()


async def start_console(supervisor: Supervisor) -> Served:
    """The console over a supervisor."""
    app = create_app(supervisor.metrics, supervisor.problems)
    return await serve_app(app, supervisor.config.metrics.host, supervisor.config.metrics.port)


def _address_in_use(config: Config, error: OSError) -> str:
    reason = error.strerror or str(error)
    return (
        f"cannot listen on {config.listen.host}:{config.listen.port} or {config.metrics.host}:{config.metrics.port}: "
        f"{reason}. Choose others with --listen and --metrics."
    )
