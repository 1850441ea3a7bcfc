"""Every setting once: its name, default, unit, description and what it must satisfy."""

from __future__ import annotations

import hashlib
import re
import shlex
from pathlib import Path
from typing import Any, Final, Self

from pydantic import (
    AliasChoices,
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    field_validator,
    model_validator,
)
from pydantic_settings import (
    BaseSettings,
    SettingsConfigDict,
)

from cdc_archiver.errors import Misconfigured
from cdc_archiver.model import OLDEST_TIMESTAMP
from cdc_archiver.settings.types import (
    Bytes,
    Delays,
    FileModes,
    LogFormat,
    LogLevel,
    Names,
    Seconds,
    Timestamp,
    Timetable,
    Verify,
    parse_modes,
    parse_speakers,
    parse_timetable,
)

PREFIX: Final = "CDC_ARCHIVER_"


class SourceOptions(BaseModel):
    """Settings of one source; at the top level, the defaults for all sources."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @field_validator("ssh_key", "known_hosts", "ssh_config", mode="before")
    @classmethod
    def _no_empty_path(cls, value: object) -> object:
        return _path(value)

    host: str = Field("", description="Readout server, [user@]host. Empty: the files are on this machine.")
    user: str = Field("", description="Login name on the readout server. Default: OpenSSH's.")
    target: Names = Field((), description="instance_id of the files to archive; may be repeated.")
    ssh_port: int = Field(22, ge=1, le=65535, description="Port of the readout server's sshd.")
    ssh_key: Path | None = Field(None, description="Private key. Default: OpenSSH's choice from ~/.ssh.")
    known_hosts: Path | None = Field(None, description="File of trusted host keys. Default: ~/.ssh/known_hosts.")
    ssh_config: Path | None = Field(None, description="OpenSSH client configuration. Default: ~/.ssh/config.")
    source_root: str = Field("/", description="Directory on the source that contains all its files.")
    restricted_key: bool = Field(
        False, description='The source restricts the key with command="rrsync -ro SOURCE_ROOT".'
    )
    bwlimit: str = Field(
        "",
        description="rsync's --bwlimit, for each rsync: KiB/s, or with a unit (20m), or a timetable of limits "
        "(08:00,20m 19:00,off). Empty: no limit.",
    )
    compress: bool = Field(False, description="Compress in transfer. Useful on links slower than about 100 MB/s.")
    workers: int = Field(2, ge=1, le=32, description="Concurrent copies from one source, of files up to small_limit.")
    bulk_workers: int = Field(
        1, ge=1, le=8, description="Concurrent copies from one source, of files above small_limit."
    )
    small_limit: Bytes = Field(
        64 * 1024**2,
        ge=1,
        description="Files above this size use the bulk lane, so that they do not delay smaller files.",
    )
    batch_files: int = Field(500, ge=1, le=10_000, description="Maximum number of files in one rsync.")
    io_timeout: Seconds = Field(60.0, ge=1, description="Time without any data on a link after which rsync gives up.")
    stall_timeout: Seconds = Field(120.0, ge=1, description="Time without progress after which rsync is killed.")

    finalize_as: Names = Field(
        (),
        description="[ARCHIVE=]INSTANCE-ID under which readers are told of complete timecodes by a marker; ARCHIVE is smurf "
        "(default) or timestreams; may be repeated. Empty: no markers.",
    )
    streams: Names = Field(
        (),
        description="pub_ids that markers name; may be repeated. Default: those of the last 30 timecodes that have files.",
    )

    @field_validator("finalize_as")
    @classmethod
    def _known_speakers(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        parse_speakers(value)
        return value

    @property
    def speakers(self) -> dict[str, str]:
        """The parsed ``finalize_as``: INSTANCE-ID by archive."""
        return parse_speakers(self.finalize_as)

    @field_validator("user")
    @classmethod
    def _no_option_user(cls, value: str) -> str:
        if value and not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.@\\-]*", value):
            raise ValueError(f"invalid login name: {value!r}")
        return value

    @field_validator("host")
    @classmethod
    def _no_option_host(cls, value: str) -> str:
        name = value.rpartition("@")[2]
        if value and (not re.fullmatch(r"[A-Za-z0-9_:][A-Za-z0-9_.:%-]*", name) or value.startswith(("-", "@"))):
            raise ValueError(f"invalid host name or address: {value!r}")
        return value

    @field_validator("source_root")
    @classmethod
    def _absolute_root(cls, value: str) -> str:
        if not value.startswith("/") or "\0" in value or "\n" in value:
            raise ValueError(f"not an absolute path: {value!r}")
        return value

    @field_validator("bwlimit")
    @classmethod
    def _rsync_rate(cls, value: str) -> str:
        parse_timetable(value)
        return value

    @model_validator(mode="after")
    def _one_user(self) -> Self:
        before_at = self.host.rpartition("@")[0]
        if before_at and self.user and before_at != self.user:
            raise ValueError(f"host names the user {before_at!r}, and user names {self.user!r}")
        if before_at:
            type(self)._no_option_user(before_at)
        return self


class SourceSettings(SourceOptions):
    """One readout server.

    Attributes:
        name: its name in logs, metrics and the staging directory.
    """

    name: str

    @field_validator("name")
    @classmethod
    def _plain_name(cls, value: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}", value):
            raise ValueError(f"invalid source name: {value!r}: at most 64 letters, digits, '.', '_' and '-'")
        return value

    @model_validator(mode="after")
    def _root_of_restricted_key(self) -> Self:
        if self.restricted_key and self.source_root == "/":
            raise ValueError(
                f"source {self.name}: restricted_key needs source_root, the directory to which the key's rrsync is restricted"
            )
        return self

    @model_validator(mode="after")
    def _at_least_one_target(self) -> Self:
        if not self.target or "" in self.target:
            raise ValueError(f"source {self.name} has no target: set target to the instance_id of the files to archive")
        return self

    @property
    def timetable(self) -> Timetable:
        """The parsed ``bwlimit``."""
        return parse_timetable(self.bwlimit)

    @property
    def staging_name(self) -> str:
        """The name of its staging directory. It contains a digest of the targets, which no two archivers hold, so no two share it."""
        digest = hashlib.sha256("\0".join(sorted(self.target)).encode()).hexdigest()
        return f"{self.name}-{digest[:8]}"

    @property
    def is_local(self) -> bool:
        """Whether the files are on this machine."""
        return not self.host

    @property
    def host_name(self) -> str:
        """The host without its user."""
        return self.host.rpartition("@")[2]

    @property
    def login(self) -> str:
        """The login name; empty for OpenSSH's choice."""
        return self.user or self.host.rpartition("@")[0]


