"""Wrong credentials cost their sender, and nobody else."""

import logging

import pytest

from nl.auth import throttle
from nl.auth.throttle import (
    BURST,
    FREE,
    MAX_ADDRESSES,
    MAX_CONNECTIONS,
    MAX_LINES,
    REFILL_S,
    FailureThrottle,
    address_of,
)


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


@pytest.mark.parametrize(
    ("peer", "address"),
    [
        ("10.0.0.1:5", "10.0.0.1"), ("[2001:db8::1]:5", "2001:db8::/64"), ("[2001:db8::ffff]:9", "2001:db8::/64"),
        ("[::ffff:10.0.0.1]:5", "10.0.0.1"), ("[fe80::1%eth0]:5", "fe80::/64"), ("local", "local"),
        ("unknown", "unknown"), ("unix:/run/nl.sock", "unix:/run/nl.sock"), ("nohost:x", "nohost:x"),
        ("/run/nl.sock", "/run/nl.sock"), ("host:5", "host"),
    ],
)  # fmt: skip
def test_hosts_count_by_address_and_ipv6_networks_as_one(peer, address):
    assert address_of(peer) == address


def test_after_a_burst_who_has_sent_of_it_waits_and_others_do_not():
    clock = Clock()
    failures = FailureThrottle(clock=clock)
    for _ in range(BURST):
        assert not failures.is_blocked("10.0.0.1:1")
        failures.checked_in_vain("10.0.0.1:1")
    assert failures.is_blocked("10.0.0.1:1")
    assert not failures.is_blocked("10.0.0.1:2"), "a neighbour behind the same address"
    for _ in range(FREE):
        assert not failures.is_blocked("10.0.0.1:3"), "nor one that has been wrong once or twice"
        failures.checked_in_vain("10.0.0.1:3")
    assert failures.is_blocked("10.0.0.1:3")
    assert not failures.is_blocked("10.0.0.2:1")
    for _ in range(1000):
        failures.checked_in_vain("10.0.0.1:3")
    clock.now += 1.01 * REFILL_S
    assert not failures.is_blocked("10.0.0.1:1"), "more failures do not make the wait longer"
    failures.checked_in_vain("10.0.0.1:1")
    assert failures.is_blocked("10.0.0.1:1")
    clock.now += 1000
    assert not failures.is_blocked("10.0.0.1:1")


def test_what_costs_nothing_to_find_wrong_is_counted_and_blocks_nobody():
    failures = FailureThrottle(clock=Clock())
    for _ in range(3 * BURST):
        failures.failed("10.0.0.1:1", "x")
    assert failures.total == 3 * BURST
    assert not failures.is_blocked("10.0.0.1:1")


def test_what_is_remembered_is_bounded():
    failures = FailureThrottle(clock=Clock())
    for number in range(3 * MAX_ADDRESSES):
        failures.failed(f"host{number}:1", "x")
    assert len(failures._addresses) == MAX_ADDRESSES
    for number in range(3 * MAX_CONNECTIONS):
        failures.checked_in_vain(f"host:{number}")
    assert len(failures._connections) == MAX_CONNECTIONS
    assert failures.total == 3 * MAX_ADDRESSES


def test_an_address_gets_one_line_a_minute_that_counts_the_others(caplog):
    clock = Clock()
    failures = FailureThrottle(clock=clock)
    with caplog.at_level(logging.DEBUG, "nl.auth"):
        for _ in range(50):
            failures.failed("10.0.0.1:1", "the token is not known here")
        assert caplog.messages == ["wrong credentials from 10.0.0.1: the token is not known here"]
        clock.now += throttle.LOG_S
        failures.failed("10.0.0.1:1", "x")
        assert caplog.messages[1:] == ["wrong credentials from 10.0.0.1: x (50 times since the last such line)"]


