"""The text forms of single values, table by table."""

import re
from fractions import Fraction

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from nl.config import values

ENV = {"HOST": "cas", "EMPTY": "", "N": "7", "BIG": " 10gb ", "YES": " True "}


@pytest.mark.parametrize(("raw", "result"), [
    ("plain", "plain"),
    ("", ""),
    ("  kept  ", "  kept  "),
    ("grpc://${HOST}:50051", "grpc://cas:50051"),
    ("$HOST/x", "cas/x"),
    ("$HOST$HOST", "cascas"),
    ("${NONE:-127.0.0.1}:1", "127.0.0.1:1"),
    ("${EMPTY:-filled}", "filled"),
    ("${HOST:-unused}", "cas"),
    ("${NONE:-}", ""),
    ("${NONE:-$HOST/data}", "cas/data"),
    ("$$HOST", "$HOST"),
    ("$${HOST}", "${HOST}"),
    ("a$", "a$"),
    ("a$1 $-", "a$1 $-"),
    ("~/x", "~/x"),
    ("$EMPTY", ""),
])
def test_text_is_expanded(raw, result):
    assert values.expand(raw, ENV) == result


@pytest.mark.parametrize(("raw", "problem"), [
    ("$NONE", "environment variable NONE is not set"),
    ("x${NONE}y", "environment variable NONE is not set"),
    ("${", '"${" has a ${ that is no ${NAME} or ${NAME:-default} (a plain $ is $$)'),
    ("${1}", '"${1}" has a ${ that is no ${NAME} or ${NAME:-default} (a plain $ is $$)'),
    (5, "5 is not text"),
    (None, "null is not text"),
    ([], "a list is not text"),
    ({}, "an object is not text"),
])
def test_bad_text_is_refused(raw, problem):
    with pytest.raises(ValueError, match=f"^{re.escape(problem)}$"):
        values.expand(raw, ENV)


@given(st.text())
def test_doubling_dollars_quotes_any_text(text):
    assert values.expand(text.replace("$", "$$"), {}) == text


@pytest.mark.parametrize(("raw", "result"), [
    (0, 0), (5, 5), ("5", 5), (" 5 ", 5), ("+5", 5), ("$N", 7), ("${NONE:-3}", 3), (1e9, 10**9),
    ((1 << 63) - 1, (1 << 63) - 1),
])
def test_counts(raw, result):
    assert values.count(raw, ENV) == result


@pytest.mark.parametrize(("raw", "problem"), [
    (True, "true is not a whole number"),
    (1.5, "1.5 is not a whole number"),
    ("1.5", '"1.5" is not a whole number'),
    ("10k", '"10k" is not a whole number'),
    ("", "empty text"),
    ("  ", '"  " comes out empty'),
    ("$EMPTY", '"$EMPTY" comes out empty'),
    (-1, "-1 is negative"),
    ("-1", "-1 is negative"),
    (1 << 63, "9223372036854775808 is too large"),
    (None, "null is not a whole number"),
    ("٣", '"٣" is not a whole number'),
])
def test_bad_counts(raw, problem):
    with pytest.raises(ValueError, match=f"^{re.escape(problem)}$"):
        values.count(raw, ENV)


@pytest.mark.parametrize(("raw", "result"), [(True, True), (False, False), ("true", True), ("FALSE", False),
                                             ("$YES", True), ("${NONE:-false}", False)])
def test_flags(raw, result):
    assert values.flag(raw, ENV) is result


@pytest.mark.parametrize(("raw", "problem"), [
    ("yes", '"yes" is not true or false'), ("", "empty text"), (1, "1 is not true or false"),
    (None, "null is not true or false"),
])
def test_bad_flags(raw, problem):
    with pytest.raises(ValueError, match=f"^{re.escape(problem)}$"):
        values.flag(raw, ENV)


@pytest.mark.parametrize(("raw", "result"), [
    (0, 0), (10000000000, 10**10), (1e9, 10**9),
    ("10", 10), ("10b", 10), ("10 B", 10), ("10mb", 10_000_000), ("10MB", 10_000_000), ("1kb", 1000), ("1KiB", 1024),
    ("1kib", 1024), ("1M", 1_000_000), ("20K", 20_000), ("1Mi", 1 << 20), ("1g", 10**9), ("1GiB", 1 << 30),
    ("1T", 10**12), ("1TiB", 1 << 40), ("1P", 10**15), ("1PiB", 1 << 50), ("1E", 10**18), ("1EiB", 1 << 60),
    ("1.5GB", 1_500_000_000), ("1.5 mb", 1_500_000), (".5kb", 500), ("1.KB", 1000), ("0.3KiB", 308),
    ("  7 gb\t", 7 * 10**9), ("$BIG", 10**10), ("${NONE:-1kb}", 1000), ((1 << 64) - 1, (1 << 64) - 1),
])
def test_sizes(raw, result):
    assert values.size(raw, ENV) == result


@pytest.mark.parametrize(("raw", "problem"), [
    (-1, "-1 is negative"),
    ("-1kb", '"-1kb" is negative'),
    ("", "empty text"),
    ("gb", '"gb" is not a size'),
    ("10 gigs", '"10 gigs" is not a size'),
    ("10kbit", '"10kbit" is not a size'),
    ("1e3", '"1e3" is not a size'),
    ("ten", '"ten" is not a size'),
    (1.5, "1.5 is not a size"),
    (True, "true is not a size"),
    ("16EiB", '"16EiB" is too large'),
    (1 << 64, "18446744073709551616 is too large"),
    (["10gb"], "a list is not a size"),
])
def test_bad_sizes(raw, problem):
    with pytest.raises(ValueError, match=f"^{re.escape(problem)}$"):
        values.size(raw, ENV)


