"""Programs, from the machine itself or from Debian packages in a private directory, without root.

A program of the machine is used as it is. If there is none, apt downloads its packages into a cache directory, where they are
unpacked; the system is not changed. There are two kinds of such a package root:

- of the machine's own suite: it holds only what the machine lacks and uses the machine's libraries for the rest;
- of another suite: it is complete, C library included, and its programs run through its own loader.
"""

import contextlib
import fcntl
import functools
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from cdc_archiver.sandbox.apt_sources import as_suite, debian_sources, read_sources
from cdc_archiver.sandbox.child_process import SandboxError

_SYSTEM_DIRECTORIES = ("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin")
"""Searched after PATH: a normal user's PATH lacks the sbin directories, where servers are."""

_TRIES = 3
_PAUSE = 3.0
"""Seconds between two tries at a download."""

_DOWNLOAD_LIMIT = 600.0
"""Seconds that one run of apt may take."""

_LAYOUT = 1
"""Increased when the content of a package root changes, so that older ones are replaced."""


@dataclass(frozen=True)
class Bundle:
    """Packages that are fetched together."""

    name: str
    packages: tuple[str, ...]
    programs: tuple[str, ...]
    suite: str | None = None
    """None for the machine's own suite."""


BUNDLES = {
    bundle.name: bundle
    for bundle in (
        Bundle(
            "mariadb",
            ("mariadb-server-core", "mariadb-client-core"),
            ("mariadbd", "mariadb-install-db", "mariadb"),
        ),
        # Debian's releases have no MySQL server; its unstable suite has one.
        Bundle("mysql", ("mysql-server-core",), ("mysqld",), suite="sid"),
        Bundle(
            "ssh",
            ("openssh-server", "openssh-client", "rsync", "libnss-wrapper"),
            ("sshd", "ssh", "ssh-keygen", "rsync", "rrsync"),
        ),
        Bundle("prometheus", ("prometheus",), ("prometheus", "promtool")),
        # A headless browser: a fifth smaller than the complete one. It needs fonts.
        Bundle("browser", ("chromium-headless-shell", "fonts-dejavu-core"), ("chromium-headless-shell",)),
    )
}

_BUNDLE_OF = {program: bundle for bundle in BUNDLES.values() for program in bundle.programs}


@dataclass(frozen=True)
class Tool:
    """A program that can be run on this machine."""

    name: str
    path: Path
    """The program itself, not a link to it."""
    root: Path
    """The root of its files: `/`, or a private package root."""
    loader: tuple[str, ...] = ()
    """Prefix of its command line: its own loader and the directories of its libraries."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Environment variables that it needs in addition."""

    @property
    def private(self) -> bool:
        """Whether it comes from a private package root."""
        return self.root != Path("/")

    def command(self, *arguments: str | Path) -> list[str]:
        """The command line that runs it."""
        return [*self.loader, str(self.path), *map(str, arguments)]

    def environ(self) -> dict[str, str]:
        """This process's environment and the variables that the tool needs."""
        return {**os.environ, **self.environment}

    def run(self, *arguments: str | Path, timeout: float = 120.0) -> str:
        """Run it to its end; its output. SandboxError if it fails or takes longer than `timeout` seconds."""
        return _run(self.command(*arguments), self.environ(), timeout)


def cache_directory() -> Path:
    """The directory of packages and prepared data: `$CDC_ARCHIVER_CACHE`, or below the user's cache directory."""
    if given := os.environ.get("CDC_ARCHIVER_CACHE"):
        return Path(given).absolute()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "cdc_archiver"


def bin_directory() -> Path:
    """A directory for PATH, with an executable for each fetched program."""
    return cache_directory() / "bin"


