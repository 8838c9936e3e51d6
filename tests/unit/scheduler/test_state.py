import pytest

from nl.errors import InternalError
from nl.model.execution import Stage
from nl.scheduler.matching import Requirements
from nl.scheduler.state import TRANSITIONS, Event, Execution
from tests.unit.scheduler.support import request


def execution(stage):
    return Execution("e", request(), Requirements(), 1, 0, stage, 0.0, 0.0)


@pytest.mark.parametrize("stage", Stage)
@pytest.mark.parametrize("event", Event)
def test_only_what_the_table_allows_happens(stage, event):
    it = execution(stage)
    if (stage, event) in TRANSITIONS:
        it.advance(event)
        assert it.stage is TRANSITIONS[stage, event]
        assert it.version == 2
    else:
        with pytest.raises(InternalError, match=f"{stage.name}, which does not allow {event.name}"):
            it.advance(event)
        assert it.stage is stage
        assert it.version == 1


def test_completed_is_final():
    assert not [pair for pair in TRANSITIONS if pair[0] is Stage.COMPLETED]


def test_every_stage_can_be_left_towards_completed():
    for stage in (Stage.CACHE_CHECK, Stage.QUEUED, Stage.EXECUTING):
        assert TRANSITIONS[stage, Event.ABANDON] is Stage.COMPLETED


def test_a_repr_tells_the_truth():
    assert repr(execution(Stage.QUEUED)) == "<Execution e QUEUED priority=0 attempts=0>"
