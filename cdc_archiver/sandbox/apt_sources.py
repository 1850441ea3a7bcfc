"""Debian's package sources as configured on this machine: read, reduced to Debian's own, changed to another suite."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

_OWN_PATHS = {"debian", "debian-security"}
"""What one part of the path of a Debian mirror is called, the security archive's included."""

_OWN_KEYRING = "debian-archive"
"""Part of the file name of Debian's own signing keys."""

_MOVING_NAMES = ("oldoldstable", "oldstable", "stable", "testing", "unstable", "sid")
_KEPT_FIELDS = ("Signed-By", "Architectures", "Trusted", "Check-Valid-Until")


@dataclass(frozen=True)
class AptSource:
    """One archive of binary packages: addresses, suites, components, and apt's options."""

    uris: tuple[str, ...]
    suites: tuple[str, ...]
    components: tuple[str, ...]
    options: tuple[tuple[str, str], ...] = ()
    """apt's fields (`Signed-By` and others) that decide what is fetched and trusted."""

    @property
    def signed_by(self) -> str:
        """The key file or the key itself that the archive is checked against; empty for apt's global ones."""
        return dict(self.options).get("Signed-By", "")

    def stanza(self) -> str:
        """The source in apt's deb822 format."""
        fields = [
            ("Types", "deb"),
            ("URIs", " ".join(self.uris)),
            ("Suites", " ".join(self.suites)),
            ("Components", " ".join(self.components)),
            *self.options,
        ]
        return "".join(f"{name}: {value}\n" for name, value in fields)


def read_sources(directory: Path = Path("/etc/apt")) -> list[AptSource]:
    """Every enabled binary source of the apt configuration in `directory`, in either of apt's two formats."""
    parts = directory / "sources.list.d"
    sources: list[AptSource] = []
    for file in [directory / "sources.list", *sorted(parts.glob("*.list"))]:
        if file.is_file():
            sources += parse_one_line(file.read_text(errors="replace"))
    for file in sorted(parts.glob("*.sources")):
        sources += parse_deb822(file.read_text(errors="replace"))
    return sources


def parse_one_line(text: str) -> list[AptSource]:
    """The sources of a `sources.list` file: `deb [option=value …] uri suite component …`."""
    sources = []
    for line in text.splitlines():
        found = re.match(r"deb\s+(?:\[(?P<options>[^]]*)\]\s*)?(?P<rest>\S.*)$", line.partition("#")[0].strip())
        if not found or len(words := found["rest"].split()) < 2:
            continue
        pairs = (option.partition("=") for option in (found["options"] or "").split())
        given = {name.lower(): value.replace(",", " ") for name, _, value in pairs}
        # The one-line format says "arch" where the other says "Architectures".
        given.setdefault("architectures", given.pop("arch", ""))
        sources.append(AptSource((words[0],), (words[1],), tuple(words[2:]), _options(given)))
    return sources


def parse_deb822(text: str) -> list[AptSource]:
    """The sources of a `.sources` file: stanzas of `Field: value`, a value going on in lines that begin with a blank."""
    sources = []
    for stanza in re.split(r"\n[ \t]*\n", text):
        fields: dict[str, str] = {}
        name = ""
        for line in stanza.splitlines():
            if line.startswith("#"):
                continue
            if line[:1] in (" ", "\t") and name:
                fields[name] += "\n" + line.rstrip()
            elif ":" in line:
                name, _, value = line.partition(":")
                name = name.strip().lower()
                fields[name] = value.strip()
        enabled = fields.get("enabled", "yes").lower() not in ("no", "false", "0")
        if enabled and "deb" in fields.get("types", "").split() and fields.get("uris") and fields.get("suites"):
            sources.append(
                AptSource(
                    tuple(fields["uris"].split()),
                    tuple(fields["suites"].split()),
                    tuple(fields.get("components", "").split()),
                    _options(fields),
                )
            )
    return sources


def debian_sources(sources: Iterable[AptSource], codename: str) -> list[AptSource]:
    """Debian's own sources among `sources`, for the release called `codename` and cut down to component main.

    Third-party archives are left out: by their suite, their signing key, or a path that no Debian mirror has.
    """
    own = []
    for source in sources:
        suites = tuple(suite for suite in source.suites if _is_own_suite(suite, codename))
        if suites and "main" in source.components and _is_debian(source):
            own.append(replace(source, suites=suites, components=("main",)))
    return own


def as_suite(sources: Sequence[AptSource], codename: str, suite: str) -> list[AptSource]:
    """The main archive of `sources` (already Debian's own) changed to another `suite`; empty if it is absent.

    The security archive has other paths and lacks that suite: the entry whose suite has no suffix is the one to use.
    """
    for source in sources:
        if any(name == codename or name in _MOVING_NAMES for name in source.suites):
            return [replace(source, suites=(suite,))]
    return []


def _is_own_suite(suite: str, codename: str) -> bool:
    base = suite.partition("/")[0]
    for suffix in ("-updates", "-security", "-proposed-updates"):
        base = base.removesuffix(suffix)
    return base == codename or base in _MOVING_NAMES


def _is_debian(source: AptSource) -> bool:
    key = source.signed_by
    if key and "BEGIN PGP" not in key:
        return _OWN_KEYRING in key
    return any(_OWN_PATHS.intersection(re.split(r"/+", uri)) for uri in source.uris)


def _options(given: dict[str, str]) -> tuple[tuple[str, str], ...]:
    return tuple((name, given[name.lower()]) for name in _KEPT_FIELDS if given.get(name.lower()))