def test_many_addresses_do_not_fill_the_log(caplog):
    failures = FailureThrottle(clock=Clock())
    for number in range(500):
        failures.failed(f"10.0.{number // 250}.{number % 250}:1", "x")
    assert len(caplog.messages) == MAX_LINES


def test_the_longest_unheard_of_is_forgotten_first():
    failures = FailureThrottle(clock=Clock())
    for number in range(MAX_ADDRESSES):
        failures.failed(f"host{number}:1", "x")
    failures.failed("host0:1", "x")  # heard of again
    failures.failed("new:1", "x")
    assert {"host0", "new", "host2"} <= set(failures._addresses)
    assert "host1" not in failures._addresses
    for number in range(MAX_CONNECTIONS):
        failures.checked_in_vain(f"host:{number}")
    failures.checked_in_vain("host:0")
    failures.checked_in_vain("host:new")
    assert (failures._connections["host:0"], failures._connections["host:new"]) == (2, 1)
    assert "host:1" not in failures._connections


def test_who_has_been_forgotten_is_not_blocked():
    failures = FailureThrottle(clock=Clock())
    for _ in range(BURST):
        failures.checked_in_vain("10.0.0.1:1")
    assert failures.is_blocked("10.0.0.1:1")
    for number in range(MAX_ADDRESSES):
        failures.failed(f"host{number}:1", "x")
    assert not failures.is_blocked("10.0.0.1:1")


@pytest.mark.parametrize(("waited", "blocked"), [(0.0, True), (0.9 * REFILL_S, True), (1.1 * REFILL_S, False)])
def test_each_span_allows_one_more(waited, blocked):
    clock = Clock()
    failures = FailureThrottle(clock=clock)
    for _ in range(BURST):
        failures.checked_in_vain("10.0.0.1:1")
    clock.now += waited
    assert failures.is_blocked("10.0.0.1:1") is blocked


def test_what_was_long_ago_counts_for_nothing():
    clock = Clock()
    failures = FailureThrottle(clock=clock)
    for _ in range(BURST // 2):
        failures.checked_in_vain("10.0.0.1:1")
    clock.now += 100 * BURST * REFILL_S
    for _ in range(BURST - 1):
        failures.checked_in_vain("10.0.0.1:1")
        assert not failures.is_blocked("10.0.0.1:1")
    failures.checked_in_vain("10.0.0.1:1")
    assert failures.is_blocked("10.0.0.1:1"), "and waiting has saved nothing up"


def test_lines_of_all_addresses_come_back_after_a_minute(caplog):
    clock = Clock()
    failures = FailureThrottle(clock=clock)
    for number in range(MAX_LINES + 5):
        failures.failed(f"10.0.0.{number}:1", "x")
    clock.now += throttle.LOG_S - 0.1
    failures.failed("10.0.1.1:1", "x")
    assert len(caplog.messages) == MAX_LINES
    clock.now += 0.1
    failures.failed("10.0.1.1:1", "y")
    assert len(caplog.messages) == MAX_LINES + 1
    assert caplog.messages[-1] == "wrong credentials from 10.0.1.1: y (2 times since the last such line)"
    for number in range(MAX_LINES + 5):
        failures.failed(f"10.0.2.{number}:1", "x")
    assert len(caplog.messages) == 2 * MAX_LINES


def test_an_address_gets_its_next_line_when_the_minute_is_over(caplog):
    clock = Clock()
    failures = FailureThrottle(clock=clock)
    failures.failed("10.0.0.1:1", "x")
    clock.now += throttle.LOG_S - 0.1
    failures.failed("10.0.0.1:1", "x")
    assert len(caplog.messages) == 1
    clock.now += 0.1
    failures.failed("10.0.0.1:1", "x")
    assert len(caplog.messages) == 2


def test_the_figures_that_the_design_names():
    assert (BURST, REFILL_S, FREE, MAX_ADDRESSES, MAX_CONNECTIONS) == (100, 0.1, 3, 1024, 4096)
    assert (throttle.LOG_S, MAX_LINES) == (60.0, 20)
