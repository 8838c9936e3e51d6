"""What ListOperations is asked to leave out: a filter as AIP-160 writes it, of equalities that all have to hold.

`stage=QUEUED AND invocation="6f1c..."`. Fields are those of `FIELDS`; values with blanks are quoted.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from nl.errors import InvalidRequestError
from nl.scheduler.contract import Operation

Predicate = Callable[[Operation], bool]

FIELDS: dict[str, Callable[[Operation], str]] = {
    "done": lambda operation: "true" if operation.done else "false",
    "stage": lambda operation: operation.state.stage.name,
    "worker": lambda operation: operation.state.worker_id,
    "action": lambda operation: operation.request.action_digest.hash,
    "owner": lambda operation: operation.owner,
    "invocation": lambda operation: operation.request.invocation,
    "target": lambda operation: operation.request.target,
    "mnemonic": lambda operation: operation.request.mnemonic,
    "priority": lambda operation: str(operation.request.priority),
}
MAX_CHARS = 4096
_TERM = re.compile(r'\s*(?P<field>\w+)\s*=\s*(?:"(?P<quoted>[^"]*)"|(?P<plain>[^\s"]+))\s*(?P<rest>.*)', re.DOTALL)


def parse_filter(text: str) -> Predicate:
    """Whether an operation is to be listed. Raises InvalidRequestError for what is no filter; "" lists all."""
    if len(text) > MAX_CHARS:
        raise InvalidRequestError(f"the filter has {len(text)} characters; at most {MAX_CHARS} are read")
    wanted: list[tuple[Callable[[Operation], str], str]] = []
    rest = text.strip()
    while rest:
        term = _TERM.fullmatch(rest)
        if term is None:
            raise InvalidRequestError(f"the filter cannot be read from {rest[:80]!r}; expected FIELD=VALUE")
        field = FIELDS.get(term["field"])
        if field is None:
            raise InvalidRequestError(f"the filter has a field {term['field'][:80]!r}; known: {', '.join(FIELDS)}")
        wanted.append((field, term["plain"] if term["quoted"] is None else term["quoted"]))
        rest = term["rest"]
        if rest:
            if not re.match(r"AND\s", rest):
                raise InvalidRequestError(f"the filter cannot be read from {rest[:80]!r}; expected AND")
            rest = rest[3:].strip() or "AND"
    return lambda operation: all(field(operation) == value for field, value in wanted)
