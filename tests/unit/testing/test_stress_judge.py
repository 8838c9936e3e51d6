"""The judge of `./dev stress`: when a blob that has gone was lost."""

import time

import pytest

from tests.stress.judge import Judge


@pytest.fixture
def judges(tmp_path):
    folder = tmp_path / "d"
    folder.mkdir()
    names = [f"{number}" for number in range(4)]
    for name in names[:3]:
        (folder / name).touch()
    return [Judge(tmp_path / "judge", folder, names, processes=2, own=own) for own in range(2)]


def test_what_nobody_has_used_since_is_older(judges):
    one, two = judges
    with one.use(0), two.use(1):
        pass
    when = time.monotonic()
    with one.use(0, 3):
        assert one.older(when) in {"1", "2"}
    with two.use(2):
        pass
    assert one.older(when) == two.older(when) == "1"
    with one.use(1):
        pass
    assert one.older(when) is two.older(when) is None
    assert one.older(time.monotonic()) is not None


def test_what_is_being_used_is_not_older_until_its_process_is_buried(judges):
    one, two = judges
    with one.use(0, 1):
        pass
    two.begin(0, 1, 2)
    now = time.monotonic()
    assert one.older(now) is None
    one.bury(1)
    assert one.older(now) is None, "it may have been used until then"
    assert one.older(time.monotonic()) is not None
