"""For tests of `deploy/`: its files as values, schemas, and compose's substitution of variables."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import tomllib
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema
import yaml
from private_site import PrivateSite

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
VERSION: str = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]

_VARIABLE = re.compile(r"\$\{(?P<name>\w+)(?:(?P<operator>:-|:\?)(?P<word>[^}]*))?\}")


def read(path: Path) -> Any:
    """The single document of a YAML file."""
    return yaml.safe_load(path.read_text())


@cache
def schema(name: str) -> Any:
    """A schema of tests/deploy (``servicemonitor``), or as check-jsonschema ships it (``compose-spec``, ``github-workflows``)."""
    if (ours := ROOT / f"tests/deploy/{name}.json").exists():
        return json.loads(ours.read_text())
    return json.loads((files("check_jsonschema") / "builtin_schemas" / "vendor" / f"{name}.json").read_text())


def validate(document: Any, name: str) -> None:
    """Fails if a document violates its schema."""
    validator = jsonschema.validators.validator_for(schema(name))(schema(name))
    problems = [f"{error.json_path}: {error.message}" for error in validator.iter_errors(document)]
    assert not problems, "\n".join(problems)


def interpolated(value: Any, environment: Mapping[str, str]) -> Any:
    """A compose file's value with its variables substituted, as compose does."""
    if isinstance(value, dict):
        return {key: interpolated(inner, environment) for key, inner in value.items()}
    if isinstance(value, list):
        return [interpolated(inner, environment) for inner in value]
    return _VARIABLE.sub(lambda match: _word(match, environment), value) if isinstance(value, str) else value


def seconds(text: str) -> float:
    """A duration of compose: ``30s``, ``1m``."""
    match = re.fullmatch(r"(\d+)(s|m)", text)
    assert match, f"{text!r} is no duration that this test knows"
    return int(match[1]) * {"s": 1, "m": 60}[match[2]]


def initial_sql(file: Path, environment: Mapping[str, str], secrets: Path = Path("/run/secrets")) -> str:
    """The SQL that a script of the database's directory runs in its image."""
    # The image would run an executable script as a separate program, without the function.
    assert not os.access(file, os.X_OK)
    script = file.read_text().replace("/run/secrets", str(secrets))
    shell = shutil.which("bash")
    assert shell
    return subprocess.run(
        [shell, "-euc", f"docker_process_sql() {{ cat; }}\n{script}"],
        check=True,
        capture_output=True,
        text=True,
        env={"PATH": os.environ["PATH"], **environment},
    ).stdout


@contextlib.contextmanager
def set_up_database(stage: PrivateSite, secrets: Path, **site: str) -> Iterator[None]:
    """Runs the scripts of the directory, as the database's image does at its first start.

    Args:
        site: variables of compose.yaml.
    """
    given = interpolated(read(DEPLOY / "compose.yaml"), site)["services"]["mysql"]["environment"]
    try:
        for file in sorted((DEPLOY / "database").iterdir()):
            for statement in initial_sql(file, {**given, "MYSQL_DATABASE": stage.database}, secrets).split(";"):
                if statement.strip():
                    stage.sql(statement)
        yield
    finally:
        for user in ("archiver", "monitor"):
            stage.server.execute(f"DROP USER IF EXISTS '{user}'@'%'")


def _word(match: re.Match[str], environment: Mapping[str, str]) -> str:
    if given := environment.get(match["name"]):
        return given
    assert match["operator"] == ":-", f"{match['name']} is not set"
    return match["word"]