@contextlib.contextmanager
def workshop(name: str) -> Iterator[Path]:
    """Lock one part of the cache against other processes and threads that would build in it.

    Arguments:
        name: the part; one may be locked inside another.

    Yields:
        an empty directory to build in, on the cache's disk; removed afterwards, like the rest of a killed builder.

    Raises:
        SandboxError: the cache cannot be written.
    """
    scratch = cache_directory() / f"{name}.unfinished"
    try:
        scratch.parent.mkdir(parents=True, exist_ok=True)
        lock = (cache_directory() / f"{name}.lock").open("w")
    except OSError as error:
        raise SandboxError(
            f"the cache directory {cache_directory()} cannot be written ({error.strerror}); "
            "name another one in CDC_ARCHIVER_CACHE"
        ) from error
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir()
        try:
            yield scratch
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


def find(program: str) -> Tool:
    """The program, fetched first if the machine lacks it; a fetched one also gets an entry in the bin directory.

    Arguments:
        program: its name, without a directory.

    Raises:
        SandboxError: it is not installed and could not be fetched; the message names the packages to install.
    """
    if found := find_on_system(program):
        return Tool(program, found, Path("/"))
    if program not in _BUNDLE_OF:
        raise SandboxError(f"{program} is not installed, and no package is known that has it")
    bundle = _BUNDLE_OF[program]
    root = fetch(bundle)
    if tool := _tool_in(root, program):
        _write_entry(tool)
        return tool
    raise SandboxError(
        f"{program} is neither on PATH nor in the packages {', '.join(bundle.packages)} that were fetched into {root}; "
        f"remove that directory to fetch them again, or install {program} by hand"
    )


def find_on_system(program: str) -> Path | None:
    """The machine's own program of that name, even if its directory is not on PATH; None if there is none."""
    own = str(bin_directory())
    directories = [
        directory for directory in os.environ.get("PATH", "").split(os.pathsep) if directory and directory != own
    ]
    found = shutil.which(program, path=os.pathsep.join([*directories, *_SYSTEM_DIRECTORIES]))
    if found is None:
        return None
    path = Path(found)
    if program == "mysqld" and "mariadb" in path.resolve().name:
        return None  # MariaDB's packages also install its server under MySQL's name
    return path.absolute()


def find_library(name: str) -> Path:
    """A shared library of the `ssh` bundle (`libnss_wrapper.so`), fetched like a program if the machine lacks it."""
    bundle = BUNDLES["ssh"]
    if found := _library_in(Path("/"), name):
        return found
    if found := _library_in(fetch(bundle), name):
        return found
    raise SandboxError(f"the library {name} is neither installed nor in the packages {', '.join(bundle.packages)}")


def ensure_tools(*programs: str) -> dict[str, Tool]:
    """Make programs available by name in this process and its children.

    PATH is not changed if they are installed; otherwise the private directory is put first.

    Arguments:
        programs: names; default: `rsync` and `ssh`.

    Raises:
        SandboxError: one of them is not available.
    """
    tools = {program: find(program) for program in programs or ("rsync", "ssh")}
    if any(tool.private or shutil.which(tool.name) is None for tool in tools.values()):
        os.environ["PATH"] = path_with_tools(os.environ.get("PATH", ""))
    return tools


def path_with_tools(path: str) -> str:
    """`path` with the directory of fetched programs in front."""
    own = str(bin_directory())
    return os.pathsep.join(
        [own, *(directory for directory in path.split(os.pathsep) if directory and directory != own)]
    )


def fetch(bundle: Bundle) -> Path:
    """The bundle's package root, made first if it is absent.

    Raises:
        SandboxError: the packages cannot be fetched; the message names the packages to install.
    """
    root = cache_directory() / "roots" / bundle.name
    stamp = root / ".complete"
    wanted = _stamp(bundle)
    if _read_or_none(stamp) == wanted:
        return root
    with workshop("packages") as scratch:
        if _read_or_none(stamp) == wanted:  # another process fetched it meanwhile
            return root
        print(
            f"sandbox: fetching {', '.join(bundle.packages)} (Debian {bundle.suite or _release()}) into {root}",
            file=sys.stderr,
            flush=True,
        )
        root.parent.mkdir(exist_ok=True)
        unpacked = _download_and_unpack(bundle, scratch)
        (unpacked / ".complete").write_text(wanted)
        if root.exists():
            shutil.rmtree(root)
        unpacked.rename(root)
    return root


