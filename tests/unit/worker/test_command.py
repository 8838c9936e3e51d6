"""What a Command means: paths stay inside, the environment is the action's, nonsense is refused by name."""

from __future__ import annotations

import pytest

from nl.errors import InvalidRequestError
from nl.pb import reapi
from nl.worker.command import DEFAULT_PATH, Output, inside, plan_command


def command(**fields: object) -> reapi.Command:
    return reapi.Command(**{"arguments": ["prog"], **fields})


@pytest.mark.parametrize(
    ("base", "path", "expected"),
    [
        ("", "a", "a"),
        ("", "a/b/", "a/b"),
        ("", "./a//b", "a/b"),
        ("", "", ""),
        ("sub", "", "sub"),
        ("sub", "x", "sub/x"),
        ("sub", "../x", "x"),
        ("sub", "..", ""),
        ("a/b", "../../c", "c"),
        ("", "a/../b", "b"),
        ("", "..a", "..a"),
    ],
)
def test_paths_are_normalised_below_the_input_root(base, path, expected):
    assert inside(base, path, "output path") == expected


@pytest.mark.parametrize(
    ("base", "path"),
    [("", "../x"), ("", ".."), ("sub", "../../x"), ("", "/x"), ("sub", "/"), ("", "a\0b"), ("", "x" * 5000)],
)
def test_paths_that_lead_out_are_refused_by_name(base, path):
    with pytest.raises(InvalidRequestError, match="output path"):
        inside(base, path, "output path")


def test_the_actions_variables_win_over_the_workers_and_a_path_is_always_there():
    variables = [reapi.CommandEnvironmentVariable(name="A", value="action")]
    plan = plan_command(command(environment_variables=variables), extra_env={"A": "worker", "B": "worker"})
    assert plan.env == {"A": "action", "B": "worker", "PATH": DEFAULT_PATH}
    own = [reapi.CommandEnvironmentVariable(name="PATH", value="")]
    assert plan_command(command(environment_variables=own), extra_env={}).env == {"PATH": ""}


@pytest.mark.parametrize("name", ["", "A=B", "A\0"])
def test_impossible_variables_are_refused(name):
    variables = [reapi.CommandEnvironmentVariable(name=name, value="x")]
    with pytest.raises(InvalidRequestError, match="environment variable"):
        plan_command(command(environment_variables=variables), extra_env={})


def test_output_paths_put_the_older_lists_out_of_use():
    plan = plan_command(command(output_paths=["a", "a"], output_files=["b"], output_directories=["c"]), extra_env={})
    assert plan.outputs == [Output("a", "a")]
    plan = plan_command(command(output_files=["b"], output_directories=["c"]), extra_env={})
    assert plan.outputs == [Output("b", "b"), Output("c", "c")]


def test_the_entrypoint_goes_in_front():
    assert plan_command(command(), entrypoint="/wrap me", extra_env={}).argv == ["/wrap me", "prog"]


@pytest.mark.parametrize(("number", "trees", "directories"), [(0, True, False), (1, False, True), (2, True, True)])
def test_the_format_of_output_directories(number, trees, directories):
    form = reapi.CommandOutputDirectoryFormat(number)
    plan = plan_command(command(output_directory_format=form), extra_env={})
    assert (plan.trees, plan.directories) == (trees, directories)


def test_an_argument_with_a_nul_is_refused():
    with pytest.raises(InvalidRequestError, match="NUL"):
        plan_command(command(arguments=["a", "b\0c"]), extra_env={})
