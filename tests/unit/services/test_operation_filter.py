"""Filters of ListOperations: equalities, all of which have to hold."""

from types import SimpleNamespace

import pytest

from nl.errors import InvalidRequestError
from nl.model.execution import Stage
from nl.services.operation_filter import FIELDS, MAX_CHARS, parse_filter
from tests.unit.scheduler.support import request

OPERATION = SimpleNamespace(
    done=False, owner="ci", request=request(7, invocation="build 1", target="//a:b", mnemonic="Cpp", priority=-3),
    state=SimpleNamespace(stage=Stage.EXECUTING, worker_id="w1"),
)  # fmt: skip


@pytest.mark.parametrize(("text", "is_listed"), [
    ("", True),
    ("done=false", True),
    ("done=true", False),
    ("stage=EXECUTING AND worker=w1", True),
    ("stage=EXECUTING AND worker=w2", False),
    ('invocation="build 1" AND target=//a:b AND mnemonic=Cpp AND priority=-3 AND owner=ci', True),
    ('invocation="build"', False),
    ('worker=""', False),
    (f"action={7:064x}", True),
])
def test_all_of_it_has_to_hold(text, is_listed):
    assert parse_filter(text)(OPERATION) is is_listed


def test_every_field_can_be_asked_for():
    for name in FIELDS:
        assert parse_filter(f"{name}=nothing")(OPERATION) is False


@pytest.mark.parametrize(("text", "problem"), [
    ("done", "cannot be read from 'done'; expected FIELD=VALUE"),
    ("colour=red", "has a field 'colour'; known: done, stage, "),
    ("done=true OR done=false", "cannot be read from 'OR done=false'; expected AND"),
    ("done=true AND", "expected AND"),
    ('done="true', "expected FIELD=VALUE"),
    ("x" * (MAX_CHARS + 1), "characters"),
])
def test_what_is_no_filter_is_refused_with_the_place(text, problem):
    with pytest.raises(InvalidRequestError, match=problem):
        parse_filter(text)
