"""A few thousand of the inputs that ``python -m fuzz`` tries by the million."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from fuzz import messages
from fuzz.__main__ import main
from fuzz.configurations import Configuration
from fuzz.corpus import SECRET
from fuzz.runner import Target, all_targets, attempt

COUNTS = {
    "line": 3000,
    "exit": 1000,
    "ssh": 1000,
    "row": 2000,
    "event": 1000,
    "log": 200,
    "configuration": 60,
    "batch": 60,
}
SEED = 7


@pytest.fixture(scope="module")
def targets() -> Iterator[dict[str, Target]]:
    with all_targets() as made:
        yield made


@pytest.mark.parametrize("name", COUNTS)
def test_no_input_breaks_a_promise(targets: dict[str, Target], name: str) -> None:
    assert COUNTS.keys() == targets.keys()
    for index in range(COUNTS[name]):
        if broken := attempt(targets, name, SEED, index):
            raise AssertionError(
                f"PYTHONPATH=tests/support:tests/faults python -m fuzz --seed {SEED} --one {name}:{index}"
            ) from broken.error


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("configuration", Configuration(b"workers = " + b"[" * 3000, {}, {})),
        ("configuration", Configuration(b"workers = " + b"9" * 5000, {}, {})),
        ("configuration", Configuration(b'data_dir = "/data\\u0000"', {"target": ["m"]}, {})),
        ("configuration", Configuration(b'mysql_password_file = "/data\\u0000"', {"target": ["m"]}, {})),
        ("configuration", Configuration(b'[[sources]]\nname = "a"\ntarget = "m"\nssh_key = "/data\\u0000"', {}, {})),
        ("configuration", Configuration(b'mysql_password = ["hunter2-c0rrect"]', {}, {})),
        ("configuration", Configuration(None, {"chmod": "two\nlines\x1b[2J"}, {"MYSQL_PASSWORD": SECRET})),
    ],
    ids=["nested", "long number", "NUL in data_dir", "NUL in password file", "NUL in a key", "password", "lines"],
)
def test_inputs_that_once_broke_a_promise_and_similar_ones(
    targets: dict[str, Target], name: str, given: object
) -> None:
    targets[name].check(given)


def test_a_broken_promise_is_shown_with_the_command_that_repeats_it(capsys: pytest.CaptureFixture[str]) -> None:
    """A fuzzer that cannot fail is a defect."""

    def reader(line: bytes) -> None:
        assert b"|" not in line

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(messages, "check_line", reader)
        assert main(["--inputs", "1000", "--seed", "3"]) == 1
    output = capsys.readouterr().out
    assert "breaks a promise" in output
    assert "--seed 3 --one line:" in output
