"""What the supervisor and a worker process have in common: the line between them, the port, the log, and the entry.

It imports next to nothing, so that the supervisor can start its workers before it has loaded what it needs itself.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from multiprocessing.connection import Connection
from typing import Any

from sqlwall.config import Config
from sqlwall.proxy import descriptors

logger = logging.getLogger(__name__)

#: Where a ruleset's text is found by its name or path.
FindRuleset = Callable[[str], tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Message:
    """What goes over the line, in both directions: a word and its values."""

    word: str
    value: Any = None


def listen(config: Config) -> socket.socket:
    """A socket on the shared port. Raises OSError with the address in its text."""
    host, port = config.listen.host, config.listen.port
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    listening = socket.socket(family, kind, protocol)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listening.setblocking(False)
        listening.bind(address)
    except BaseException:
        listening.close()
        raise
    return listening


def run_worker(config: Config, find_ruleset: FindRuleset, line: Connection, level: str) -> None:
    """The entry of a worker process: load everything, wait for the supervisor's word, serve."""
    configure_logging(level, config.log.format)
    missing = descriptors.shortage(
        config, config.workers.count or os.cpu_count() or 1, descriptors.raise_limit()
    )
    if missing:
        logger.warning(
            "%s; raise the hard limit (ulimit -Hn, LimitNOFILE) or lower limits.max_connections", missing
        )
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the supervisor tells what they mean
    process = import_module("sqlwall.proxy.process")
    try:
        word = line.recv().word
    except (EOFError, OSError):
        return
    if word != "go":
        return  # the supervisor has found something that no worker could serve with
    process.serve(config, find_ruleset, line)


def configure_logging(level: str, form: str) -> None:
    """Log to standard error, one line a record, as text or as JSON."""
    handler = logging.StreamHandler()
    text = "%(asctime)s %(process)d %(levelname)s %(name)s: %(message)s"
    if form == "json":
        text = (
            '{"time":"%(asctime)s","pid":%(process)d,"level":"%(levelname)s","logger":"%(name)s",'
            '"message":%(message)r}'
        )
    handler.setFormatter(logging.Formatter(text))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    logging.getLogger("alembic").setLevel("WARNING")
