"""The configuration: three sources, one winner per key, every mistake at once and with its place, no secret shown."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sqlwall.config import Config, Secret, load_config, settings
from sqlwall.errors import ConfigError


def write(folder: Path, text: str) -> Path:
    path = folder / "sqlwall.yaml"
    path.write_text(text)
    return path


def problems(path: Path | None = None, env: dict[str, str] | None = None, **flags: object) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_config(path, env, {name.replace("__", "."): value for name, value in flags.items()})
    return [str(problem) for problem in caught.value.problems]


def test_nothing_given_is_the_defaults() -> None:
    config = load_config()
    assert config == Config()
    assert (config.listen.host, config.listen.port) == ("127.0.0.1", 6543)
    assert (config.metrics.host, config.metrics.port) == ("127.0.0.1", 9643)


def test_flags_beat_the_environment_which_beats_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, "listen:\n  port: 1\n  host: file\nlimits:\n  max_connections: 7\n")
    config = load_config(
        path,
        {"SQLWALL_LISTEN_PORT": "2", "SQLWALL_LISTEN_HOST": "env"},
        {"listen.port": 3, "listen.host": None},
    )
    assert (config.listen.port, config.listen.host, config.limits.max_connections) == (3, "env", 7)


def test_a_section_may_be_its_most_important_key(tmp_path: Path) -> None:
    path = write(tmp_path, "workers: 4\nruleset: read-only\nstore: wall.db\nupstream: postgresql://u@h/d\n")
    config = load_config(path, {"SQLWALL_WORKERS": "2"})
    assert config.workers.count == 2
    assert config.ruleset.path == "read-only"
    assert config.store.url == "sqlite:///wall.db"
    assert (config.upstream.user, config.upstream.host, config.upstream.dbname) == ("u", "h", "d")


@pytest.mark.parametrize(
    "dsn",
    [
        "postgresql://wall:p%40ss@db.example.org:7000/shop?sslmode=require&channel_binding=require&connect_timeout=3",
        "postgres://wall@db.example.org:7000/shop?password=p%40ss&sslmode=require&channel_binding=require"
        "&connect_timeout=3&application_name=x",
        "host=db.example.org port=7000 user=wall password='p@ss' dbname=shop sslmode=require "
        "channel_binding=require connect_timeout=3",
    ],
)
def test_a_dsn_is_read_as_libpq_reads_it(dsn: str) -> None:
    config = load_config(flags={"upstream": dsn})
    found = config.upstream
    assert (found.host, found.port, found.user, found.dbname) == ("db.example.org", 7000, "wall", "shop")
    assert found.password.reveal() == "p@ss"
    assert (found.sslmode, found.channel_binding) == ("require", "require")
    assert config.timeouts.upstream_connect == 3
    assert "p@ss" not in repr(config)
    assert "p%40ss" not in repr(config)


def test_keys_beside_a_dsn_win_and_a_later_dsn_beats_earlier_keys(tmp_path: Path) -> None:
    path = write(tmp_path, "upstream:\n  dsn: postgresql://a@one:1/x\n  user: b\n")
    assert load_config(path).upstream.user == "b"
    config = load_config(
        path, {"SQLWALL_UPSTREAM": "postgresql://c@two/y", "SQLWALL_UPSTREAM_PASSWORD": "env"}
    )
    assert (config.upstream.user, config.upstream.host, config.upstream.port) == ("c", "two", 1)
    assert config.upstream.password.reveal() == "env"


@pytest.mark.parametrize(
    "dsn",
    [
        "postgresql://wall:hunter2@[::1/shop",
        "postgresql://wall:hunter2@h/d?nonsense=hunter2",
        "hunter2",
        "host=h password=hunter2 hunter2=",
        "mysql://wall:hunter2@h/d",
        "postgresql://wall:hunter2@h:port/d",
        "postgresql://wall:hunter2@h1,h2/d",
        "postgresql://wall:hunter2@h/d?options=-crole%3Dx",
        "postgresql://wall:hunter2@h/d?sslmode=sometimes",
        "postgresql://wall:hun%00ter2@h/d",
        "postgresql://wall:hun%zzter2@h/d",
    ],
)
def test_a_bad_dsn_is_a_problem_that_does_not_show_the_password(dsn: str) -> None:
    text = "\n".join(problems(upstream=dsn))
    assert text
    assert "hunter2" not in text
    assert "ter2" not in text


def test_a_password_may_be_in_a_file(tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text("hunter2\n")
    config = load_config(flags={"upstream": "postgresql://u@h", "upstream.password_file": str(file)})
    assert config.upstream.password.reveal() == "hunter2"
    missing = problems(upstream="postgresql://u@h", upstream__password_file=str(tmp_path / "none"))
    assert "No such file" in missing[0]


def test_all_problems_come_at_once_with_their_places(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        "listen:\n  prot: 1\n  port: 99999\nlimit:\n  x: 1\ntimeouts:\n  login: soon\nlog:\n  level: inof\n"
        "tls:\n  require: true\nmetrics: 5\n",
    )
    found = problems(path, {"SQLWALL_LISTEN_PROT": "1", "SQLWALL_TEST_DSN": "x"}, listen__hots="x")
    expected = [
        f"{path}:2:3: unknown key listen.prot; did you mean port?",
        f"{path}:3:3: listen.port must be from 1 to 65535",
        f"{path}:4:1: unknown section limit; did you mean limits?",
        f"{path}:7:3: timeouts.login must be a duration such as 30s, 500ms, 10min or 30d",
        f"{path}:9:3: log.level must be one of debug, info, warning, error; did you mean info?",
        f"{path}:11:3: tls.require needs tls.certificate",
        f"{path}:12:1: metrics must be a mapping of: host, port",
        "unknown variable SQLWALL_LISTEN_PROT; did you mean SQLWALL_LISTEN_PORT?",
        "unknown setting listen.hots; did you mean listen.host?",
    ]
    assert sorted(found) == sorted(expected)


def test_a_file_that_is_no_configuration_is_one_clear_line(tmp_path: Path) -> None:
    assert "No such file" in problems(tmp_path / "none.yaml")[0]
    assert "is not YAML" in problems(write(tmp_path, "a: [1,\n"))[0]
    assert "must be a mapping" in problems(write(tmp_path, "- 1\n"))[0]
    assert "is not YAML" in problems(write(tmp_path, "log: {}\nlog: {}\n"))[0]
    assert load_config(write(tmp_path, "")) == Config()
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"\xff\xfe\x00")
    assert problems(binary)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"tls.key": "k"}, "tls.key needs tls.certificate"),
        ({"tls.client_certificate": "match"}, "needs tls.client_ca"),
        ({"upstream.sslmode": "verify-full"}, "needs upstream.sslrootcert"),
        ({"upstream.sslrootcert": "system"}, "needs upstream.sslmode verify-full"),
        ({"upstream.sslkey": "k"}, "needs upstream.sslcert"),
        ({"upstream.host": "a,b"}, "one host"),
        ({"metrics.port": 6543}, "must differ from listen.port"),
        ({"upstream.require_auth": "scram"}, "did you mean scram-sha-256"),
        ({"upstream.require_auth": "md5,!none"}, "not of both"),
        ({"timeouts.parse": 0}, "more than 0"),
        ({"limits.segment_bytes": "1kB"}, "must be from"),
        ({"limits.max_connections": True}, "whole number"),
        ({"tls.require": "perhaps"}, "true or false"),
    ],
)
def test_settings_that_do_not_fit_are_explained(flags: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(flags=flags)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("text", "seconds"), [("30", 30.0), ("500ms", 0.5), ("10 min", 600.0), ("1h", 3600.0), ("1.5s", 1.5)]
)
def test_durations_have_units(text: str, seconds: float) -> None:
    assert load_config(env={"SQLWALL_TIMEOUTS_LOGIN": text}).timeouts.login == seconds


def test_what_an_orchestrator_puts_into_the_environment_is_no_mistake() -> None:
    env = {
        "SQLWALL_SERVICE_HOST": "10.0.0.1",
        "SQLWALL_SERVICE_PORT_PROXY": "6543",
        "SQLWALL_PORT_6543_TCP_ADDR": "10.0.0.1",
        "SQLWALL_CONFIG": "x.yaml",
        "SQLWALL_PORT": "tcp://10.0.0.1:6543",
        "PATH": "/bin",
    }
    assert load_config(env=env) == Config()


@given(st.text(min_size=1, max_size=30))
def test_a_secret_never_shows(text: str) -> None:
    secret = Secret(text)
    assert repr(secret) == str(secret) == f"{secret}" == "'***'"
    assert secret.reveal() == text
    assert secret == Secret(text)
    assert hash(secret) == hash(Secret(text))


@given(st.text(max_size=200))
def test_any_text_is_a_configuration_or_a_list_of_problems(
    tmp_path_factory: pytest.TempPathFactory, text: str
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_text(text, "utf-8", "replace")
    try:
        config = load_config(path)
    except ConfigError as error:
        assert error.problems
    else:
        assert isinstance(config, Config)


def test_every_setting_has_a_meaning_and_a_default_that_reads_back() -> None:
    for name, meaning, default in settings():
        assert meaning
        if isinstance(default, (int, float)) and not isinstance(default, bool):
            assert load_config(flags={name: default}) == Config()