def _download_and_unpack(bundle: Bundle, scratch: Path) -> Path:
    archives = _download(bundle, scratch)
    root = scratch / "root"
    root.mkdir()
    for archive in archives:
        _run(["dpkg", "-x", str(archive), str(root)], dict(os.environ), 120.0)
    return root


def _download(bundle: Bundle, scratch: Path) -> list[Path]:
    by_hand = f"install {' '.join(bundle.packages)} by hand"
    for needed in ("apt-get", "apt-config", "dpkg"):
        if find_on_system(needed) is None:
            raise SandboxError(f"{', '.join(bundle.programs)}: not installed, and no {needed} to fetch it; {by_hand}")
    codename = _release()
    sources = debian_sources(read_sources(), codename)
    if bundle.suite is not None:
        sources = as_suite(sources, codename, bundle.suite)
    if not sources:
        raise SandboxError(
            f"{', '.join(bundle.programs)}: not installed, and apt's configuration names no Debian source; {by_hand}"
        )
    configuration = scratch / "apt.conf"
    directories = {name: scratch / name for name in ("state", "lists", "cache", "sources", "none")}
    for directory in directories.values():
        (directory / "partial").mkdir(parents=True)
    (directories["cache"] / "archives" / "partial").mkdir(parents=True)
    (directories["sources"] / "debian.sources").write_text("\n".join(source.stanza() for source in sources))
    (directories["state"] / "empty-status").touch()
    settings = {
        "Dir::State": directories["state"],
        "Dir::State::lists": directories["lists"],
        # With the real status, apt downloads only what the machine lacks; with an empty one, everything.
        "Dir::State::status": directories["state"] / "empty-status" if bundle.suite else "/var/lib/dpkg/status",
        "Dir::Cache": directories["cache"],
        "Dir::Etc::sourcelist": "/dev/null",
        "Dir::Etc::sourceparts": directories["sources"],
        # The machine's configuration may have hooks that change the system; only its Acquire section (proxies) is used.
        "Dir::Etc::main": "/dev/null",
        "Dir::Etc::parts": directories["none"],
        "Dir::Etc::preferences": "/dev/null",
        "Dir::Etc::preferencesparts": directories["none"],
        "APT::Sandbox::User": "root",
        "APT::Install-Recommends": "false",
        "Acquire::Languages": "none",
        "Acquire::Retries": "3",
        "Debug::NoLocking": "true",
    }
    lines = [f'{name} "{value}";\n' for name, value in settings.items()]
    configuration.write_text("".join([*_acquire_settings(), *lines]))
    environment = {**os.environ, "APT_CONFIG": str(configuration), "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"}
    error = SandboxError("")
    for attempt in range(_TRIES):
        if attempt:
            time.sleep(_PAUSE)
        try:
            _run(["apt-get", "update", "--error-on=any"], environment, _DOWNLOAD_LIMIT)
            _run(["apt-get", "install", "--yes", "--download-only", *bundle.packages], environment, _DOWNLOAD_LIMIT)
            archives = sorted((directories["cache"] / "archives").glob("*.deb"))
            if not archives:
                raise SandboxError("apt reports the packages as installed, but their programs are missing")
            return archives
        except SandboxError as caught:
            error = caught
    raise SandboxError(f"cannot fetch {', '.join(bundle.packages)}: {error}; {by_hand}, or look at apt and the network")


def _acquire_settings() -> list[str]:
    """The machine's download settings (proxies, tolerance for wrong clocks), without additional index files."""
    text = _run(["apt-config", "dump"], {**os.environ, "LC_ALL": "C"}, 30.0)
    return [
        line + "\n"
        for line in text.splitlines()
        if line.startswith("Acquire::") and not line.startswith(("Acquire::IndexTargets", "Acquire::Languages"))
    ]


