"""The settings as flags of a command, generated from :mod:`cdc_archiver.settings`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Final, TypeAlias, get_args

import typer
from pydantic.fields import FieldInfo

from cdc_archiver.errors import ExitStatus
from cdc_archiver.settings import PREFIX, Settings, load
from cdc_archiver.settings.reference import default_text
from cdc_archiver.settings.types import Bytes, Delays, Names, Seconds, Timestamp, is_of_type

Command: TypeAlias = Callable[..., ExitStatus]

DATABASE: Final = frozenset(name for name in Settings.model_fields if name.startswith("mysql_")) | {
    "table",
    "db_time_zone",
    "max_attempts",
}
"""Settings of every command that reads the table."""
SERVICE: Final = frozenset({"http_host", "http_port"})
"""Settings for the address of the running service."""
SOURCE: Final = frozenset(
    {"host", "user", "target", "ssh_port", "ssh_key", "known_hosts", "ssh_config", "source_root", "restricted_key"}
)
"""Settings for access to a source."""

REGISTRAR: Final = frozenset(
    {"udp_host", "udp_port", "forward", "spool", "spool_max", "spool_keep", "settle", "patience", "site"}
)
"""Settings of the registrar alone."""


def with_settings(command: Command) -> Callable[..., None]:
    """Adds a flag for each setting to a command, whose first argument is the loaded :class:`Settings`.

    The help shows all but the registrar's. A parameter ``load_again`` of the command receives a function that loads the settings again.
    """
    return _with_settings(command, Settings.model_fields.keys() - REGISTRAR)


def with_settings_of(shown: Collection[str]) -> Callable[[Command], Callable[..., None]]:
    """Like :func:`with_settings`, for a command that needs some settings: it takes the flags of all, as `run` does.

    A parameter of the command with a setting's name takes precedence over the setting. A parameter ``target`` selects files; where
    no source is configured, it is the setting as well.

    Args:
        shown: names of the settings that the command's help shows.
    """
    return lambda command: _with_settings(command, shown)


def _with_settings(command: Command, shown: Collection[str]) -> Callable[..., None]:
    own = [parameter for name, parameter in inspect.signature(command, eval_str=True).parameters.items()][1:]
    reloads = any(parameter.name == "load_again" for parameter in own)
    own = [parameter for parameter in own if parameter.name != "load_again"]

    def run(**arguments: Any) -> None:
        more = {parameter.name: arguments.pop(parameter.name) for parameter in own}
        config = Path(named) if (named := arguments.pop("config")) else None
        flags = {name: value or None if isinstance(value, list) else value for name, value in arguments.items()}
        load_again = partial(load, flags, config)
        settings = load_again()
        if reloads:
            more["load_again"] = load_again
        if not settings.sources and more.get("target"):
            settings = load({**flags, "target": more["target"]}, config)
        raise typer.Exit(command(settings, **more))

    run.__name__ = command.__name__
    run.__doc__ = command.__doc__
    parameters = [
        *own,
        _parameter("config", str, "TOML file with settings.", f"{PREFIX}CONFIG", "FILE"),
        *_setting_parameters({parameter.name for parameter in own}, shown),
    ]
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


def _setting_parameters(taken: Collection[str], shown: Collection[str]) -> list[inspect.Parameter]:
    parameters = []
    for name, field in Settings.model_fields.items():
        if name in ("mysql_password", "sources") or name in taken:
            continue
        variable = name.upper() if name.startswith("mysql_") else PREFIX + name.upper()
        kind: Any = bool if field.annotation is bool else list[str] if is_of_type(field, Names) else str
        help_text = field.description or ""
        default = default_text(field).strip("`")
        if default not in ("", "no") and "Default" not in help_text:
            help_text += f" Default: {default}."
        parameters.append(_parameter(name, kind, help_text, variable, _metavar(name, field), hidden=name not in shown))
    return parameters


def _metavar(name: str, field: FieldInfo) -> str:
    """The placeholder of a value in a help text. The settings themselves parse and validate values."""
    if isinstance(field.annotation, type) and issubclass(field.annotation, StrEnum):
        return "|".join(field.annotation)
    if is_of_type(field, Seconds):
        return "TIME"
    if is_of_type(field, Delays):
        return "TIME,…"
    if is_of_type(field, Bytes):
        return "SIZE"
    if is_of_type(field, Timestamp):
        return "DATE"
    if Path in (field.annotation, *get_args(field.annotation)):
        return "PATH"
    return {
        "target": "NAME",
        "streams": "PUB-ID",
        "finalize_as": "[ARCHIVE=]ID",
        "forward": "HOST:PORT",
        "host": "[USER@]HOST",
    }.get(name, "NUMBER" if int in (field.annotation, *get_args(field.annotation)) else "TEXT")


def _parameter(
    name: str, kind: Any, help_text: str, variable: str, metavar: str, *, hidden: bool = False
) -> inspect.Parameter:
    flag = f"--{name.replace('_', '-')}"
    option = typer.Option(
        f"{flag}/--no-{flag[2:]}" if kind is bool else flag,
        help=f"{help_text} [{variable}]",
        show_default=False,
        hidden=hidden,
        metavar=None if kind is bool else metavar,
    )
    annotation = Annotated[kind | None, option]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)
