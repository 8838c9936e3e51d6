"""Commands about keys, sent where the keys are, and sent again where that may help.

Many keys are one trip to each server that is concerned. All commands of a store may be repeated.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import trio

from nl.plugin import BackendError, RetryPolicy, TransientError
from nl_redis_store.addresses import slot_of
from nl_redis_store.connection import Command, Reply
from nl_redis_store.errors import MovedError, ReplyError, meaning
from nl_redis_store.node import MAX_COMMANDS, MAX_RECEIVE, MAX_SEND, Node, Request
from nl_redis_store.topology import Topology

GRACE_S = 5.0
"""How long a cancelled caller waits for a command that changes something."""
MAX_REDIRECTS = 5
_ASKING: Command = (b"ASKING",)


class Op(NamedTuple):
    """What is asked about one key: a few commands that go together."""

    key: bytes
    commands: tuple[Command, ...]
    sends: int = 0
    receives: int = 0
    """About how many bytes of payload."""


Outcome = list[Reply] | BackendError
"""A reply for each command of an Op, or the first error among them."""


class Client:
    """Runs Ops. At most `permits` calls at once; others wait in order."""

    def __init__(self, topology: Topology, policy: RetryPolicy, *, permits: int) -> None:
        self._topology = topology
        self.policy = policy
        self._limiter = trio.CapacityLimiter(permits)

    @property
    def waiting(self) -> int:
        """Calls that wait for others."""
        return self._limiter.statistics().tasks_waiting

    async def one(self, op: Op, *, changes: bool = False) -> list[Reply]:
        """The replies to one Op. Raises BackendError."""
        (outcome,) = await self.many([op], changes=changes)
        if isinstance(outcome, BackendError):
            raise outcome
        return outcome

    async def many(self, ops: Sequence[Op], *, changes: bool = False) -> list[Outcome]:
        """What becomes of each Op, in order; tried again as configured.

        If the commands change something (`changes`), a cancelled caller waits up to GRACE_S for their end, so that
        what it does next comes after it, and so that nobody reads its buffers any longer.
        """
        outcomes: list[Outcome] = [[]] * len(ops)
        left = list(range(len(ops)))
        retry = 0
        while left:
            async with self._limiter:
                await _Attempt(self._topology, ops, outcomes, changes=changes).run(left)
            retry += 1
            pause = -1.0
            again: list[int] = []
            for at in left:
                outcome = outcomes[at]
                if isinstance(outcome, BackendError) and (wait := self.policy.pause(retry, outcome)) is not None:
                    again.append(at)
                    pause = max(pause, wait)
            left = again
            if left:
                await self.policy.wait(pause)
        return outcomes

    async def everywhere(self, command: Command) -> list[Reply]:
        """A command to all servers, one attempt. Raises the first BackendError."""
        await self._topology.ready()
        sent = []
        for node in self._topology.nodes():
            request = Request([command], sends=0, receives=0)
            node.enqueue(request)
            sent.append(_Sent(node, request, []))
        await _wait(sent, changes=False)
        replies = []
        for node, request, _ in sent:
            if request.error is not None:
                self._topology.failed(node, request.error)
                raise request.error
            (reply,) = request.replies
            if isinstance(reply, ReplyError):
                raise meaning(reply, node.name)
            replies.append(reply)
        return replies


class _Member(NamedTuple):
    """An Op of a request, by its number. `asking`: at a node that is only just getting its slot."""

    at: int
    asking: bool


class _Sent(NamedTuple):
    node: Node
    request: Request
    members: list[_Member]


class _Attempt:
    """One attempt at some Ops: a trip, and further ones for what servers send elsewhere."""

    def __init__(self, topology: Topology, ops: Sequence[Op], outcomes: list[Outcome], *, changes: bool) -> None:
        self._topology = topology
        self._ops = ops
        self._outcomes = outcomes
        self._changes = changes
        self._elsewhere: dict[int, tuple[Node, bool]] = {}

    async def run(self, chosen: Sequence[int]) -> None:
        """Fills in the outcomes of the Ops with these numbers."""
        for _ in range(1 + MAX_REDIRECTS):
            try:
                await self._topology.ready()
            except BackendError as error:
                for at in chosen:
                    self._outcomes[at] = error
                return
            sent = self._send(chosen)
            await _wait(sent, changes=self._changes)
            self._elsewhere = {}
            for each in sent:
                self._collect(each)
            if not self._elsewhere:
                return
            chosen = list(self._elsewhere)

    def _send(self, chosen: Sequence[int]) -> list[_Sent]:
        """Puts everything into the queues of the servers, in requests that each fit into a trip."""
        groups: dict[Node, list[_Member]] = {}
        topology, clustered = self._topology, self._topology.clustered
        for at in chosen:
            asking = False
            if at in self._elsewhere:
                node, asking = self._elsewhere[at]
            else:
                try:
                    node = topology.node_of(slot_of(self._ops[at].key) if clustered else 0)
                except BackendError as error:
                    self._outcomes[at] = error
                    continue
            groups.setdefault(node, []).append(_Member(at, asking))
        sent = []
        for node, members in groups.items():
            for part in _parts(self._ops, members):
                request = self._request(part)
                node.enqueue(request)
                sent.append(_Sent(node, request, part))
        return sent

    def _request(self, members: list[_Member]) -> Request:
        commands: list[Command] = []
        sends = receives = 0
        for at, asking in members:
            op = self._ops[at]
            sends += op.sends
            receives += op.receives
            if asking:
                commands += (each for command in op.commands for each in (_ASKING, command))
            else:
                commands += op.commands
        return Request(commands, sends=sends, receives=receives)

    def _collect(self, sent: _Sent) -> None:
        """Gives every Op its replies."""
        node, request, members = sent
        if request.error is not None:
            self._topology.failed(node, request.error)
            for at, _ in members:
                self._outcomes[at] = request.error
            return
        start = 0
        for at, asking in members:
            end = start + len(self._ops[at].commands) * (2 if asking else 1)
            replies = request.replies[start:end]
            start = end
            self._outcomes[at] = self._outcome(at, node, replies[1::2] if asking else replies)

    def _outcome(self, at: int, node: Node, replies: list[Reply]) -> Outcome:
        for reply in replies:
            if isinstance(reply, ReplyError):
                break
        else:
            return replies
        error = meaning(reply, node.name)
        if isinstance(error, MovedError):
            try:
                self._elsewhere[at] = (self._topology.moved(error, node), error.asking)
            except BackendError:
                pass  # which is its outcome
        elif isinstance(error, TransientError):
            self._topology.failed(node, error)
        return error


async def _wait(sent: Sequence[_Sent], *, changes: bool) -> None:
    try:
        for _, request, _ in sent:
            await request.done.wait()
    except trio.Cancelled:
        for _, request, _ in sent:
            if changes:
                await request.settle(GRACE_S)
            else:
                request.wanted = False
        raise


def _parts(ops: Sequence[Op], members: Sequence[_Member]) -> list[list[_Member]]:
    """The members in order, in groups that each fit into a trip."""
    parts: list[list[_Member]] = []
    commands = sends = receives = 0
    for member in members:
        op = ops[member.at]
        commands += len(op.commands)
        sends += op.sends
        receives += op.receives
        if not parts or commands > MAX_COMMANDS or sends > MAX_SEND or receives > MAX_RECEIVE:
            parts.append([])
            commands, sends, receives = len(op.commands), op.sends, op.receives
        parts[-1].append(member)
    return parts
