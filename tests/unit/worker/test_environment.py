"""additional_environment, query_cmd and the side channel file."""

from __future__ import annotations

import pytest

from nl.config.workers import EnvironmentSource, LocalWorkerOptions, PropertySource
from nl.errors import InternalError, UnavailableError
from nl.worker.environment import action_environment, query_properties, says_timeout, static_environment

SOURCES = {
    "VALUE": EnvironmentSource(value="v"),
    "PROPERTY": EnvironmentSource(property="p"),
    "ABSENT": EnvironmentSource(property="q"),
    "HERE": "from_environment",
    "MILLIS": "timeout_millis",
    "CHANNEL": "side_channel_file",
    "WHERE": "action_directory",
}


def test_every_source_has_its_meaning(monkeypatch):
    monkeypatch.setenv("HERE", "here")
    found = action_environment(
        SOURCES, platform=(("p", "prop"),), timeout_s=1.5, side_channel="/a/side", directory="/a"
    )
    assert found == {
        "VALUE": "v",
        "PROPERTY": "prop",
        "ABSENT": "",
        "HERE": "here",
        "MILLIS": "1500",
        "CHANNEL": "/a/side",
        "WHERE": "/a",
    }


def test_programs_of_the_config_see_the_part_without_an_action(monkeypatch):
    monkeypatch.delenv("HERE", raising=False)
    assert static_environment(SOURCES) == {"VALUE": "v", "PROPERTY": "", "ABSENT": "", "HERE": ""}


def options(**properties: PropertySource) -> LocalWorkerOptions:
    return LocalWorkerOptions(cas_fast_slow_store="S", work_directory="/w", platform_properties=properties)


async def test_each_line_of_a_query_is_a_value_and_the_environment_is_cleared(monkeypatch):
    monkeypatch.setenv("SECRET", "1")
    command = "sh -c 'echo \"two words\"; echo; echo \"secret=$SECRET\"'"
    made = options(z=PropertySource(values=("1", "2")), a=PropertySource(query_cmd=command))
    assert await query_properties(made) == [("a", "two words"), ("a", "secret="), ("z", "1"), ("z", "2")]


@pytest.mark.parametrize("command", ["", "no-such-program", "sh -c 'echo why >&2; exit 3'", "'unclosed"])
async def test_a_query_that_cannot_be_run_or_fails_names_the_property(command):
    with pytest.raises(UnavailableError, match="platform property 'p'"):
        await query_properties(options(p=PropertySource(query_cmd=command)))


def test_the_side_channel_may_be_absent_or_say_timeout(tmp_path):
    path = tmp_path / "side"
    assert not says_timeout(str(path))
    path.write_text("{ failure: 'timeout', }")
    assert says_timeout(str(path))
    path.write_text("{}")
    assert not says_timeout(str(path))


@pytest.mark.parametrize("text", ["{", '{"failure": "bored"}', "x" * 100_000])
def test_a_side_channel_that_makes_no_sense_is_an_error(tmp_path, text):
    path = tmp_path / "side"
    path.write_text(text)
    with pytest.raises(InternalError):
        says_timeout(str(path))
