"""What an event costs does not depend on how many kinds of requirements wait: in calls of functions, not in time."""

import cProfile
import itertools

import pytest

from nl.model.digest import Digest, DigestFunction
from nl.model.execution import ActionRequest
from nl.scheduler.core import SchedulerCore
from nl.scheduler.options import SimpleSchedulerOptions

OPTIONS = SimpleSchedulerOptions(supported_platform_properties={"cpu": "minimum", "pool": "exact"})
COUNT = itertools.count()


def admit(core, *platform):
    number = next(COUNT)
    request = ActionRequest("", Digest(f"{number:064x}", 1), DigestFunction.SHA256, platform=platform)
    core.admit(request, client=f"c{number}", id=f"e{number}", lookup=False, now=0.0, unix_now=0.0)


def calls(function):
    profile = cProfile.Profile()
    profile.runcall(function)
    return sum(entry.callcount for entry in profile.getstats())


def events(kinds, platform, offer, workers=4):
    """How many calls the end of an action and the arrival of a new one cost on average, with so many kinds waiting."""
    core = SchedulerCore(OPTIONS, new_id=lambda: str(next(COUNT)))
    fleet = [
        core.attach(f"w{number}", offer=core.rules.offer(offer), max_inflight=2, now=0.0) for number in range(workers)
    ]
    for number in range(kinds):
        admit(core, *platform(number))
    costs = []
    for number in range(40):
        worker = fleet[number % workers]
        if worker.leases:
            lease_id = next(iter(worker.leases))
            costs.append(calls(lambda: core.complete(worker, lease_id, response=b"", now=1.0)))  # noqa: B023
        costs.append(calls(lambda: admit(core, *platform(kinds + number))))  # noqa: B023
        core.outbox.orders.clear()
        core.outbox.changed.clear()
    return sum(costs) / len(costs)


@pytest.mark.parametrize(
    ("platform", "offer"),
    [
        (lambda number: (("pool", f"p{number}"),), [("pool", ""), ("cpu", "4")]),
        (lambda number: (("pool", f"p{number}"),), [("pool", "other"), ("cpu", "4")]),
        (lambda number: (("cpu", str(1 + number)),), [("cpu", "5000")]),
        (lambda number: (("pool", f"p{number}"), ("cpu", str(1 + number % 7))), [("pool", ""), ("cpu", "8")]),
    ],
    ids=["any worker takes any", "nobody takes them", "amounts", "both"],
)
def test_an_event_costs_about_the_same_however_many_kinds_wait(platform, offer):
    few, many = events(150, platform, offer), events(1500, platform, offer)
    assert many < 2 * few + 50
    assert many < 750, "less than a look at every second kind"