def _path(value: object) -> object:
    """A path as it was written; an empty one becomes None."""
    if isinstance(value, str) and "\0" in value:
        raise ValueError(f"invalid path: {value!r}")
    return None if value == "" else value


def _mysql(variable: str, default: Any, description: str, **more: Any) -> Any:
    return Field(default, validation_alias=AliasChoices(f"MYSQL_{variable}"), description=description, **more)


class Settings(SourceOptions, BaseSettings):
    """All settings. Built by :func:`~cdc_archiver.settings.loading.load`."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, extra="forbid", frozen=True, validate_by_name=True, validate_by_alias=True
    )

    mysql_host: str = _mysql("HOST", "127.0.0.1", "Database server.")
    mysql_port: int = _mysql("PORT", 3306, "Port of the database server.", ge=1, le=65535)
    mysql_database: str = _mysql("DATABASE", "files", "Database that holds the table.", min_length=1)
    mysql_user: str = _mysql("USER", "cdc_archiver", "Database user.")
    mysql_password: SecretStr = _mysql(
        "PASSWORD", SecretStr(""), "Password of the database user. No flag: process lists are public."
    )
    mysql_password_file: Path | None = _mysql(
        "PASSWORD_FILE", None, "File that holds the password, instead of MYSQL_PASSWORD."
    )
    mysql_ssl_ca: Path | None = _mysql("SSL_CA", None, "CA certificate. Set it to require TLS and verify the server.")
    mysql_ssl_cert: Path | None = _mysql("SSL_CERT", None, "TLS client certificate.")
    mysql_ssl_key: Path | None = _mysql("SSL_KEY", None, "TLS client key.")

    table: str = Field("", description="Table of files. Default: pysmurf_files, or the newest pysmurf_files_v<N>.")
    db_time_zone: str = Field("", description="Time zone in which the column timestamp is read. Default: the server's.")
    server_id: int | None = Field(
        None, ge=1, le=2**32 - 1, description="server_id of the binlog stream. Default: random, at each start."
    )
    history_retention: Seconds = Field(365 * 86400.0, description="Time for which the history is kept. 0: for ever.")

    data_dir: Path | None = Field(None, description="Directory of the archive on this machine.")
    staging_dir: Path | None = Field(
        None,
        description="Directory in which files arrive before they are placed. Default: next to data_dir, or in state_dir if links "
        "do not lead from there into data_dir.",
    )
    state_dir: Path | None = Field(
        None,
        description="Directory for what the service keeps. Default: systemd's StateDirectory, /var/lib/cdc_archiver if it can be "
        "written, or ~/.local/state/cdc_archiver.",
    )
    oldest_timestamp: Timestamp = Field(
        OLDEST_TIMESTAMP, description="Rows with an earlier timestamp are refused: their clock was wrong."
    )
    chmod: str = Field("D755,F644", description="Octal modes of archived directories (D) and files (F).")
    min_free: Bytes = Field(
        1024**3, description="Free space on each disk of the destination below which nothing is copied to it."
    )
    verify: Verify = Field(
        Verify.STAGED, description="Verify the md5 in transfer and again from the staged file, or in transfer only."
    )

    sweep_interval: Seconds = Field(60.0, ge=0.2, description="Time between sweeps while the stream is open.")
    poll_interval: Seconds = Field(5.0, ge=0.1, description="Time between sweeps while there is no stream.")
    max_attempts: int = Field(5, ge=1, le=999, description="Failed attempts after which a file is quarantined.")
    retry_delays: Delays = Field(
        (5.0, 30.0, 120.0, 600.0),
        description="Times from a failed attempt to the next one, after the first, the second, and so on; the last one for "
        "all further.",
    )
    max_sources: int = Field(
        0,
        ge=0,
        description="Maximum number of sources that this service holds while other services with the same configuration "
        "run. 0: all.",
    )
    other_targets: Names = Field(
        (),
        description="Targets that something else archives, such as a service on another Galera node: no rows of theirs "
        "count as unclaimed.",
    )
    drain_timeout: Seconds = Field(10.0, description="Time that running copies have to finish at a stop.")

    timecode_grace: Seconds = Field(
        6 * 3600.0, description="Time from the end of a timecode until it may become complete."
    )
    reopen_after: Seconds = Field(
        3600.0, description="Time without a change until a timecode that was re-opened may become complete again."
    )
    finalize_from: int | None = Field(
        None,
        ge=10_000,
        le=99_999,
        description="First timecode of which readers are told by markers although it ended before the first start. "
        "Default: none of these.",
    )
    udp_host: str = Field("127.0.0.1", description="monitor: address on which the instrument's messages arrive.")
    udp_port: int = Field(8200, ge=0, le=65535, description="monitor: port on which the instrument's messages arrive.")
    forward: Names = Field((), description="monitor: HOST:PORT that gets each message as well; may be repeated.")
    spool: Path | None = Field(
        None,
        description="monitor: file in which messages wait for the database. Default: below the state directory; a container has none.",
    )
    spool_max: Bytes = Field(
        1024**3, ge=1024**2, description="monitor: size of the spool above which messages are lost."
    )
    spool_keep: Seconds = Field(
        90 * 86400.0,
        ge=86400.0,
        description="monitor: time for which an announcement is remembered, so that it makes one row.",
    )
    settle: Seconds = Field(0.5, description="monitor: time for which a file must not have changed.")
    patience: Seconds = Field(
        600.0, ge=1, description="monitor: time after which a file that has not come counts as lost."
    )
    site: str = Field("", max_length=32, description="monitor: the rows' column site.")

    http_host: str = Field("127.0.0.1", description="Address of the status page, /metrics, /healthz, /readyz, /api.")
    http_port: int = Field(
        9184, ge=0, le=65535, description="Port of the status page. 0: any free port, named in the log."
    )
    notify_command: str = Field(
        "", description="Program, with arguments, that is given each notice as a JSON object on standard input."
    )
    notify_after: Seconds = Field(600.0, description="Time that a source is down before notify_command is told.")
    log_format: LogFormat = Field(LogFormat.CONSOLE, description="Format of log lines: for people, or JSON.")
    log_level: LogLevel = Field(LogLevel.INFO, description="Lowest severity that is logged.")

    sources: tuple[SourceSettings, ...] = Field(
        (), description="Several readout servers: [[sources]] in the configuration file."
    )

    @field_validator("mysql_host")
    @classmethod
    def _host_of_database(cls, value: str) -> str:
        if (
            not re.fullmatch(r"[A-Za-z0-9_:]([A-Za-z0-9_:%-]|\.(?!\.)){0,253}", value)
            or max(map(len, value.split("."))) > 63
        ):
            raise ValueError(f"invalid host name or address: {value!r}")
        return value

    @field_validator("table")
    @classmethod
    def _plain_table(cls, value: str) -> str:
        if value and not re.fullmatch(r"[A-Za-z0-9_$]{1,64}", value):
            raise ValueError(f"invalid table name: {value!r}: at most 64 letters, digits, '_' and '$'")
        return value

    @field_validator("db_time_zone")
    @classmethod
    def _time_zone(cls, value: str) -> str:
        if value and not re.fullmatch(r"[+-]\d{1,2}:\d{2}|[A-Za-z0-9_/+-]+", value):
            raise ValueError(f"invalid time zone of a database server: {value!r}: use +00:00 or UTC, for instance")
        return value

    @field_validator("notify_command")
    @classmethod
    def _program_with_arguments(cls, value: str) -> str:
        try:
            shlex.split(value)
        except ValueError as error:
            raise ValueError(f"invalid command: {value!r}: {error}") from None
        return value

    @field_validator("chmod")
    @classmethod
    def _known_modes(cls, value: str) -> str:
        parse_modes(value)
        return value

    @model_validator(mode="before")
    @classmethod
    def _merge_sources(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Lets each source inherit the top-level settings, or makes the one source that the top level describes."""
        values = dict(values)
        common = {name: values[name] for name in SourceOptions.model_fields if name in values}
        listed = values.get("sources") or ()
        if not isinstance(listed, list | tuple) or not all(
            isinstance(entry, dict | SourceSettings) for entry in listed
        ):
            raise ValueError("sources: write each source as a [[sources]] table")
        if listed:
            values["sources"] = [
                {**{k: v for k, v in common.items() if k not in ("host", "target")}, **entry}
                if isinstance(entry, dict)
                else entry
                for entry in listed
            ]
        elif common.get("target"):
            values["sources"] = [dict(common)]
        for entry in values.get("sources") or ():
            if isinstance(entry, dict) and "name" not in entry:
                host = str(entry.get("host", "")).rpartition("@")[2]
                entry["name"] = re.sub(r"[^A-Za-z0-9_.-]", "-", host).lstrip(".-")[:64] or "local"
        return values

    @field_validator(
        "mysql_password_file",
        "mysql_ssl_ca",
        "mysql_ssl_cert",
        "mysql_ssl_key",
        "data_dir",
        "staging_dir",
        "state_dir",
        "spool",
        mode="before",
    )
    @classmethod
    def _no_empty_file(cls, value: object) -> object:
        return _path(value)

    @model_validator(mode="after")
    def _key_with_certificate(self) -> Self:
        if self.mysql_ssl_key and not self.mysql_ssl_cert:
            raise ValueError("mysql_ssl_key is set without mysql_ssl_cert")
        return self

    @model_validator(mode="after")
    def _distinct_sources(self) -> Self:
        names = [source.name for source in self.sources]
        targets = [target for source in self.sources for target in source.target]
        for kind, values in (("name", names), ("target", targets)):
            twice = {value for value in values if values.count(value) > 1}
            if twice:
                raise ValueError(f"two sources have the {kind} {min(twice)!r}")
        return self

    @property
    def targets(self) -> list[str]:
        """The targets of all sources."""
        return [target for source in self.sources for target in source.target]

    @property
    def modes(self) -> FileModes:
        """The parsed ``chmod``."""
        return parse_modes(self.chmod)

    @property
    def password(self) -> str:
        """The database password, read from ``mysql_password_file`` where that is set.

        Raises:
            Misconfigured: the file cannot be read.
        """
        if self.mysql_password_file is None:
            return self.mysql_password.get_secret_value()
        try:
            return self.mysql_password_file.read_text().rstrip("\r\n")
        except (OSError, UnicodeDecodeError) as error:
            raise Misconfigured(
                f"the database password cannot be read from {self.mysql_password_file}: {error}",
                "set MYSQL_PASSWORD_FILE to a file that this user can read",
            ) from error
