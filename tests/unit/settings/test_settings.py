"""Settings: precedence, and one clear line for each mistake."""

from __future__ import annotations

from datetime import UTC, datetime, time
from pathlib import Path
from typing import Any

import pytest

from cdc_archiver.errors import Misconfigured
from cdc_archiver.settings import load

TARGET = {"target": ("m",)}


def test_precedence_is_flags_then_environment_then_configuration_file(tmp_path: Path) -> None:
    config = tmp_path / "a.toml"
    config.write_text('target = ["m"]\nmax_attempts = 2\nsweep_interval = "2m"\nmysql_host = "from-file"\n')
    environment = {"CDC_ARCHIVER_MAX_ATTEMPTS": "3", "CDC_ARCHIVER_SWEEP_INTERVAL": "30", "MYSQL_HOST": "from-env"}
    settings = load({"max_attempts": 4}, config, environment)
    assert (settings.max_attempts, settings.sweep_interval, settings.mysql_host) == (4, 30.0, "from-env")
    assert load({}, config, {}).mysql_host == "from-file"


def test_the_names_that_other_entries_of_a_compose_file_use() -> None:
    environment = {
        "MYSQL_HOST": "db",
        "MYSQL_DATABASE": "f",
        "MYSQL_USER": "u",
        "MYSQL_PASSWORD": "p",
        "MYSQL_PORT": "",
    }
    settings = load(TARGET, environment=environment)
    assert (settings.mysql_host, settings.mysql_database, settings.mysql_user) == ("db", "f", "u")
    assert (settings.password, settings.mysql_port) == ("p", 3306)
    assert load(TARGET, environment={}).mysql_database == "files"


def test_the_password_may_be_in_a_file_and_is_never_shown(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("pa ss\n")
    settings = load(TARGET, environment={"MYSQL_PASSWORD_FILE": str(secret)})
    assert settings.password == "pa ss"
    assert "hunter2" not in repr(load(TARGET, environment={"MYSQL_PASSWORD": "hunter2"}))
    with pytest.raises(Misconfigured, match="cannot be read"):
        _ = load(TARGET, environment={"MYSQL_PASSWORD_FILE": str(tmp_path / "none")}).password


def test_flags_describe_one_source_named_by_its_host() -> None:
    (source,) = load({"host": "data@smurf-srv", "target": ("a", "b"), "ssh_port": 2222}, environment={}).sources
    assert (source.name, source.host_name, source.login, source.ssh_port) == ("smurf-srv", "smurf-srv", "data", 2222)
    assert source.target == ("a", "b")
    (local,) = load(TARGET, environment={}).sources
    assert (local.name, local.is_local) == ("local", True)


def test_a_variable_may_name_several_targets() -> None:
    (source,) = load({}, environment={"CDC_ARCHIVER_TARGET": "a, b"}).sources
    assert source.target == ("a", "b")


def test_sources_of_a_file_inherit_the_top_level_settings(tmp_path: Path) -> None:
    config = tmp_path / "a.toml"
    config.write_text(
        'user = "data"\nbwlimit = "20m"\n[[sources]]\nname = "one"\nhost = "h1"\ntarget = ["a"]\n'
        '[[sources]]\nhost = "ocs@h2"\nuser = "ocs"\ntarget = ["b"]\nbwlimit = ""\n'
    )
    one, two = load({}, config, {}).sources
    assert (one.name, one.login, one.bwlimit) == ("one", "data", "20m")
    assert (two.name, two.login, two.bwlimit) == ("h2", "ocs", "")


def test_a_flag_or_a_variable_overrides_the_sources_of_a_file_too(tmp_path: Path) -> None:
    config = tmp_path / "a.toml"
    config.write_text('[[sources]]\nhost = "h1"\ntarget = ["a"]\nbwlimit = "1m"\nworkers = 3\n')
    (source,) = load({"bwlimit": "5m"}, config, {"CDC_ARCHIVER_WORKERS": "4"}).sources
    assert (source.bwlimit, source.workers) == ("5m", 4)
    with pytest.raises(Misconfigured, match=r"and the configuration file has \[\[sources\]\]"):
        load({"target": ("b",)}, config, {})


def test_a_password_of_the_environment_overrides_the_files(tmp_path: Path) -> None:
    config = tmp_path / "a.toml"
    config.write_text('target = ["m"]\nmysql_password_file = "/nowhere"\n')
    assert load({}, config, {"MYSQL_PASSWORD": "from-env"}).password == "from-env"


def test_a_host_may_be_an_ipv6_address() -> None:
    (source,) = load({**TARGET, "host": "::1"}, environment={}).sources
    assert (source.name, source.host_name) == ("1", "::1")


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90.0), ("500ms", 0.5), ("5m", 300.0), ("2h", 7200.0), ("1.5 d", 129600.0)]
)
def test_durations(text: str, seconds: float) -> None:
    assert load({**TARGET, "history_retention": text}, environment={}).history_retention == seconds


