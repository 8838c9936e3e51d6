"""The pure core under all orders of events hypothesis can think of: nothing leaks, nothing is lost or runs twice."""

import itertools

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, multiple, rule

from nl.errors import CancelledError, Code, NlError, UnavailableError
from nl.model.digest import Digest, DigestFunction
from nl.model.execution import ActionRequest, Stage
from nl.scheduler.core import Order, SchedulerCore
from nl.scheduler.options import SimpleSchedulerOptions
from nl.scheduler.pool import STRATEGIES

OPTIONS = SimpleSchedulerOptions(
    supported_platform_properties={"cpu": "minimum", "ISA": "exact", "pool": "priority", "note": "ignore"},
    max_job_retries=2,
    max_action_executing_timeout_s=40,
    unmatched_grace_s=100,
    max_operations=25,
    priority_ageing_s=60,
)

PLATFORMS = st.sampled_from([
    (),
    (("ISA", "x86"),),
    (("ISA", "arm"),),
    (("cpu", "1"),),
    (("cpu", "3"),),
    (("ISA", "x86"), ("cpu", "2")),
    (("pool", "big"),),
    (("note", "hi"),),
    (("OSFamily", "linux"),),
])
OFFERS = st.sampled_from([
    (),
    (("ISA", "x86"), ("cpu", "4")),
    (("ISA", "arm"), ("ISA", "x86"), ("cpu", "2")),
    (("ISA", ""), ("pool", "small")),
    (("cpu", "8"), ("pool", "big"), ("OSFamily", "windows")),
])


def could_start(worker, waiting, room):
    """Whether there is room for it, by the definition."""
    return (
        worker.id not in waiting.failed_on
        and worker.offer.meets(waiting.needs)
        and all(room[name] >= amount for name, amount in waiting.needs.at_least)
    )


def room_beside(worker, held_for, *leases):
    """What would be free if only these ran, and the execution that the worker is kept for."""
    room = dict(worker.offer.amounts)
    for taken in (held_for.needs.at_least, *(lease.execution.needs.at_least for lease in leases)):
        for name, amount in taken:
            room[name] -= amount
    return room