def _tool_in(root: Path, program: str) -> Tool | None:
    # The browser's own directory first: its entry in usr/bin is a script that searches system directories.
    for directory in ("usr/lib/chromium", "usr/sbin", "usr/bin", "sbin", "bin"):
        path = root / directory / program
        if not path.exists():
            continue
        path = path.resolve()
        libraries = os.pathsep.join(map(str, _library_directories(root)))
        # Programs of a root with a C library need its loader: the machine's may be older than that library.
        loaders = sorted(root.glob("usr/lib/*/ld-linux*.so.*")) or sorted(root.glob("lib/*/ld-linux*.so.*"))
        if loaders and not _is_script(path):
            return Tool(program, path, root, (str(loaders[0]), "--library-path", libraries))
        return Tool(program, path, root, (), {"LD_LIBRARY_PATH": libraries} if libraries else {})
    return None


def _library_in(root: Path, name: str) -> Path | None:
    return next((directory / name for directory in _library_directories(root) if (directory / name).exists()), None)


def _library_directories(root: Path) -> list[Path]:
    triplet = sysconfig.get_config_var("MULTIARCH") or f"{platform.machine()}-linux-gnu"
    directories = (
        root / "usr/lib" / triplet,
        root / "lib" / triplet,
        root / "usr/lib/mysql/private",
        root / "usr/lib" / triplet / "pulseaudio",
    )
    return [directory for directory in directories if directory.is_dir()]


def _write_entry(tool: Tool) -> None:
    """Write an executable for a private tool to the bin directory, atomically: another process may be using it."""
    if _is_script(tool.path) and tool.name != "rrsync":
        return  # it would search system directories for its files
    if tool.name == "rrsync":
        # rrsync is a Python script that names rsync by its system path.
        text = tool.path.read_text().replace("'/usr/bin/rsync'", repr(str(bin_directory() / "rsync")))
        interpreter = Path(sys.executable).resolve()
        content = re.sub(r"\A#!.*python3?.*\n", f"#!{interpreter}\n", text)
    else:
        variables = "".join(f"{name}={shlex.quote(value)} " for name, value in tool.environment.items())
        content = (
            f"#!/bin/sh\n# Runs {tool.name} with the libraries of its private package directory.\n"
            f'{variables}exec {shlex.join(tool.command())} "$@"\n'
        )
    bin_directory().mkdir(parents=True, exist_ok=True)
    entry = bin_directory() / tool.name
    if entry.exists() and entry.read_text() == content:
        return
    handle, name = tempfile.mkstemp(prefix=f".{tool.name}-", dir=bin_directory())
    with os.fdopen(handle, "w") as file:
        file.write(content)
    Path(name).chmod(0o755)
    Path(name).rename(entry)


def _is_script(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(2) == b"#!"


def _stamp(bundle: Bundle) -> str:
    return f"{_LAYOUT} {_release()} {platform.machine()} {' '.join(bundle.packages)} {bundle.suite or ''}\n"


def _read_or_none(file: Path) -> str | None:
    try:
        return file.read_text()
    except OSError:
        return None


@functools.cache
def _release() -> str:
    """The code name of the machine's Debian release; empty on another system."""
    try:
        return platform.freedesktop_os_release().get("VERSION_CODENAME", "")
    except OSError:
        return ""


def _run(command: list[str], environment: Mapping[str, str], timeout: float) -> str:
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=dict(environment),
            timeout=timeout,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise SandboxError(f"{Path(command[0]).name} took longer than {timeout:.0f} s") from error
    except OSError as error:
        raise SandboxError(f"cannot run {command[0]}: {error}") from error
    text = done.stdout.decode(errors="replace")
    if done.returncode:
        lines = text.splitlines()
        # apt marks the lines with the cause, the first ones matter; other programs print it last.
        marked = [line for line in lines if line.startswith("E:")] or [
            line for line in lines if line.startswith("Err:")
        ]
        raise SandboxError(
            f"{Path(command[0]).name} failed ({done.returncode}): {' | '.join(marked[:2] or lines[-5:])}"
        )
    return text