@pytest.mark.parametrize(("text", "size"), [("5000", 5000), ("64M", 64 * 2**20), ("2G", 2**31), ("1 kb", 1024)])
def test_sizes(text: str, size: int) -> None:
    assert load({**TARGET, "min_free": text}, environment={}).min_free == size


@pytest.mark.parametrize("text", ["1995-01-01", "1995-01-01T01:00+01:00", "1995-01-01 00:00:00Z"])
def test_the_oldest_timestamp_is_a_date_or_a_time_and_in_utc(tmp_path: Path, text: str) -> None:
    expected = datetime(1995, 1, 1, tzinfo=UTC)
    assert load({**TARGET, "oldest_timestamp": text}, environment={}).oldest_timestamp == expected
    file = tmp_path / "archiver.toml"
    for written in (f'"{text}"', "1995-01-01", "1995-01-01T00:00:00Z", "1995-01-01 00:00:00"):
        file.write_text(f"oldest_timestamp = {written}")
        assert load(TARGET, file, environment={}).oldest_timestamp == expected


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"oldest_timestamp": "1970-01-01T02:46:39Z"}, "10,000 s since the epoch"),
        ({"oldest_timestamp": "2001-09-09T01:46:41Z"}, "10,000 s since the epoch"),
        ({"oldest_timestamp": "0001-01-01T00:00+14:00"}, "use 1995-01-01 or"),
        ({"oldest_timestamp": "0"}, "use 1995-01-01 or"),
        ({"oldest_timestamp": 10_000}, "use 1995-01-01 or"),
        ({"host": "-oProxyCommand=x"}, "invalid host name or address"),
        ({"host": "a b"}, "invalid host name or address"),
        ({"host": "-x@h"}, "invalid host name or address"),
        ({"host": "srv", "user": "-l"}, "invalid login name"),
        ({"host": "a@srv", "user": "b"}, "host names the user 'a', and user names 'b'"),
        ({"max_attempts": 1000}, "max_attempts"),
        ({"max_attempts": "many"}, "max_attempts"),
        ({"sweep_interval": "soon"}, "sweep_interval"),
        ({"sweep_interval": "-1"}, "sweep_interval"),
        ({"history_retention": "nan"}, "history_retention"),
        ({"min_free": "lots"}, "min_free"),
        ({"chmod": "u+rwx"}, "D755,F644"),
        ({"chmod": "D055,F644"}, "itself must be able"),
        ({"bwlimit": "1; rm"}, "invalid rate"),
        ({"source_root": "data"}, "not an absolute path"),
        ({"table": "a`b"}, "invalid table name"),
        ({"db_time_zone": "'; drop"}, "invalid time zone"),
        ({"log_format": "xml"}, "log_format"),
        ({"verify": "never"}, "verify"),
        ({"http_port": 70000}, "http_port"),
        ({"sweep_interval": "5x"}, "use 90, 500ms, 5m"),
        ({"sweep_interval": "999999999d"}, "sweep_interval"),
        ({"min_free": "10Q"}, "use 5000, 64M"),
        ({"restricted_key": True}, "needs source_root"),
        ({"mysql_ssl_key": "/k"}, "without mysql_ssl_cert"),
        ({"target": ("",)}, "has no target"),
        ({"mysql_host": ".db"}, "invalid host name or address"),
        ({"mysql_host": "d" * 64}, "invalid host name or address"),
        ({"mysql_host": "a..b"}, "invalid host name or address"),
    ],
)
def test_an_invalid_value_is_one_line_that_names_it(flags: dict[str, Any], message: str) -> None:
    with pytest.raises(Misconfigured) as mistake:
        load({**TARGET, **flags}, environment={})
    assert message in str(mistake.value)
    assert "\n" not in str(mistake.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("max_atempts = 3", "did you mean 'max_attempts'"),
        ('[[sources]]\ntarget = ["a"]\nssh_prt = 3', "did you mean 'ssh_port'"),
        ("= 3", "is not valid TOML"),
        ('[[sources]]\nname = "a"', "has no target"),
        (
            '[[sources]]\nname = "a"\ntarget = ["x"]\n[[sources]]\nname = "a"\ntarget = ["y"]',
            "two sources have the name",
        ),
        (
            '[[sources]]\nname = "a"\ntarget = ["x"]\n[[sources]]\nname = "b"\ntarget = ["x"]',
            "two sources have the target",
        ),
        ('[[sources]]\nname = "../a"\ntarget = ["x"]', "invalid source name"),
        ("sources = 3", "[[sources]]"),
    ],
)
def test_a_mistake_in_the_file_is_one_line_that_names_it(tmp_path: Path, text: str, message: str) -> None:
    config = tmp_path / "a.toml"
    config.write_text(text)
    with pytest.raises(Misconfigured) as mistake:
        load({}, config, {})
    assert message in str(mistake.value)
    assert "\n" not in str(mistake.value)


