"""Several readout servers, one service or several: they come and go, and are shared."""

from __future__ import annotations

import re
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from private_site import PrivateSite
from services import Program, Served
from waiting import eventually

SHORT = (3, 0.7, 1.0, 0.2, 2.0)


def write_config(stage: PrivateSite, sources: Mapping[str, Mapping[str, Any]], **top: Any) -> Path:
    """Sources over ssh, each with a target of its own name, and these settings."""
    options = {
        name: value for name, value in stage.options().items() if name not in ("target", "host") and value is not None
    }
    lines = [f'{name} = "{value}"' for name, value in {**options, **top}.items()]
    for name, own in sources.items():
        values = {"name": name, "host": stage.ssh.host, **own}
        lines += ["[[sources]]", *(f'{key} = "{value}"' for key, value in values.items()), f'target = ["{name}"]']
    config = stage.directory / "cdc_archiver.toml"
    config.write_text("\n".join(lines) + "\n")
    return config


def started(stage: PrivateSite, config: Path, until: str = "streaming", **more: Any) -> Program:
    """The service as a program that takes all from this file, with locks that are quick to be given up."""
    script = stage.directory / "short_locks.py"
    script.write_text(
        "from cdc_archiver.database.source_locks import LockTiming\n"
        f"LockTiming.__init__.__defaults__ = {SHORT!r}\n"
        "from cdc_archiver.cli import main\n"
        "main()\n"
    )
    nothing_else: dict[str, Any] = dict.fromkeys(stage.options())
    flags = nothing_else | {"config": config, "http_port": 0} | more
    return stage.program(until=until, interpreter=(sys.executable, str(script)), **flags)


def sources_of(service: Served) -> set[str]:
    return {source["state"]["name"] for source in service.status()["sources"]}


def test_the_configuration_is_read_anew_and_no_work_is_dropped(stage: PrivateSite) -> None:
    config = write_config(stage, {"one": {"bwlimit": "300"}, "two": {}, "three": {}})
    with started(stage, config) as service:
        # Given a file of an untouched source that is on its way,
        slow = stage.file("slow.npy", size=900_000)
        (under_way,) = stage.register(slow, instance_id="one")
        eventually(lambda: service.metric("in_flight", source="one") == 1, "it is on its way")
        # when one source goes, one comes and one is changed,
        write_config(stage, {"one": {"bwlimit": "300"}, "three": {"batch_files": 7}, "four": {}}, sweep_interval="50s")
        service.signal(signal.SIGHUP)
        eventually(lambda: sources_of(service) == {"one", "three", "four"}, "the sources are the new ones")
        # then each of them is archived from, what had been under way is, and the one that went is left alone;
        ids = [
            stage.register(stage.file(f"{name}.npy"), instance_id=name)[0] for name in ("one", "two", "three", "four")
        ]
        stage.wait_archived(ids[0], ids[2], ids[3], under_way)
        assert stage.row(ids[1]).copied == 0
        assert [entry["result"] for entry in stage.history(under_way)] == ["archived"]
        # no series of it is left, and the service says what a restart would change.
        assert "two" not in {line.split('source="')[1].split('"')[0] for line in gauges(service)}
        assert "restart_needed" in service.said
        assert "sweep_interval" in service.said
        # What only has other options was nobody else's to take meanwhile.
        assert re.findall(r"source_yielded +source=(\w+)", service.said) == ["two"]
        # A file that makes no sense changes nothing, and is said.
        config.write_text("data_dir = [")
        service.signal(signal.SIGHUP)
        eventually(lambda: "not_reloaded" in service.said, "it is said")
        stage.wait_archived(*stage.register(stage.file("later.npy"), instance_id="four"))
    assert stage.count("failed_copy_attempts <> 0") == 0


def gauges(service: Served) -> list[str]:
    return [line for line in service.get("/metrics")[1].splitlines() if line.startswith("cdc_archiver_source_up{")]


def test_a_source_whose_targets_change_is_taken_anew(stage: PrivateSite) -> None:
    config = write_config(stage, {"one": {}})
    with started(stage, config) as service:
        config.write_text(config.read_text().replace('target = ["one"]', 'target = ["another"]'))
        service.signal(signal.SIGHUP)
        stage.wait_archived(*stage.register(stage.file("f.npy"), instance_id="another"))
        (mine,) = stage.register(stage.file("g.npy"), instance_id="one")
        stage.wait_archived(*stage.register(stage.file("h.npy"), instance_id="another"))
        assert stage.row(mine).copied == 0


def test_two_services_share_the_sources_and_each_takes_over_from_a_dead_one(stage: PrivateSite) -> None:
    """Killed under load: nothing is lost, charged or copied twice."""
    names = [f"srv{number}" for number in range(4)]
    config = write_config(stage, {name: {"bwlimit": "2000"} for name in names}, max_sources=2)
    with started(stage, config) as first, started(stage, config) as second:
        # Given two services that hold two sources each,
        eventually(lambda: len(sources_of(first)) == len(sources_of(second)) == 2, "they share")
        assert sources_of(first) | sources_of(second) == set(names)
        said = lambda: {each["name"] for each in first.status()["elsewhere"]} == sources_of(second)
        eventually(said, "it says where the others are")
        # when one is killed with files on their way, and more are registered,
        ids = []
        for name in names:
            files = [stage.file(f"{name}-{number:03}.npy", size=50_000) for number in range(80)]
            ids += stage.register(*files, instance_id=name)
        eventually(lambda: first.metric("copies_total", result="archived") > 5, "it is at work")
        first.kill()
        ids += [stage.register(stage.file(f"{name}-late.npy"), instance_id=name)[0] for name in names]
        # then the other has all four, and everything is archived, once.
        stage.wait_archived(*ids, within=90.0)
        assert sources_of(second) == set(names)
        # A third that has room gets its share back.
        with started(stage, config) as third:
            eventually(lambda: len(sources_of(third)) == 2 and len(sources_of(second)) == 2, "they share again")
            stage.wait_archived(
                *(stage.register(stage.file(f"{name}-last.npy"), instance_id=name)[0] for name in names)
            )
    assert len(stage.archived_files()) == 4 * 82
    assert stage.count("failed_copy_attempts <> 0") == 0
    assert not [path for path in stage.archived_files() if path.suffix != ".npy"]
