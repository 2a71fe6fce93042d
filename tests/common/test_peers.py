"""common/peers.py: processes meet in a store that others have used before them."""

import threading
from datetime import timedelta

import pytest
from torch.distributed import DistStoreError, HashStore, PrefixStore

from common.peers import Peers, meet


def gathering(store, ranks, *, size=3, within=10.0):
    """Has the ranks meet, each in a thread; returns the value that each then finds behind one key of rank 0's."""
    found, errors = {}, []
    store.set_timeout(timedelta(seconds=within))

    def come(rank):
        try:
            part = meet(store, rank, size, within=within)
            if rank == 0:
                part.set("key", f"{id(found)}")
            found[rank] = part.get("key").decode()
        except DistStoreError:  # the first one has given up
            pass
        except TimeoutError as error:
            errors.append(str(error))

    threads = [threading.Thread(target=come, args=(rank,)) for rank in ranks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    return found, errors, str(id(found))


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
def test_each_round_has_a_part_of_the_store_of_its_own(order):
    store = HashStore()
    for _ in range(3):  # a restart finds the words and the answer of the rounds before
        found, errors, token = gathering(store, order)
        assert errors == [] and found == dict.fromkeys((0, 1, 2), token)


def test_a_smaller_round_follows_a_larger_one():
    store = HashStore()
    gathering(store, (0, 1, 2))
    found, errors, token = gathering(store, (1, 0), size=2)
    assert errors == [] and found == dict.fromkeys((0, 1), token)


def test_who_has_not_come_is_named():
    store = HashStore()
    gathering(store, (0, 1, 2))  # the words of a round before do not count
    assert gathering(store, (0, 1), within=0.5)[1] == ["no word from rank 2"]
    assert gathering(HashStore(), (1,), within=0.5)[1] == ["no word from rank 0"]


def test_the_first_failure_is_everyones():
    store = HashStore()
    one, other = (Peers(store, rank, 2) for rank in range(2))
    first = other.first_failure("the file is missing")
    assert (first.rank, first.message, first.host) == (1, "the file is missing", one.host)
    assert one.first_failure("lost rank 1") == first


def test_the_silent_are_named_with_their_place(monkeypatch):
    monkeypatch.setattr("common.peers.SIGNS_WITHIN", 0.3)
    store = HashStore()
    peers = [Peers(store, rank, 4) for rank in range(3)]  # the fourth has never come
    PrefixStore("peers", store).set("sign/1", "here")
    assert peers[0].silent() == [f"rank 2 ({peers[2]._place})", "rank 3"]


def test_a_store_that_is_gone_is_asked_once(monkeypatch):
    class Gone:
        asked = 0

        def __getattr__(self, name):
            def fail(*arguments):
                Gone.asked += 1
                raise RuntimeError("connection closed")

            return fail

    monkeypatch.setattr("common.peers.PrefixStore", lambda prefix, store: store)
    peers = Peers(Gone(), 0, 2)
    assert peers.first_failure("x").message == "x"
    assert peers.silent() == ["rank 1"]
    peers.leave()
    assert Gone.asked == 1


def test_a_store_that_hangs_is_given_up(monkeypatch):
    class Hanging:
        def __getattr__(self, name):
            return lambda *arguments: threading.Event().wait(20)

    monkeypatch.setattr("common.peers.ANSWER_WITHIN", 0.2)
    monkeypatch.setattr("common.peers.PrefixStore", lambda prefix, store: store)
    peers = Peers(Hanging(), 0, 2)
    assert peers.first_failure("x").rank == 0
    peers.leave()