def test_a_misspelt_variable_is_not_ignored() -> None:
    with pytest.raises(Misconfigured, match="did you mean 'CDC_ARCHIVER_MAX_ATTEMPTS'"):
        load(TARGET, environment={"CDC_ARCHIVER_MAX_ATEMPTS": "3"})


def test_several_sources_are_not_a_variable() -> None:
    with pytest.raises(Misconfigured, match="unknown setting: environment variable"):
        load(TARGET, environment={"CDC_ARCHIVER_SOURCES": "foo"})


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(Misconfigured, match=r"none\.toml"):
        load({}, tmp_path / "none.toml", {})


@pytest.mark.parametrize(
    ("text", "at_night", "at_noon", "in_the_evening"),
    [
        ("", "", "", ""),
        ("20m", "20m", "20m", "20m"),
        ("08:00,20m 19:00,off", "", "20m", ""),
        ("19:00,500k 8:00,1.5m", "500k", "1.5m", "500k"),
        ("00:00,1m 12:00,off", "1m", "", ""),
    ],
)
def test_bandwidth_by_the_time_of_day(text: str, at_night: str, at_noon: str, in_the_evening: str) -> None:
    timetable = load({"target": ("a",), "bwlimit": text}, environment={}).sources[0].timetable
    assert [timetable.rate_at(time(hour)) for hour in (3, 12, 20)] == [at_night, at_noon, in_the_evening]


@pytest.mark.parametrize(
    "text", ["08:00", "8:00,", "25:00,1m", "08:60,1m", "1m 2m", "08:00,1m 08:00,2m", "08:00;1m", "08:00,-e"]
)
def test_an_invalid_timetable(text: str) -> None:
    with pytest.raises(Misconfigured, match="bwlimit"):
        load({"target": ("a",), "bwlimit": text}, environment={})
