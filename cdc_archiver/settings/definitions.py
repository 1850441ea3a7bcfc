"""Every setting once: its name, default, unit and sentence; read from flags, environment, TOML file and secret files.

The last word is a flag's, then the environment's, then the file's. A setting ``some_name`` is the flag ``--some-name``, the
variable ``CDC_ARCHIVER_SOME_NAME`` (those of the database: ``MYSQL_…``) and the key ``some_name`` of the file.
"""

from __future__ import annotations

import difflib
import hashlib
import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Self

from pydantic import (
    AliasChoices,
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    TypeAdapter,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from cdc_archiver.errors import Misconfigured
from cdc_archiver.settings.types import (
    Bytes,
    FileModes,
    LogFormat,
    LogLevel,
    Names,
    Seconds,
    Timetable,
    Verify,
    parse_modes,
    parse_timetable,
)

PREFIX: Final = "CDC_ARCHIVER_"

# Variables with our prefix that are no settings.
_OTHER_VARIABLES: Final = {"CDC_ARCHIVER_CACHE", "CDC_ARCHIVER_CONFIG"}


class SourceOptions(BaseModel):
    """What each source has of its own; at the top level, the defaults of all."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @field_validator("ssh_key", "known_hosts", "ssh_config", mode="before")
    @classmethod
    def _no_empty_path(cls, value: object) -> object:
        return _path(value)

    host: str = Field("", description="Readout server, [user@]host. Empty: the files are on this machine.")
    user: str = Field("", description="Login name there; default: OpenSSH's.")
    target: Names = Field((), description="instance_id whose files are archived; may be repeated.")
    ssh_port: int = Field(22, ge=1, le=65535, description="Port of its sshd.")
    ssh_key: Path | None = Field(None, description="Private key. Default: OpenSSH's choice from ~/.ssh.")
    known_hosts: Path | None = Field(None, description="Host keys that are trusted. Default: ~/.ssh/known_hosts.")
    ssh_config: Path | None = Field(None, description="OpenSSH client configuration. Default: ~/.ssh/config.")
    source_root: str = Field("/", description="Directory on the source that all its files lie below.")
    restricted_key: bool = Field(
        False, description='The key is restricted there with command="rrsync -ro SOURCE_ROOT".'
    )
    bwlimit: str = Field(
        "",
        description="rsync's --bwlimit, for each rsync: KiB/s, or with a unit (20m); or one for each time of the day "
        "(08:00,20m 19:00,off). Empty: none.",
    )
    compress: bool = Field(False, description="Compress in transfer: for links slower than about 100 MB/s.")
    workers: int = Field(2, ge=1, le=32, description="Copies at a time from one source, of files up to the limit.")
    bulk_workers: int = Field(1, ge=1, le=8, description="Copies at a time from one source, of larger files.")
    small_limit: Bytes = Field(
        64 * 1024**2, ge=1, description="Files above this size go through the bulk lane, so that they hold up no other."
    )
    batch_files: int = Field(500, ge=1, le=10_000, description="Files that one rsync takes at the most.")
    io_timeout: Seconds = Field(60.0, ge=1, description="Silence of a link after which rsync gives up.")
    stall_timeout: Seconds = Field(120.0, ge=1, description="No progress at all for this long: rsync is killed.")

    @field_validator("user")
    @classmethod
    def _no_option_user(cls, value: str) -> str:
        if value and not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.@\\-]*", value):
            raise ValueError(f"{value!r} is no login name")
        return value

    @field_validator("host")
    @classmethod
    def _no_option_host(cls, value: str) -> str:
        name = value.rpartition("@")[2]
        if value and (not re.fullmatch(r"[A-Za-z0-9_:][A-Za-z0-9_.:%-]*", name) or value.startswith(("-", "@"))):
            raise ValueError(f"{value!r} is no host's name or address")
        return value

    @field_validator("source_root")
    @classmethod
    def _absolute_root(cls, value: str) -> str:
        if not value.startswith("/") or "\0" in value or "\n" in value:
            raise ValueError(f"{value!r} is no absolute path")
        return value

    @field_validator("bwlimit")
    @classmethod
    def _rsync_rate(cls, value: str) -> str:
        parse_timetable(value)
        return value

    @model_validator(mode="after")
    def _user_said_once(self) -> Self:
        before_at = self.host.rpartition("@")[0]
        if before_at and self.user and before_at != self.user:
            raise ValueError(f"the host says user {before_at!r}, the user setting says {self.user!r}")
        if before_at:
            type(self)._no_option_user(before_at)
        return self


class SourceSettings(SourceOptions):
    """One readout server.

    Attributes:
        name: how logs, metrics and the staging directory call it.
    """

    name: str

    @field_validator("name")
    @classmethod
    def _plain_name(cls, value: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}", value):
            raise ValueError(f"{value!r}: a source's name has letters, digits, '.', '_' and '-', 64 at most")
        return value

    @model_validator(mode="after")
    def _root_of_restricted_key(self) -> Self:
        if self.restricted_key and self.source_root == "/":
            raise ValueError(
                f"source {self.name}: restricted_key needs source_root, the directory that the key's rrsync is restricted to"
            )
        return self

    @model_validator(mode="after")
    def _some_target(self) -> Self:
        if not self.target or "" in self.target:
            raise ValueError(f"source {self.name} has no target: say which instance_id's files are archived")
        return self

    @property
    def timetable(self) -> Timetable:
        """What ``bwlimit`` says."""
        return parse_timetable(self.bwlimit)

    @property
    def staging_name(self) -> str:
        """What its directory in staging is called: with its targets, which no two archivers hold, and so its own."""
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
        """The login name, or nothing where OpenSSH's own choice is meant."""
        return self.user or self.host.rpartition("@")[0]


def _path(value: object) -> object:
    """A path as it was written; an empty one is none."""
    if isinstance(value, str) and "\0" in value:
        raise ValueError(f"{value!r} is no path")
    return None if value == "" else value


def _mysql(variable: str, default: Any, description: str, **more: Any) -> Any:
    return Field(default, validation_alias=AliasChoices(f"MYSQL_{variable}"), description=description, **more)


class Settings(SourceOptions, BaseSettings):
    """All of it. Build with :func:`load`."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, extra="forbid", frozen=True, validate_by_name=True, validate_by_alias=True
    )

    mysql_host: str = _mysql("HOST", "127.0.0.1", "Database server.")
    mysql_port: int = _mysql("PORT", 3306, "Its port.", ge=1, le=65535)
    mysql_database: str = _mysql("DATABASE", "files", "Database that holds the table.", min_length=1)
    mysql_user: str = _mysql("USER", "cdc_archiver", "Database user.")
    mysql_password: SecretStr = _mysql("PASSWORD", SecretStr(""), "Its password. No flag: process lists are public.")
    mysql_password_file: Path | None = _mysql("PASSWORD_FILE", None, "File that holds the password instead.")
    mysql_ssl_ca: Path | None = _mysql("SSL_CA", None, "CA certificate; with it, TLS is required and checked.")
    mysql_ssl_cert: Path | None = _mysql("SSL_CERT", None, "Client certificate.")
    mysql_ssl_key: Path | None = _mysql("SSL_KEY", None, "Client key.")

    table: str = Field("", description="Table. Default: pysmurf_files, or the newest pysmurf_files_v<N>.")
    db_time_zone: str = Field("", description="Time zone that the column timestamp is read in. Default: the server's.")
    server_id: int | None = Field(
        None, ge=1, le=2**32 - 1, description="Replica id of the stream. Default: a random one at each start."
    )
    history_retention: Seconds = Field(365 * 86400.0, description="How long the history is kept. 0: for ever.")

    data_dir: Path | None = Field(None, description="Directory of the archive on this machine.")
    chmod: str = Field("D755,F644", description="Modes of archived directories (D) and files (F), octal.")
    min_free: Bytes = Field(1024**3, description="Free space below which nothing is copied.")
    verify: Verify = Field(Verify.STAGED, description="Prove the md5 from the staged file too, or in transfer only.")

    sweep_interval: Seconds = Field(60.0, ge=0.2, description="Time between sweeps while the stream flows.")
    poll_interval: Seconds = Field(5.0, ge=0.1, description="Time between sweeps while there is no stream.")
    max_attempts: int = Field(5, ge=1, le=999, description="Charged attempts after which a file is quarantined.")
    max_sources: int = Field(
        0,
        ge=0,
        description="Sources that this service takes while others with the same configuration are there to share them. "
        "0: all.",
    )
    drain_timeout: Seconds = Field(10.0, description="How long running copies may finish at a stop.")

    http_host: str = Field("127.0.0.1", description="Address of the status page, /metrics, /healthz, /readyz, /api.")
    http_port: int = Field(9184, ge=0, le=65535, description="Its port. 0: any free one, named in the log.")
    log_format: LogFormat = Field(LogFormat.CONSOLE, description="Lines for people or JSON.")
    log_level: LogLevel = Field(LogLevel.INFO, description="Least severe line that is logged.")

    sources: tuple[SourceSettings, ...] = Field((), description="Several readout servers: [[sources]] in the file.")

    @field_validator("mysql_host")
    @classmethod
    def _host_of_database(cls, value: str) -> str:
        if (
            not re.fullmatch(r"[A-Za-z0-9_:]([A-Za-z0-9_:%-]|\.(?!\.)){0,253}", value)
            or max(map(len, value.split("."))) > 63
        ):
            raise ValueError(f"{value!r} is no host's name or address")
        return value

    @field_validator("table")
    @classmethod
    def _plain_table(cls, value: str) -> str:
        if value and not re.fullmatch(r"[A-Za-z0-9_$]{1,64}", value):
            raise ValueError(f"{value!r} is no plain table name")
        return value

    @field_validator("db_time_zone")
    @classmethod
    def _time_zone(cls, value: str) -> str:
        if value and not re.fullmatch(r"[+-]\d{1,2}:\d{2}|[A-Za-z0-9_/+-]+", value):
            raise ValueError(f"{value!r} is no time zone of a database server, such as +00:00 or UTC")
        return value

    @field_validator("chmod")
    @classmethod
    def _known_modes(cls, value: str) -> str:
        parse_modes(value)
        return value

    @model_validator(mode="before")
    @classmethod
    def _merge_sources(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Gives each source the top level's values, or makes the one source that the top level describes."""
        values = dict(values)
        common = {name: values[name] for name in SourceOptions.model_fields if name in values}
        listed = values.get("sources") or ()
        if not isinstance(listed, list | tuple) or not all(
            isinstance(entry, dict | SourceSettings) for entry in listed
        ):
            raise ValueError("sources: write each as a [[sources]] table")
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
        "mysql_password_file", "mysql_ssl_ca", "mysql_ssl_cert", "mysql_ssl_key", "data_dir", mode="before"
    )
    @classmethod
    def _no_empty_file(cls, value: object) -> object:
        return _path(value)

    @model_validator(mode="after")
    def _whole_tls(self) -> Self:
        if self.mysql_ssl_key and not self.mysql_ssl_cert:
            raise ValueError("mysql_ssl_key is given without mysql_ssl_cert")
        return self

    @model_validator(mode="after")
    def _distinct_sources(self) -> Self:
        names = [source.name for source in self.sources]
        targets = [target for source in self.sources for target in source.target]
        for kind, words in (("name", names), ("target", targets)):
            twice = {word for word in words if words.count(word) > 1}
            if twice:
                raise ValueError(f"two sources have the {kind} {min(twice)!r}")
        return self

    @property
    def targets(self) -> list[str]:
        """Of all sources."""
        return [target for source in self.sources for target in source.target]

    @property
    def modes(self) -> FileModes:
        """What ``chmod`` says, as numbers."""
        return parse_modes(self.chmod)

    @property
    def password(self) -> str:
        """The database password, from its file where one is named.

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
                "MYSQL_PASSWORD_FILE names a file that this user can read",
            ) from error


def load(
    flags: Mapping[str, Any] | None = None,
    config: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> Settings:
    """Reads the settings.

    Args:
        flags: by setting name; None where a flag was not given.
        config: TOML file.
        environment: default: the process's.

    Raises:
        Misconfigured: a value, a key or the file is not what it has to be; one line says which.
    """
    environment = os.environ if environment is None else environment
    # An empty variable is one that was not set: Docker Compose hands `${NAME:-}` on like that.
    variables = {name.lower(): value for name, value in environment.items() if value != ""}
    if config is None and (named := variables.get(f"{PREFIX}CONFIG".lower())):
        config = Path(named)
    _reject_unknown_variables(environment)
    file_values = _read_toml(config) if config else {}
    given = {name for name, value in (flags or {}).items() if value is not None}
    given |= {name for name in Settings.model_fields if f"{PREFIX}{name}".lower() in variables}
    _override_sources(file_values, given, flags or {}, variables)
    if "mysql_password" in variables and "mysql_password_file" in variables:
        raise Misconfigured("MYSQL_PASSWORD and MYSQL_PASSWORD_FILE are both set", "leave one of them out")
    if "mysql_password" in variables:  # the environment's word comes after the file's
        file_values.pop("mysql_password_file", None)

    class Loaded(Settings):
        @classmethod
        def settings_customise_sources(
            cls,
            settings_cls: type[BaseSettings],
            init_settings: PydanticBaseSettingsSource,
            env_settings: PydanticBaseSettingsSource,
            dotenv_settings: PydanticBaseSettingsSource,
            file_secret_settings: PydanticBaseSettingsSource,
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            env = EnvSettingsSource(settings_cls)
            env.env_vars = variables
            return init_settings, env, InitSettingsSource(settings_cls, init_kwargs=file_values)

    try:
        return Loaded(**{name: value for name, value in (flags or {}).items() if value is not None})
    except ValidationError as error:
        raise Misconfigured(_first_error(error)) from None


def _override_sources(
    file_values: dict[str, Any], given: set[str], flags: Mapping[str, Any], variables: Mapping[str, str]
) -> None:
    """What a flag or a variable says of all sources is the last word over what the file says of each."""
    listed = file_values.get("sources")
    if not isinstance(listed, list):
        return
    if alone := sorted(given & {"host", "target"}):
        raise Misconfigured(
            f"{alone[0]} is given, by a flag or by {PREFIX}{alone[0].upper()}, beside the [[sources]] of the configuration file",
            "each source has its own: say it in the file, or leave the [[sources]] out",
        )
    for entry in listed:
        for name in given & SourceOptions.model_fields.keys() if isinstance(entry, dict) else ():
            flag = flags.get(name)
            entry[name] = variables[f"{PREFIX}{name}".lower()] if flag is None else flag


def parse_duration(text: str) -> float:
    """Seconds of a duration as settings take it: ``90``, ``500ms``, ``5m``.

    Raises:
        Misconfigured: it is none.
    """
    try:
        return TypeAdapter[float](Seconds).validate_python(text)
    except ValidationError:
        raise Misconfigured(f"{text!r} is no duration, such as 90, 500ms, 5m, 2h or 30d") from None


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise Misconfigured(f"the configuration {path} cannot be read: {error}") from error
    except (ValueError, RecursionError) as error:  # TOML's own, an endless number, a nesting without end
        raise Misconfigured(f"the configuration {path} is no TOML: {error}") from error
    known = {*Settings.model_fields}
    for key in values:
        _require_known(key, known, f"{path}: key")
    listed = values.get("sources", ())
    for entry in listed if isinstance(listed, list) else ():
        for key in entry if isinstance(entry, dict) else ():
            _require_known(key, {*SourceSettings.model_fields}, f"{path}: [[sources]] key")
    return values


def _reject_unknown_variables(environment: Mapping[str, str]) -> None:
    known = {PREFIX + name.upper() for name in Settings.model_fields if name != "sources"} | _OTHER_VARIABLES
    for name in environment:
        if name.startswith(PREFIX):
            _require_known(name, known, "environment variable")


def _require_known(name: str, known: set[str], what: str) -> None:
    if name in known:
        return
    near = difflib.get_close_matches(name, known, n=1)
    raise Misconfigured(f"{what} {name!r} is no setting", f"did you mean {near[0]!r}?" if near else "")


def _first_error(error: ValidationError) -> str:
    found = error.errors(include_url=False, include_context=False, include_input=False)
    where = ".".join(str(part) for part in found[0]["loc"])
    messages = list(dict.fromkeys(each["msg"].removeprefix("Value error, ") for each in found))
    more = f" (and {len(messages) - 1} more)" if len(messages) > 1 else ""
    return f"setting {where}: {messages[0]}{more}" if where else f"settings: {messages[0]}{more}"
