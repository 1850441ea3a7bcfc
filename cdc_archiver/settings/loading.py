"""Reads the settings from flags, environment, TOML file and secret files.

Precedence: flags, environment, configuration file. A setting ``some_name`` is the flag ``--some-name``, the variable
``CDC_ARCHIVER_SOME_NAME`` (``MYSQL_…`` for the database) and the key ``some_name`` of the file.
"""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from pydantic import TypeAdapter, ValidationError
from pydantic_settings import BaseSettings, EnvSettingsSource, InitSettingsSource, PydanticBaseSettingsSource

from cdc_archiver.errors import Misconfigured
from cdc_archiver.settings.definitions import PREFIX, Settings, SourceOptions, SourceSettings
from cdc_archiver.settings.types import Seconds

# Variables with our prefix that are not settings.
_OTHER_VARIABLES: Final = {"CDC_ARCHIVER_CACHE", "CDC_ARCHIVER_CONFIG"}


def load(
    flags: Mapping[str, Any] | None = None,
    config: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> Settings:
    """Reads the settings.

    Args:
        flags: values by setting name; None where a flag was not given.
        config: TOML file.
        environment: default: the process's.

    Raises:
        Misconfigured: a value, a key or the file is invalid; one line says which.
    """
    environment = os.environ if environment is None else environment
    # An empty variable counts as unset: Docker Compose passes `${NAME:-}` on like that.
    variables = {name.lower(): value for name, value in environment.items() if value != ""}
    if config is None and (named := variables.get(f"{PREFIX}CONFIG".lower())):
        config = Path(named)
    _reject_unknown_variables(environment)
    file_values = _read_toml(config) if config else {}
    given = {name for name, value in (flags or {}).items() if value is not None}
    given |= {name for name in Settings.model_fields if f"{PREFIX}{name}".lower() in variables}
    _override_sources(file_values, given, flags or {}, variables)
    if "mysql_password" in variables and "mysql_password_file" in variables:
        raise Misconfigured("MYSQL_PASSWORD and MYSQL_PASSWORD_FILE are both set", "set only one of them")
    if "mysql_password" in variables:  # the environment overrides the file
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
    """Lets a flag or a variable override the file's setting of each source."""
    listed = file_values.get("sources")
    if not isinstance(listed, list):
        return
    if conflicting := sorted(given & {"host", "target"}):
        raise Misconfigured(
            f"{conflicting[0]} is set by a flag or by {PREFIX}{conflicting[0].upper()}, and the configuration file has [[sources]]",
            f"set {conflicting[0]} in each of the [[sources]], or remove them",
        )
    for entry in listed:
        for name in given & SourceOptions.model_fields.keys() if isinstance(entry, dict) else ():
            flag = flags.get(name)
            entry[name] = variables[f"{PREFIX}{name}".lower()] if flag is None else flag


def parse_duration(text: str) -> float:
    """Seconds of a duration in the settings' format: ``90``, ``500ms``, ``5m``.

    Raises:
        Misconfigured: the text has another format.
    """
    try:
        return TypeAdapter[float](Seconds).validate_python(text)
    except ValidationError:
        raise Misconfigured(f"invalid duration: {text!r}", "use 90, 500ms, 5m, 2h or 30d") from None


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise Misconfigured(
            f"the configuration file {path} cannot be read: {error}",
            "check the path in --config or CDC_ARCHIVER_CONFIG",
        ) from error
    except (
        ValueError,
        RecursionError,
    ) as error:  # of the TOML parser, a number with too many digits, a nesting too deep
        raise Misconfigured(
            f"the configuration file {path} is not valid TOML: {error}",
            'correct that line: values are like name = "text" or name = 22',
        ) from error
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
    raise Misconfigured(f"unknown setting: {what} {name!r}", f"did you mean {near[0]!r}?" if near else "")


def _first_error(error: ValidationError) -> str:
    found = error.errors(include_url=False, include_context=False, include_input=False)
    where = ".".join(str(part) for part in found[0]["loc"])
    messages = list(dict.fromkeys(each["msg"].removeprefix("Value error, ") for each in found))
    more = f" (and {len(messages) - 1} more)" if len(messages) > 1 else ""
    return f"setting {where}: {messages[0]}{more}" if where else f"settings: {messages[0]}{more}"