class CoreMachine(RuleBasedStateMachine):
    workers = Bundle("workers")
    clients = Bundle("clients")

    @initialize(strategy=st.sampled_from(sorted(STRATEGIES)))
    def begin(self, strategy):
        from dataclasses import replace

        ids = itertools.count(1)
        self.ids = ids
        self.now = 1000.0
        self.core = SchedulerCore(replace(OPTIONS, allocation_strategy=strategy), new_id=lambda: f"lease{next(ids)}")
        self.held = {}  # worker -> {lease id: lease}: what each worker believes it has to do
        self.ended = {}  # execution -> number of times it was seen to end
        self.everything = []
        self.most_workers = 0
        self.claimed = set()

    # What the shell does after each event, with checks of what the workers see.
    def deliver(self, in_order=True):
        outbox = self.core.outbox
        orders, outbox.orders = outbox.orders, []
        best_first = [each for each in self.everything if each.stage is Stage.QUEUED]
        for order, lease in orders:
            held = self.held.get(lease.worker_id)
            if order is Order.START:
                assert held is not None, "an order to a worker that is gone"
                assert lease.id not in held
                for other in self.held.values():
                    for running in other.values():
                        assert running.execution is not lease.execution or running.revoked_at is not None, "ran twice"
                held[lease.id] = lease
                worker = self.core.pool.workers[lease.worker_id]
                assert worker.id not in lease.execution.failed_on, "went back to the worker that failed it"
                free = {name: worker.free[name] + dict(lease.reserved).get(name, 0) for name in worker.free}
                is_claimed = lease.execution.request.action_digest.hash in self.claimed
                for waiting in best_first if in_order and not is_claimed else ():
                    if waiting.rank < lease.execution.rank:
                        assert not could_start(worker, waiting, free), f"{waiting} was passed over"
            elif held is not None:
                assert lease.id in held, "a kill of something that was never started"
        for execution in list(outbox.changed):
            if execution.stage is Stage.COMPLETED:
                self.ended[execution] = self.ended.get(execution, 0) + 1
        outbox.changed.clear()

    @rule(
        target=clients,
        action=st.integers(0, 6),
        platform=PLATFORMS,
        priority=st.integers(-2, 2),
        lookup=st.booleans(),
        skip=st.booleans(),
        no_cache=st.booleans(),
        build=st.sampled_from([("", ""), ("one", "a"), ("one", "b"), ("two", "c")]),
    )
    def submit(self, action, platform, priority, lookup, skip, no_cache, build):
        id = f"op{next(self.ids)}"
        request = ActionRequest(
            "main",
            Digest(f"{action:064x}", 1),
            DigestFunction.SHA256,
            platform=platform,
            priority=priority,
            skip_cache_lookup=skip,
            do_not_cache=no_cache,
            user=build[0],
            invocation=build[1],
        )
        execution = self.core.join(request, client=id, now=self.now)
        if execution is not None:
            assert not no_cache and not execution.request.do_not_cache
            if skip:
                assert execution.stage in (Stage.QUEUED, Stage.EXECUTING)
                assert execution.lease is None or not execution.lease.executed
            assert execution.priority <= priority
        else:
            try:
                execution = self.core.admit(
                    request,
                    client=id,
                    id=id,
                    lookup=lookup and not skip and not no_cache,
                    now=self.now,
                    unix_now=self.now,
                )
            except NlError as exc:
                assert exc.code is Code.RESOURCE_EXHAUSTED
                assert len(self.core.executions) == OPTIONS.max_operations
                return multiple()
            self.everything.append(execution)
        self.deliver()
        return (id, execution)

    @rule(client=consumes(clients))
    def cancel(self, client):
        id, execution = client
        was_last = execution.clients == {id}
        self.core.leave(execution, client=id, error=CancelledError("no"), now=self.now)
        self.deliver()
        assert not was_last or execution.stage is Stage.COMPLETED

    @rule(hit=st.booleans(), nth=st.integers(0, 50))
    def lookup_comes_back(self, hit, nth):
        checking = [each for each in self.everything if each.stage is Stage.CACHE_CHECK]
        if not checking:
            return
        execution = checking[nth % len(checking)]
        if hit:
            self.core.cache_hit(execution, b"cached")
            assert execution.outcome.cached
        else:
            self.core.cache_miss(execution, now=self.now)
        self.deliver()

    @rule(
        target=workers,
        offer=OFFERS,
        max_inflight=st.integers(0, 3),
        running=st.frozensets(st.integers(0, 7), max_size=3),
    )
    def attach(self, offer, max_inflight, running):
        self.most_workers = max(self.most_workers, len(self.held) + 1)
        worker_id = f"worker{next(self.ids)}"
        self.held[worker_id] = {}
        worker = self.core.attach(
            worker_id,
            offer=self.core.rules.offer(offer),
            max_inflight=max_inflight,
            running=self.claim(running),
            now=self.now,
        )
        self.deliver()
        return worker

    def claim(self, actions):
        """What such a worker says of them. From now on they may go out of their order."""
        ids = [(f"{action:064x}", 1) for action in actions]
        self.claimed.update(hash for hash, _ in ids)
        return ids

    @rule(worker=consumes(workers))
    def detach(self, worker):
        self.held.pop(worker.id, None)
        self.core.detach(worker, error=UnavailableError("gone"), now=self.now)
        self.deliver()

    @rule(worker=workers, leaving=st.booleans())
    def drain(self, worker, leaving):
        if worker.id in self.held:
            self.core.drain(worker, leaving=leaving, now=self.now)
            self.deliver()

    @rule(worker=workers)
    def undrain(self, worker):
        if worker.id in self.held:
            self.core.undrain(worker, now=self.now)
            self.deliver()
            assert worker.draining == worker.leaving

    @rule(
        worker=workers,
        nth=st.integers(0, 50),
        how=st.sampled_from(["executed", "complete", "complete", "complete", "fail", "refuse"]),
    )
    def report(self, worker, nth, how):
        held = self.held.get(worker.id)
        if not held:
            return
        lease_id, lease = list(held.items())[nth % len(held)]
        if how == "executed":
            self.core.executed(worker, lease_id, now=self.now)
            self.deliver()
            return
        del held[lease_id]
        if how == "complete":
            live = self.core.complete(worker, lease_id, response=b"done", now=self.now)
            assert not live or lease.execution.outcome.response == b"done"
        else:
            code = Code.INTERNAL if how == "fail" else Code.RESOURCE_EXHAUSTED
            before = lease.execution.attempts
            live = self.core.fail(worker, lease_id, error=NlError("x", code=code), now=self.now)
            assert lease.execution.attempts == before + (live and how == "fail")
        assert live == (lease.revoked_at is None)
        self.deliver()

    @rule(worker=workers)
    def stale_report(self, worker):
        try:
            self.core.complete(worker, "never heard of", response=b"", now=self.now)
        except NlError as exc:
            assert exc.code is Code.ABORTED
        else:
            raise AssertionError("a report about a foreign lease was taken")

    @rule(seconds=st.floats(0.1, 60))
    def time_passes(self, seconds):
        self.now += seconds
        self.core.tick(now=self.now)
        self.deliver(in_order=False)  # several time out at once: the first one back may take a place before the next

    @invariant()
    def nothing_is_lost_and_nothing_ends_twice(self):
        for execution in self.everything:
            done = execution.stage is Stage.COMPLETED
            assert done == (execution.outcome is not None) == (self.ended.get(execution, 0) == 1)
            assert done != (execution.id in self.core.executions)
            queued = sum(execution in shape.queue for shape in self.core._waiting)
            assert queued == (execution.stage is Stage.QUEUED)
            running = [
                lease
                for held in self.held.values()
                for lease in held.values()
                if lease.execution is execution and lease.revoked_at is None
            ]
            assert len(running) == (execution.stage is Stage.EXECUTING)
            assert done or execution.clients, "runs for nobody"

    @invariant()
    def resources_add_up(self):
        for worker in self.core.pool.workers.values():
            assert worker.leases == self.held[worker.id]
            assert not worker.max_inflight or len(worker.leases) <= worker.max_inflight
            for name, offered in worker.offer.amounts.items():
                reserved = sum(dict(lease.reserved).get(name, 0) for lease in worker.leases.values())
                assert worker.free[name] == offered - reserved >= 0

    @invariant()
    def whoever_could_run_does(self):
        """But where the worker is kept for something more urgent, that it would delay."""
        for execution in self.everything:
            if execution.stage is not Stage.QUEUED:
                continue
            for worker in self.core.pool.workers.values():
                if not worker.has_slot or not could_start(worker, execution, worker.free):
                    continue
                held_for = worker.held_for
                assert held_for is not None and held_for.rank < execution.rank, f"{execution} waits although {worker}"
                beside = [lease for lease in worker.leases.values() if lease.beside]
                room = room_beside(worker, held_for, *beside)
                full = worker.max_inflight and len(beside) + 1 >= worker.max_inflight
                assert full or not could_start(worker, execution, room), f"{execution} waits although {worker}"

    @invariant()
    def who_is_waited_for_gets_free(self):
        """A worker that is kept has no room now for what it is kept for, but will have when the others have ended."""
        kept = 0
        for worker in self.core.pool.workers.values():
            held_for = worker.held_for
            if held_for is None:
                continue
            kept += 1
            assert held_for.stage is Stage.QUEUED
            assert not could_start(worker, held_for, worker.free) or not worker.has_slot
            assert not worker.draining and worker.paused_until is None
            beside = [lease for lease in worker.leases.values() if lease.beside and lease.reserved]
            assert min(room_beside(worker, held_for, *beside).values(), default=0) >= 0
            assert [each for each in worker.leases.values() if not each.beside], "it would wait for nothing"
        assert kept == len(self.core._reservations) <= max(1, self.most_workers // 2)
        for kind, count in self.core._reservations._by_kind.items():
            assert 0 < count <= kept, kind

    @invariant()
    def the_index_is_exact(self):
        pool, waiting = self.core.pool, self.core._waiting
        for posting in pool._postings.values():
            ready = list(posting.ready)
            assert set(ready) == {worker for worker in posting.all if worker.has_slot}
            assert [pool._key(worker) for worker in ready] == sorted(pool._key(worker) for worker in ready)
        for name, posting in pool._postings.items():
            assert set(posting.all) == {worker for worker in pool.workers.values() if name in worker.declared}
        for shape in waiting:
            assert shape.head == min(execution.rank for execution in shape.queue)
            for worker in pool.workers.values():
                if shape.suits(worker):
                    assert any(shape in list(bin) for bin in waiting._bins_for(worker)), f"{worker} misses {shape}"
        for bin in waiting._bins.values():
            heads = [shape.head for shape in bin]
            assert heads == sorted(heads)
        assert not self.core._due
        assert {worker for worker in pool.workers.values() if worker.paused_until is not None} == set(self.core._paused)
        counts = self.core.counts()
        live = [each for each in self.everything if each.stage is not Stage.COMPLETED]
        assert counts["queued"] == sum(each.stage is Stage.QUEUED for each in live)
        assert counts["executing"] == sum(each.stage is Stage.EXECUTING for each in live)
        assert counts["cache_check"] == sum(each.stage is Stage.CACHE_CHECK for each in live)
        assert len(self.core._order) == counts["queued"]
        self.core.why_waiting(now=self.now)
        repr(live)


    def teardown(self):
        """Once the workers only work, and there is one that can take anything, everything ends, and nothing is left."""
        if not hasattr(self, "core"):
            return
        offer = self.core.rules.offer([("ISA", ""), ("cpu", "9"), ("pool", "x"), ("OSFamily", "")])
        for number in (1, 2):
            self.held[f"last{number}"] = {}
            self.core.attach(f"last{number}", offer=offer, max_inflight=2, now=self.now)
        self.deliver(in_order=False)
        for execution in [each for each in self.everything if each.stage is Stage.CACHE_CHECK]:
            self.core.cache_miss(execution, now=self.now)
            self.deliver(in_order=False)
        rounds = 0
        while any(self.held.values()) or self.core.executions:
            rounds += 1
            assert rounds < 200, "somebody waits for ever"
            for worker_id, held in self.held.items():
                for lease_id in list(held):
                    del held[lease_id]
                    self.core.complete(self.core.pool.workers[worker_id], lease_id, response=b"", now=self.now)
                    self.deliver(in_order=False)
        for worker in list(self.core.pool.workers.values()):
            assert worker.free == worker.offer.amounts
            assert worker.held_for is None
            self.core.detach(worker, error=UnavailableError("the end"), now=self.now)
        core = self.core
        left = (core._running, core._revoked, core._paused, core._due, core._waiting, core._order, core._in_flight)
        assert not any(len(each) for each in left)
        assert not core._waiting._bins and not core._reservations._held and not core._reservations._by_kind
        assert not core.pool._postings and not core.pool._counts and not core.pool._keys
        assert not core._order._last and not core._order._invocations and not core._order._levels


TestCore = CoreMachine.TestCase
TestCore.settings = settings(max_examples=80, stateful_step_count=50, deadline=None)
