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

OPTIONS = SimpleSchedulerOptions(
    supported_platform_properties={"cpu": "minimum", "ISA": "exact", "pool": "priority", "note": "ignore"},
    max_job_retries=2,
    max_action_executing_timeout_s=40,
    unmatched_grace_s=100,
    max_operations=25,
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


class CoreMachine(RuleBasedStateMachine):
    workers = Bundle("workers")
    clients = Bundle("clients")

    @initialize(strategy=st.sampled_from(["least_recently_used", "most_recently_used"]))
    def begin(self, strategy):
        from dataclasses import replace

        ids = itertools.count(1)
        self.ids = ids
        self.now = 1000.0
        self.core = SchedulerCore(replace(OPTIONS, allocation_strategy=strategy), new_id=lambda: f"lease{next(ids)}")
        self.held = {}  # worker -> {lease id: lease}: what each worker believes it has to do
        self.ended = {}  # execution -> number of times it was seen to end
        self.everything = []

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
                free = {name: worker.free[name] + dict(lease.reserved).get(name, 0) for name in worker.free}
                for waiting in best_first if in_order else ():
                    could = worker.offer.lacks(waiting.needs) is None and all(
                        free[name] >= amount for name, amount in waiting.needs.at_least
                    )
                    assert waiting.rank > lease.execution.rank or not could, f"{waiting} was passed over"
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
    )
    def submit(self, action, platform, priority, lookup, skip, no_cache):
        id = f"op{next(self.ids)}"
        request = ActionRequest(
            "main",
            Digest(f"{action:064x}", 1),
            DigestFunction.SHA256,
            platform=platform,
            priority=priority,
            skip_cache_lookup=skip,
            do_not_cache=no_cache,
        )
        execution = self.core.join(request, client=id)
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

    @rule(target=workers, offer=OFFERS, max_inflight=st.integers(0, 3))
    def attach(self, offer, max_inflight):
        worker_id = f"worker{next(self.ids)}"
        self.held[worker_id] = {}
        worker = self.core.attach(
            worker_id, offer=self.core.rules.offer(offer), max_inflight=max_inflight, now=self.now
        )
        self.deliver()
        return worker

    @rule(worker=consumes(workers))
    def detach(self, worker):
        self.held.pop(worker.id, None)
        self.core.detach(worker, error=UnavailableError("gone"), now=self.now)
        self.deliver()

    @rule(worker=workers, leaving=st.booleans())
    def drain(self, worker, leaving):
        if worker.id in self.held:
            self.core.drain(worker, leaving=leaving)

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
            queued = sum(execution in shape.queue for shape in self.core.pool.shapes.values())
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
        """Also the order: nobody was passed over who could have gone first."""
        for execution in self.everything:
            if execution.stage is Stage.QUEUED:
                for worker in self.core.pool.workers.values():
                    able = worker.has_slot and worker.offer.lacks(execution.needs) is None
                    assert not (able and worker.fits(execution.needs)), f"{execution} waits although {worker} is free"

    @invariant()
    def the_index_is_exact(self):
        pool = self.core.pool
        for shape in pool.shapes.values():
            able = {worker for worker in pool.workers.values() if worker.offer.lacks(shape.needs) is None}
            assert set(shape.candidates) == able
            assert set(shape.ready) == {worker for worker in able if worker.has_slot}
            order = [worker for worker in pool.workers.values() if worker in shape.ready]
            assert order == list(shape.ready), "one order of use everywhere"
        counts = self.core.counts()
        live = [each for each in self.everything if each.stage is not Stage.COMPLETED]
        assert counts["queued"] == sum(each.stage is Stage.QUEUED for each in live)
        assert counts["executing"] == sum(each.stage is Stage.EXECUTING for each in live)
        assert counts["cache_check"] == sum(each.stage is Stage.CACHE_CHECK for each in live)
        self.core.why_waiting(now=self.now)
        repr(live)


TestCore = CoreMachine.TestCase
TestCore.settings = settings(max_examples=150, stateful_step_count=60, deadline=None)
