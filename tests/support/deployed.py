"""What the tests of `deploy/` share: its files as values, schemas, and compose's way with variables."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema
import yaml

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
VERSION: str = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]

_VARIABLE = re.compile(r"\$\{(?P<name>\w+)(?:(?P<operator>:-|:\?)(?P<word>[^}]*))?\}")


def read(path: Path) -> Any:
    """A YAML file's one document."""
    return yaml.safe_load(path.read_text())


@cache
def schema(name: str) -> Any:
    """A published schema, as check-jsonschema ships it: ``compose-spec`` or ``github-workflows``."""
    return json.loads((files("check_jsonschema") / "builtin_schemas" / "vendor" / f"{name}.json").read_text())


def validate(document: Any, name: str) -> None:
    """Fails where a document is not what its schema says."""
    validator = jsonschema.validators.validator_for(schema(name))(schema(name))
    problems = [f"{error.json_path}: {error.message}" for error in validator.iter_errors(document)]
    assert not problems, "\n".join(problems)


def interpolated(value: Any, environment: Mapping[str, str]) -> Any:
    """A compose file's value with its variables put in, as compose does it."""
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


def _word(match: re.Match[str], environment: Mapping[str, str]) -> str:
    if given := environment.get(match["name"]):
        return given
    assert match["operator"] == ":-", f"{match['name']} is not set"
    return match["word"]
