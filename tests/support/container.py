"""Containers without a daemon: an image built by buildah, run in its own namespaces as an engine would run it.

No registry is used: the base is Debian, made by debootstrap from the machine's own package source, unless ``IMAGE_BASE`` names
another image. Both are kept in the cache directory.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import shlex
import shutil
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from waiting import PATIENCE, eventually

from cdc_archiver.sandbox.apt_sources import debian_sources, read_sources
from cdc_archiver.sandbox.packages import cache_directory

ROOT = Path(__file__).parents[2]
SUITE = "trixie"
PACKAGES = ("buildah", "debootstrap", "util-linux")
_PROGRAMS = ("buildah", "debootstrap", "unshare", "nsenter", "setpriv")
_CERTIFICATES = "/etc/ssl/certs/ca-certificates.crt"
_LIMIT = 900.0
"""Seconds that a build may take."""

_NAMESPACES = ("unshare", "--mount", "--pid", "--fork", "--propagation", "private", "--")

# The work of an engine, in a mount and a process namespace: read-only image, mounts, account.
_ENTER = """
mount --bind "$ROOT" "$ROOT"
mount -o remount,bind,ro "$ROOT"
mount -t proc proc "$ROOT/proc"
mount --rbind /dev "$ROOT/dev"
mount -t tmpfs -o mode=1777 tmpfs "$ROOT/tmp"
mount --bind /etc/hosts "$ROOT/etc/hosts"
"""


@dataclass(frozen=True)
class Image:
    """An image, with its configuration.

    Attributes:
        size: bytes of all layers, unpacked.
        base_size: bytes of the layers of its base.
    """

    name: str
    config: Mapping[str, Any]
    size: int
    base_size: int

    @property
    def command(self) -> list[str]:
        """The default command."""
        return [*self.config["Entrypoint"], *self.config["Cmd"]]

    @property
    def environment(self) -> dict[str, str]:
        return dict(pair.split("=", 1) for pair in self.config["Env"])

    @property
    def health_check(self) -> list[str]:
        kind, *words = self.config["Healthcheck"]["Test"]
        assert kind == "CMD", "it must not need a shell"
        return list(words)


@dataclass
class Container:
    """A container: read-only, with a writable /tmp, on the machine's network, without capabilities unless it is root.

    Attributes:
        user: ``uid:gid``.
        mounts: directories and files of the machine, by their path in the container.
        arguments: replace the image's command, after its entry point; None: the command.
    """

    image: Image
    log: Path
    user: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)
    mounts: Mapping[str, Path] = field(default_factory=dict)
    arguments: Sequence[str] | None = None
    entry_point: Sequence[str] | None = None

    def __enter__(self) -> Self:
        self._id = _buildah("from", "--pull-never", self.image.name)
        root = Path(_buildah("mount", self._id))
        script = ["set -eu", f"ROOT={shlex.quote(str(root))}", _ENTER]
        for place, source in self.mounts.items():
            point = root / place.lstrip("/")
            # An engine creates the mount points.
            if source.is_dir():
                point.mkdir(parents=True, exist_ok=True)
            else:
                point.parent.mkdir(parents=True, exist_ok=True)
                point.touch()
            script.append(f'mount --bind {shlex.quote(str(source))} "$ROOT"{shlex.quote(place)}')
        (root / "etc/hosts").touch()
        command = [
            *(self.image.config["Entrypoint"] if self.entry_point is None else self.entry_point),
            *(self.image.config["Cmd"] if self.arguments is None else self.arguments),
        ]
        script.append(f'exec chroot "$ROOT" {shlex.join([*self._as_user(), *self._in_its_directory(), *command])}')
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                [*_NAMESPACES, "sh", "-c", "\n".join(script)],
                env=self._variables(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        return self

    def __exit__(self, *_: object) -> None:
        # The end of its process 1 ends all its processes. (--kill-child has no effect after a change of the account.)
        while self._process.poll() is None:
            with contextlib.suppress(AssertionError, OSError):  # it may have ended meanwhile
                os.kill(self.first, signal.SIGKILL)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(1.0)
        _buildah("rm", self._id)

    @property
    def said(self) -> str:
        return self.log.read_text(errors="replace")

    @property
    def first(self) -> int:
        """The machine's process id of its process 1."""
        listed = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children")
        children = lambda: listed.read_text().split() if self._process.poll() is None else ["0"]
        first = int(eventually(children, "it runs")[0])
        assert first, f"it has ended: {self.said}"
        # Before that it is still entering the namespaces.
        eventually(lambda: os.readlink(f"/proc/{first}/root") != "/", "it is in its own root")
        return first

    def execute(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Runs another program in it, as an engine does for a health check."""
        return subprocess.run(
            [
                *("nsenter", f"--target={self.first}", "--mount", "--pid", "--root", "--"),
                *self._as_user(),
                *self._in_its_directory(),
                *command,
            ],
            check=False,
            env=self._variables(),
            capture_output=True,
            text=True,
            timeout=60,
        )

    def stop(self) -> int:
        """Stops it as an engine does, with the image's signal; its exit status."""
        os.kill(self.first, signal.Signals[self.image.config.get("StopSignal") or "SIGTERM"])
        return self.wait()

    def wait(self) -> int:
        """Waits for its end; the exit status."""
        return self._process.wait(PATIENCE)

    def _variables(self) -> dict[str, str]:
        return {**self.image.environment, **self.environment}

    def _in_its_directory(self) -> list[str]:
        return ["env", f"--chdir={self.image.config.get('WorkingDir') or '/'}"]

    def _as_user(self) -> list[str]:
        uid, _, gid = (self.user or self.image.config["User"]).partition(":")
        words = ["setpriv", f"--reuid={uid}", f"--regid={gid or uid}", "--clear-groups", "--no-new-privs"]
        return words if uid == "0" else [*words, "--inh-caps=-all", "--bounding-set=-all"]


def missing() -> str:
    """What this machine lacks to build and run an image, with the fix; fetched first if possible. Empty: nothing."""
    if os.getuid() != 0:
        return "building and running an image without a container engine takes root: sudo make image-test"
    if absent := [program for program in _PROGRAMS if shutil.which(program) is None]:
        for command in (["update"], ["install", "--yes", "--no-install-recommends", *PACKAGES]):
            done = subprocess.run(
                ["apt-get", "-qq", *command],
                check=False,
                env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
                capture_output=True,
                text=True,
                timeout=_LIMIT,
            )
            if done.returncode:
                return f"{', '.join(absent)}: not here, and apt-get says {done.stderr.strip()}"
    return ""


@functools.cache
def build(target: str, **arguments: str) -> Image:
    """Builds one stage of the Dockerfile.

    Args:
        arguments: of the build, such as ``VERSION``.
    """
    base = _base()
    name = f"localhost/cdc_archiver-{target}:test"
    given = [f"--build-arg={key}={value}" for key, value in {"BASE": base, **arguments}.items()]
    # Some networks have their own certificate authority, which the machine trusts.
    trusted = [f"--volume={_CERTIFICATES}:{_CERTIFICATES}:ro"] if Path(_CERTIFICATES).exists() else []
    _buildah(
        "bud",
        "--isolation=chroot",
        "--format=docker",
        f"--target={target}",
        *trusted,
        *given,
        f"--tag={name}",
        str(ROOT),
    )
    inspected = json.loads(_buildah("inspect", "--type=image", name))
    return Image(name, inspected["Docker"]["config"], _size(name), _size(base))


def _size(name: str) -> int:
    (image,) = json.loads(_buildah("images", "--json", name))
    container = _buildah("from", "--pull-never", name)
    try:
        done = subprocess.run(["du", "-sxb", _buildah("mount", container)], check=True, capture_output=True, text=True)
    finally:
        _buildah("rm", container)
    assert image["id"]
    return int(done.stdout.split()[0])


def _base() -> str:
    """The base image."""
    if given := os.environ.get("IMAGE_BASE"):
        return given
    name = f"localhost/cdc_archiver-base:{SUITE}"
    if _buildah("images", "--quiet", "--filter", f"reference={name}"):
        return name
    # Without apt's lists and packages, like a base image from a registry.
    root = cache_directory() / "containers" / "debian"
    shutil.rmtree(root, ignore_errors=True)
    root.parent.mkdir(parents=True, exist_ok=True)
    sources = debian_sources(read_sources(), _codename())
    mirror = next(uri for source in sources for uri in source.uris if "security" not in uri)
    _run("debootstrap", "--variant=minbase", "--include=ca-certificates,python3,python3-venv", SUITE, str(root), mirror)
    for leftover in ("var/lib/apt/lists", "var/cache/apt", "usr/share/doc", "usr/share/man", "usr/share/locale"):
        shutil.rmtree(root / leftover, ignore_errors=True)
    container = _buildah("from", "scratch")
    _buildah("add", "--quiet", container, str(root), "/")
    _buildah("commit", "--quiet", "--rm", container, name)
    shutil.rmtree(root)
    return name


def _codename() -> str:
    words = dict(line.split("=", 1) for line in Path("/etc/os-release").read_text().splitlines() if "=" in line)
    return words.get("VERSION_CODENAME", SUITE).strip('"')


def _buildah(*arguments: str) -> str:
    # A separate store, with the only driver that works everywhere.
    store = cache_directory() / "containers"
    return _run(
        "buildah", f"--root={store / 'store'}", f"--runroot={store / 'run'}", "--storage-driver=vfs", *arguments
    )


def _run(*command: str) -> str:
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=_LIMIT)
    assert done.returncode == 0, f"{shlex.join(command)}:\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return done.stdout.strip()
