from nl.plugin import digest_of
from nl.storage import removals
from nl.storage.removals import RemovalFeed, RemovalFeeds

ONE, TWO = digest_of(b"1"), digest_of(b"2")


def test_each_feed_tells_what_was_removed_since_its_own_last_look():
    feeds = RemovalFeeds()
    feeds.removed(ONE)
    early = feeds.watch()
    assert early.take() == ()
    feeds.removed(ONE)
    late = feeds.watch()
    feeds.removed(TWO)
    assert (early.take(), late.take()) == ([ONE, TWO], [TWO])
    assert (early.take(), late.take()) == ((), ())


def test_a_feed_that_nobody_reads_stays_bounded_and_says_that_it_lost_track(monkeypatch):
    monkeypatch.setattr(removals, "MAX_PENDING", 3)
    feeds = RemovalFeeds()
    feed = feeds.watch()
    assert RemovalFeed().take() == ()
    for _ in range(4):
        feeds.removed(ONE)
    assert len(feed._keys) <= 3
    assert feed.take() is None
    feeds.removed(TWO)
    assert feed.take() == [TWO]


def test_what_was_lost_track_of_is_not_told_apart():
    feeds = RemovalFeeds()
    feed = feeds.watch()
    feeds.removed(ONE)
    feeds.lost_track()
    assert not feed._keys, "they say nothing any more"
    assert feed.take() is None
    assert feed.take() == ()


def test_a_feed_ends_with_its_watcher():
    feeds = RemovalFeeds()
    feed = feeds.watch()
    assert feeds
    del feed
    assert not feeds


def test_a_feed_keeps_a_hundred_thousand_removals_exactly():
    feeds = RemovalFeeds()
    feed = feeds.watch()
    for count in (100_000, 100_001):
        for number in range(count):
            feeds.removed(f"{number}")
        keys = feed.take()
        assert (keys is None) == (count > 100_000) and (keys is None or len(keys) == count)


def test_a_feed_of_the_stores_own_making_is_told_as_well():
    class Counted(RemovalFeed):
        __slots__ = ()

        def take(self):
            return len(super().take())

    feeds = RemovalFeeds()
    own = Counted()
    assert feeds.watch(own) is own
    feeds.removed(ONE)
    assert own.take() == 1


def test_all_feeds_of_a_store_lose_track_together():
    feeds = RemovalFeeds()
    both = [feeds.watch() for _ in range(2)]
    feeds.lost_track()
    assert [feed.take() for feed in both] == [None, None]
