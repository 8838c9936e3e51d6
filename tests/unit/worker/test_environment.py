"""additional_environment, query_cmd and the side channel file."""

from __future__ import annotations

import os

import pytest

from nl.config.workers import EnvironmentSource, LocalWorkerOptions, PropertySource
from nl.errors import InvalidRequestError, UnavailableError
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


async def test_the_side_channel_may_be_absent_or_say_timeout(tmp_path):
    path = tmp_path / "side"
    assert not await says_timeout(str(path))
    path.write_text("{ failure: 'timeout', }")
    assert await says_timeout(str(path))
    path.write_text("{}")
    assert not await says_timeout(str(path))


@pytest.mark.parametrize("text", ["{", '{"failure": "bored"}', "x" * 100_000, "[" * 4000, "\ud800"])
async def test_a_side_channel_that_makes_no_sense_is_the_actions_fault(tmp_path, text):
    path = tmp_path / "side"
    path.write_bytes(text.encode(errors="surrogatepass"))
    with pytest.raises(InvalidRequestError, match="side channel"):
        await says_timeout(str(path))


@pytest.mark.parametrize("kind", ["fifo", "directory", "link", "device"])
async def test_whatever_is_in_the_place_of_the_side_channel_blocks_nobody(tmp_path, kind):
    path = tmp_path / "side"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    else:
        path.symlink_to("/dev/zero" if kind == "device" else tmp_path / "fifo")
        os.mkfifo(tmp_path / "fifo")
    with pytest.raises(InvalidRequestError, match="side channel"):
        await says_timeout(str(path))
