"""No option is silently without effect: some part reads it, or setting it is refused or warned of."""

import re
from pathlib import Path
from typing import get_args

import nl
from nl.config.document import Config
from nl.config.fields import Ignored, Unsupported, fields_of
from nl.config.schedulers import SCHEDULER_KINDS
from nl.config.types import Options

ONE_CHOICE = {"experimental_backend"}
PARTS = ("server", "services", "worker", "rpc", "web", "auth", "scheduler")


def structs(annotation, found):
    if isinstance(annotation, type) and issubclass(annotation, Options) and annotation not in found:
        found.add(annotation)
        for one in fields_of(annotation):
            if not marked(one):
                structs(one.annotation, found)
    for inner in get_args(annotation):
        structs(inner, found)
    return found


def marked(one):
    return one.marker(Unsupported) or one.marker(Ignored)


def test_every_option_is_read_by_some_part_or_marked():
    root = Path(nl.__file__).parent
    source = "\n".join(path.read_text() for part in PARTS for path in sorted((root / part).rglob("*.py")))
    found = structs(Config, set())
    for options in SCHEDULER_KINDS.values():
        structs(options, found)
    silent = [f"{cls.__name__}.{one.attribute}" for cls in found for one in fields_of(cls)
              if not marked(one) and one.attribute not in ONE_CHOICE and not re.search(rf"\.{one.attribute}\b", source)]
    assert sorted(silent) == []
