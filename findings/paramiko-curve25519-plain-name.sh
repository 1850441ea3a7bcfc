#!/usr/bin/env bash
# Software: paramiko 5.1.0 as client, asyncssh 2.24.1 as server, OpenSSH's ssh for comparison.
#
# Behaviour: the key exchange curve25519-sha256 has two names, the plain one of RFC 8731 and an
#   older one that ends in @libssh.org. paramiko knows the older name alone. It cannot talk to a
#   server that allows the plain name alone: "Incompatible ssh peer (no acceptable kex algorithm)".
# Fair guess: a client that does curve25519 does it under the standard's name, so what ssh and
#   rsync reach, a check through paramiko reaches too.
# What to do: let the server allow the older name or another exchange too; or ask with ssh itself.
#
# Output seen:
#   server allows curve25519-sha256            : asyncssh: ok
#   server allows curve25519-sha256            : OpenSSH: ok
#   server allows curve25519-sha256            : paramiko: IncompatiblePeer
#   server allows curve25519-sha256@libssh.org : paramiko: ok
#
# Exit status: 0 the behaviour is as said, 1 it has changed, 2 it could not be tried.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
not_run() { echo "NOT RUN: $*" >&2; exit 2; }

python3 -m venv "$work/venv" || not_run "no python3 with venv"
"$work/venv/bin/pip" --quiet install paramiko==5.1.0 asyncssh==2.24.1 \
    cryptography==50.0.2 >"$work/pip.log" 2>&1 ||
    { cat "$work/pip.log" >&2; not_run "pip cannot install the packages"; }

HOME="$work" timeout 100 "$work/venv/bin/python" - <<'END'
import asyncio
import logging
import shutil
import sys

import asyncssh
import paramiko

PLAIN = "curve25519-sha256"
OLDER = "curve25519-sha256@libssh.org"
logging.getLogger("paramiko").setLevel(logging.CRITICAL + 1)


class Open(asyncssh.SSHServer):
    """A server on loopback that lets everybody in and offers nothing."""

    def begin_auth(self, username):
        return False


def ask_paramiko(port):
    transport = paramiko.Transport(("127.0.0.1", port))
    try:
        transport.start_client(timeout=20)
        return "ok"
    except paramiko.SSHException as error:
        return type(error).__name__
    finally:
        transport.close()


async def ask_asyncssh(port):
    client = await asyncssh.connect("127.0.0.1", port, known_hosts=None, config=None, username="x")
    client.close()
    await client.wait_closed()
    return "ok"


async def ask_openssh(port):
    process = await asyncio.create_subprocess_exec(
        "ssh", "-v", "-F", "none", "-N", "-p", str(port), "-o", "BatchMode=yes",
        "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "x@127.0.0.1",
        stdin=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE,
    )
    answer = "no login"
    try:
        async with asyncio.timeout(20):
            async for line in process.stderr:
                if line.startswith(b"Authenticated to"):
                    answer = "ok"
                    break
    except TimeoutError:
        pass
    if process.returncode is None:
        process.terminate()
    await process.wait()
    return answer


def report(kex, client, answer, expected):
    print(f"server allows {kex:28} : {client}: {answer}", flush=True)
    if answer != expected:
        sys.exit(f"CHANGED: {client} with {kex}: expected {expected!r}, got {answer!r}")


async def main():
    print("paramiko", paramiko.__version__, "asyncssh", asyncssh.__version__)
    key = asyncssh.generate_private_key("ssh-ed25519")
    for kex, expected in ((PLAIN, "IncompatiblePeer"), (OLDER, "ok")):
        async with await asyncssh.create_server(
            Open, "127.0.0.1", 0, server_host_keys=[key], kex_algs=[kex]
        ) as server:
            port = server.sockets[0].getsockname()[1]
            report(kex, "asyncssh", await ask_asyncssh(port), "ok")
            if shutil.which("ssh"):
                report(kex, "OpenSSH", await ask_openssh(port), "ok")
            report(kex, "paramiko", await asyncio.to_thread(ask_paramiko, port), expected)
    print("As described: paramiko does this exchange, and does not know its standard name.")


asyncio.run(main())
END
