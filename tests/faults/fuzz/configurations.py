"""Settings from every place that they are read from: flags, environment, file."""

from __future__ import annotations

import contextlib
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from cdc_archiver.errors import Misconfigured
from cdc_archiver.settings import Settings, load
from fuzz.corpus import SECRET, a_text, mangled

LITERALS: Final = (
    '""',
    '"/data/pysmurf"',
    '"data@smurf-srv"',
    '"-oProxyCommand=x"',
    '"a\\nb"',
    '"a\\u0000b"',
    '"\\u001b[2J"',
    "'''\nseveral\nlines'''",
    "5",
    "-1",
    "0",
    "1_000",
    "0x7fffffffffffffffffffffff",
    "9" * 5000,
    "1e400",
    "inf",
    "nan",
    "1.5",
    "true",
    "1979-05-27T07:32:00Z",
    "07:32:00",
    "0000-00-00",
    "[]",
    '["m", "n"]',
    '["m", 5, [true]]',
    "[[[]]]",
    "[" * 3000,
    "{}",
    '{ a = "b" }',
    '"5m"',
    '"64M"',
    '"D755,F644"',
    '"D2775,F664"',
    '"json"',
    '"~nobody/x"',
    '"${HOME}"',
)
SECRETS: Final = (f'"{SECRET}"', f'["{SECRET}"]', f'{{ secret = "{SECRET}" }}')
"""Values of the password only: the value of another setting is not a secret."""
FIELDS: Final = tuple(Settings.model_fields)


@dataclass
class Configuration:
    """The inputs that settings are read from.

    Attributes:
        config: the TOML file's bytes; None for no file.
    """

    config: bytes | None
    flags: dict[str, Any]
    environment: dict[str, str]


def _line(rng: random.Random, *keys: str) -> str:
    key = rng.choice(keys)
    return f"{key} = {rng.choice(SECRETS if key == 'mysql_password' and rng.random() < 0.5 else LITERALS)}"


def make_configuration(rng: random.Random) -> Configuration:
    config = None
    if rng.random() < 0.7:
        lines = [_line(rng, *FIELDS) for _ in range(rng.randrange(4))]
        for _ in range(rng.choice((0, 0, 1, 2))):
            lines += [rng.choice(("[[sources]]", "[[sources]]", "[sources]"))]
            keys = (
                "name",
                "host",
                "target",
                "user",
                "ssh_key",
                "source_root",
                "bwlimit",
                "workers",
                rng.choice(FIELDS),
            )
            lines += [_line(rng, *keys) for _ in range(rng.randrange(4))]
        text = "\n".join(lines)
        config = (mangled(rng, text) if rng.random() < 0.3 else text).encode("utf-8", "surrogatepass")

    # No flag and no variable can hold a NUL.
    def words() -> str:
        return a_text(rng).replace("\0", "")

    flags: dict[str, Any] = {rng.choice(FIELDS[:-1]): words() for _ in range(rng.choice((0, 1, 2)))}
    flags.pop("mysql_password", None)
    if "target" in flags or rng.random() < 0.4:
        flags["target"] = [words() for _ in range(rng.randrange(1, 3))] if rng.random() < 0.3 else ["m"]
    environment = {}
    for name in rng.sample(FIELDS, rng.choice((0, 1, 2))):
        variable = name.upper() if name.startswith("mysql_") else f"CDC_ARCHIVER_{name.upper()}"
        environment[variable] = words()
    if rng.random() < 0.1:
        environment[f"CDC_ARCHIVER_{words().replace('=', '')}"] = words()
    if rng.random() < 0.5:
        environment["MYSQL_PASSWORD"] = SECRET
    return Configuration(config, flags, environment)


class SettingsTarget:
    """The settings, with a directory for the configuration file."""

    def __init__(self, directory: Path) -> None:
        self._file = directory / "site.toml"

    def check(self, configuration: Configuration) -> None:
        if configuration.config is not None:
            self._file.write_bytes(configuration.config)
        try:
            settings = load(
                configuration.flags, self._file if configuration.config is not None else None, configuration.environment
            )
            said = repr(settings) + str(settings) + repr(settings.sources)
            with contextlib.suppress(Misconfigured):
                _ = settings.password
            _ = settings.modes, settings.targets
            for part in (settings, *settings.sources):
                paths = [value for name in type(part).model_fields if isinstance(value := getattr(part, name), Path)]
                assert not any("\0" in str(path) for path in paths), "no file can have this name"
        except Misconfigured as error:
            said = str(error)
            assert said
            assert len(said.splitlines()) == 1, "an error is one line"
            assert "\x1b" not in said, "an error contains no escape sequence"
        assert SECRET not in said, "a password is shown"
