"""No option is silently without effect: some part reads it, or setting it is refused or warned of."""

import dataclasses
import re
from pathlib import Path
from typing import get_args

import nl
from nl.config.document import Config
from nl.config.fields import Ignored, Unsupported, fields_of
from nl.config.schedulers import SimpleSchedulerOptions
from nl.config.types import Options
from nl.scheduler import options as scheduler

PARTS = ("server", "services", "worker", "rpc", "web", "auth")
ONE_CHOICE = {"experimental_backend"}


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
    silent = [f"{cls.__name__}.{one.attribute}" for cls in structs(Config, set()) for one in fields_of(cls)
              if not marked(one) and not re.search(rf"\.{one.attribute}\b", source)]
    assert sorted(silent) == []


def test_the_scheduler_takes_every_option_with_the_same_default():
    taken = {one.name: one for one in dataclasses.fields(scheduler.SimpleSchedulerOptions)}
    defaults = scheduler.SimpleSchedulerOptions()
    for one in fields_of(SimpleSchedulerOptions):
        if not marked(one) and one.attribute not in ONE_CHOICE:
            assert one.attribute in taken, one.key
            assert getattr(defaults, one.attribute) == one.default, one.key
