import pytest

from nl.errors import InvalidRequestError
from nl.scheduler.matching import PropertyRules, Requirements

KINDS = {"cpu": "minimum", "ISA": "exact", "pool": "priority", "note": "ignore"}
IMPLIED = {"OSFamily": ("linux",)}


def rules(**more):
    return PropertyRules(KINDS, implied=IMPLIED, **more)


def lacks(offer, *platform):
    it = rules()
    made = it.offer(offer)
    return made.lacks(it.requirements(platform))


@pytest.mark.parametrize(
    ("offer", "platform"),
    [
        ((), ()),
        ((("ISA", "arm"),), ()),
        ((("ISA", "arm"),), (("ISA", "arm"),)),
        ((("ISA", "arm"), ("ISA", "x86"), ("ISA", "avx")), (("ISA", "x86"), ("ISA", "avx"))),
        ((("ISA", ""),), (("ISA", "anything"),)),
        ((("cpu", "8"),), (("cpu", "8"),)),
        ((("cpu", "8"),), (("cpu", "0"),)),
        ((("pool", "a"),), (("pool", "b"),)),
        ((), (("note", "whatever"),)),
        ((), (("OSFamily", "linux"),)),
        ((), (("OSFamily", "Linux"),)),
        ((("OSFamily", "linux"),), (("OSFamily", "linux"),)),
        ((("OSFamily", ""),), (("OSFamily", "windows"),)),
        ((("unlisted", "x"),), (("unlisted", "x"),)),
    ],
)
def test_these_match(offer, platform):
    assert lacks(offer, *platform) is None


@pytest.mark.parametrize(
    ("offer", "platform", "missing"),
    [
        ((), (("ISA", "arm"),), "ISA=arm"),
        ((("ISA", "x86"),), (("ISA", "arm"),), "ISA=arm"),
        ((("ISA", "x86"),), (("ISA", "arm"), ("ISA", "x86")), "ISA=arm"),
        ((), (("cpu", "0"),), "cpu>=0"),
        ((("cpu", "8"),), (("cpu", "9"),), "cpu>=9"),
        ((), (("pool", "b"),), "pool=*"),
        ((("OSFamily", "windows"),), (("OSFamily", "linux"),), "OSFamily=linux"),
        ((), (("OSFamily", "windows"),), "OSFamily=windows"),
        ((("unlisted", "x"),), (("unlisted", "y"),), "unlisted=y"),
    ],
)
def test_these_do_not(offer, platform, missing):
    assert lacks(offer, *platform) == missing


def test_a_name_nobody_knows_is_refused_by_name():
    it = rules()
    it.offer([("ISA", "x86")])
    with pytest.raises(InvalidRequestError, match="unknown platform property 'containr-image'.*known here: ISA") as got:
        it.requirements((("containr-image", "x"),))
    assert got.value.details[0].field == "platform.properties"


def test_before_there_was_a_worker_nobody_can_tell_what_is_unknown():
    assert rules().requirements((("later", "x"),)) == Requirements(equal=(("later", "x"),))


def test_what_one_worker_declares_is_known_even_after_it_is_gone():
    it = rules()
    it.offer([("gpu", "yes")])
    other = it.offer([])
    assert other.lacks(it.requirements((("gpu", "yes"),))) == "gpu=yes"


def test_unknown_names_may_be_ignored_on_request():
    it = rules(reject_unknown=False)
    it.offer([])
    assert it.requirements((("whatever", "x"),)) == Requirements()


@pytest.mark.parametrize("value", ["", "-1", "1.5", "x", "١", str(1 << 64), "9" * 5000])
def test_an_amount_that_is_no_number_is_refused_on_both_sides(value):
    with pytest.raises(InvalidRequestError, match="platform property 'cpu'"):
        rules().requirements((("cpu", value),))
    with pytest.raises(InvalidRequestError, match="platform property 'cpu'"):
        rules().offer([("cpu", value)])


def test_requirements_do_not_depend_on_the_order_of_properties_nor_on_ignored_ones():
    it = rules()
    one = it.requirements((("ISA", "b"), ("ISA", "a"), ("cpu", "2"), ("cpu", "3"), ("note", "1")))
    other = it.requirements((("note", "2"), ("cpu", "3"), ("ISA", "a"), ("ISA", "b")))
    assert one == other
    assert hash(one) == hash(other)
    assert str(one) == "ISA=a, ISA=b, cpu>=3"


@pytest.mark.parametrize("platform", [(("ISA", "x"),) * 300, (("ISA", "x" * 20_000),)])
def test_absurdly_many_properties_are_refused(platform):
    with pytest.raises(InvalidRequestError, match="too many"):
        rules().requirements(platform)