@pytest.mark.parametrize(("raw", "result"), [
    (0, 0.0), (60, 60.0), (1.5, 1.5), ("0", 0.0), ("1s", 1.0), ("1m 10s", 70.0), ("1h2m3s", 3723.0), ("5m", 300.0),
    ("1d", 86400.0), ("1y3w4d5h6m7s", 33735967.0), ("1M", 30.44 * 86400), ("1month", 30.44 * 86400),
    ("500ms", 0.5), ("250us", 0.00025), ("1ns", 1e-9), ("2 hours 5 minutes", 7500.0), ("1week", 604800.0),
    ("1.5h", 5400.0), ("10sec", 10.0), ("  3 min ", 180.0), ("${NONE:-2s}", 2.0),
])
def test_durations(raw, result):
    assert values.duration(raw, ENV) == pytest.approx(result, rel=1e-12)


@pytest.mark.parametrize(("raw", "problem"), [
    (-1, "-1 is negative"),
    ("10", '"10" has no unit'),
    ("", "empty text"),
    ("soon", '"soon" is not a duration'),
    ("-5s", '"-5s" is not a duration'),
    ("5 parsecs", '"5 parsecs" has the unknown unit "parsecs"'),
    ("5S", '"5S" has the unknown unit "S"'),
    ("1h later", '"1h later" is not a duration'),
    (True, "true is not a duration"),
    (float("inf"), "Infinity is not a duration"),
    (1 << 70, "1180591620717411303424 is too long"),
    ("99999999999999y", '"99999999999999y" is too long'),
    ({}, "an object is not a duration"),
])
def test_bad_durations(raw, problem):
    with pytest.raises(ValueError, match=f"^{re.escape(problem)}$"):
        values.duration(raw, ENV)


def test_signed_durations_may_be_negative_numbers():
    assert values.duration(-1, {}, signed=True) == -1.0
    assert values.duration("10s", {}, signed=True) == 10.0


@pytest.mark.parametrize(("raw", "result"), [(500, 500), ("500", 500), ("500ms", 500), ("2s", 2000)])
def test_milliseconds(raw, result):
    assert values.milliseconds(raw, ENV) == result


@pytest.mark.parametrize(("raw", "result"), [(1, 1.0), (0.25, 0.25), ("0.25", 0.25), ("$N", 7.0)])
def test_numbers(raw, result):
    assert values.real(raw, ENV) == result


@pytest.mark.parametrize("raw", [True, None, "x", float("nan"), "inf", [], 10**400])
def test_bad_numbers(raw):
    with pytest.raises(ValueError, match="is not a (finite )?number"):
        values.real(raw, ENV)


_PADDING = st.sampled_from(["", " ", "  "])


@given(st.integers(0, 1 << 40), st.sampled_from(sorted(values.SIZE_UNITS)), _PADDING, st.booleans())
def test_every_unit_of_size_multiplies_in_any_letter_case(number, unit, space, upper):
    text = f"{number}{space}{unit.upper() if upper else unit}"
    expected = number * values.SIZE_UNITS[unit]
    if expected > values.MAX_SIZE:
        with pytest.raises(ValueError, match="is too large"):
            values.size(text, {})
    else:
        assert values.size(text, {}) == expected


@given(st.integers(0, values.MAX_SIZE))
@example(1_358_796_304_237_209_600)
def test_a_formatted_size_reads_back(number):
    assert values.size(values.format_size(number), {}) == number


@given(st.lists(st.tuples(st.integers(0, 999), st.sampled_from(sorted(values.DURATION_UNITS)), _PADDING), min_size=1))
def test_a_duration_is_the_sum_of_its_parts(parts):
    text = " ".join(f"{number}{space}{unit}" for number, unit, space in parts)
    expected = sum((number * values.DURATION_UNITS[unit] for number, unit, _ in parts), Fraction(0))
    assert values.duration(text, {}) == float(expected)


@given(st.integers(1, 10**12))
def test_a_formatted_duration_reads_back(milliseconds):
    assert values.duration(values.format_duration(milliseconds / 1000), {}) == milliseconds / 1000


@given(st.text(max_size=30))
def test_any_text_is_a_value_or_a_value_error(text):
    for parse in (values.expand, values.count, values.size, values.duration, values.flag, values.real,
                  values.milliseconds):
        try:
            parse(text, {})
        except ValueError as exc:
            assert "\n" not in str(exc)


@pytest.mark.parametrize(("number", "text"), [
    (0, "0 B"), (1, "1 B"), (1000, "1 kB"), (1024, "1 KiB"), (65536, "64 KiB"), (10**10, "10 GB"),
    (1_500_000, "1.5 MB"), (4 << 20, "4 MiB"), (1234567, "1234567 B"),
])
def test_sizes_are_shown_in_the_largest_exact_unit(number, text):
    assert values.format_size(number) == text


@pytest.mark.parametrize(("seconds", "text"), [
    (0, "0s"), (60, "1m"), (5400, "1h 30m"), (0.5, "500ms"), (-1, "-1s"), (90061.001, "1d 1h 1m 1s 1ms"),
])
def test_durations_are_shown_in_units(seconds, text):
    assert values.format_duration(seconds) == text


@pytest.mark.parametrize(("length", "shown"), [(57, 59), (58, 60), (59, 60), (500, 60)])
def test_a_value_in_a_message_is_shortened_to_a_line(length, shown):
    text = values.show("x" * length)  # with its quotes
    assert len(text) == shown
    assert text.endswith("..." if length > 58 else 'x"')


@pytest.mark.parametrize("raw", [5, None, True, [], {}])
def test_what_is_taken_literally_is_text_all_the_same(raw):
    assert values.literal("$HOME ${") == "$HOME ${"
    with pytest.raises(ValueError, match="is not text"):
        values.literal(raw)
