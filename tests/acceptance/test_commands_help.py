"""All commands of the operator: help with examples, completion, the flags of `run`, a row in docs/commands.md."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest
from private_site import PrivateSite

from cdc_archiver import cli

COMMANDS = ("status", "why", "list", "retry", "ignore", "verify", "register", "shadow")
COMMANDS_PAGE = Path(__file__).parents[2] / "docs/commands.md"


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_examples_and_the_exit_status_and_hides_what_the_command_does_not_use(
    stage: PrivateSite, command: str
) -> None:
    done = stage.command(command, "--help")
    assert done.returncode == 0
    assert f"cdc-archiver {command}" in done.stdout
    assert "Examples:" in done.stdout
    assert "Exit status: 0 " in done.stdout
    assert "--json" in done.stdout
    assert "--mysql-host" in done.stdout
    assert "--stall-timeout" not in done.stdout
    assert f"| `cdc-archiver {command}" in COMMANDS_PAGE.read_text()


def test_every_command_takes_the_flags_of_run(stage: PrivateSite) -> None:
    # As a script has them, in one variable.
    stage.register(stage.file("file.npy"))
    flags = stage.flags(stall_timeout="3m", chmod="D750,F640", sweep_interval="5m")
    for words, status in (
        (["status"], 0),
        (["why", "1"], 0),
        (["list"], 0),
        (["retry", "--all-quarantined"], 0),
        (["ignore", "1", "--dry-run"], 0),
        (["register", str(stage.sources), "--action", "a", "--pub-id", "p", "--dry-run"], 0),
        (["shadow", "--once"], 0),
        (["verify"], 4),  # there is no archive yet
    ):
        done = stage.command(*words, *flags)
        assert done.returncode == status, (words, done.stderr)


def test_sources_of_a_file_are_filtered_by_name_and_by_target(stage: PrivateSite) -> None:
    config = stage.directory / "site.toml"
    config.write_text(
        '[[sources]]\nname = "one"\ntarget = ["m1"]\n\n[[sources]]\nname = "two"\ntarget = ["m2", "m3"]\n'
    )
    file = stage.file("file.npy")
    one, two, three, others = (stage.register(file, instance_id=name)[0] for name in ("m1", "m2", "m3", "m4"))

    def ids(*words: str) -> list[int]:
        done = stage.command("list", "--config", str(config), *words)
        assert done.returncode == 0, done.stderr
        return [int(line.split("\t")[0]) for line in done.stdout.splitlines()]

    assert ids() == [three, two, one]
    assert ids("--source", "two") == [three, two]
    assert ids("--target", "m3", "--source", "one") == [three, one]
    assert ids("--target", "m4") == [others]
    done = stage.command("list", "--config", str(config), "--source", "three")
    assert (done.returncode, done.stderr) == (2, "cdc-archiver: unknown source: 'three'; fix: use one of one, two\n")


def test_the_shell_completes_commands(stage: PrivateSite) -> None:
    asked = {
        "_CDC_ARCHIVER_COMPLETE": "complete_bash",
        "COMP_WORDS": "cdc-archiver re",
        "COMP_CWORD": "1",
    }
    done = stage.process(environment=asked)
    assert done.returncode == 0, done.stderr
    assert "retry" in done.stdout
    assert "register" in done.stdout
    assert "status" not in done.stdout
    assert "--install-completion" in stage.command("--help").stdout


def test_cli_only_wires_the_commands() -> None:
    # Each verb has a module or package of its own; cli only wires them.
    assert len(inspect.getsource(cli).splitlines()) < 300
