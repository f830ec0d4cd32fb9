import multiprocessing
import threading

import pytest
import torch

from im2sp.pipeline.core_threads import SingleCorePool


@pytest.fixture
def two_cores():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def where(item):
    return item, torch.get_num_threads(), threading.current_thread().name


@pytest.mark.usefixtures("two_cores")
def test_items_in_order_on_one_core_each():
    threads = SingleCorePool()
    found = threads.map(where, range(20))
    assert [item for item, _, _ in found] == list(range(20))
    assert {cores for _, cores, _ in found} == {1}
    assert all(name.startswith("im2sp-core") for _, _, name in found)
    assert torch.get_num_threads() == 2


@pytest.mark.usefixtures("two_cores")
def test_other_threads_keep_all_cores():
    SingleCorePool().map(where, range(4))
    found = []
    other = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
    other.start()
    other.join()
    assert found == [2]


@pytest.mark.usefixtures("two_cores")
def test_few_items_get_all_cores():
    assert SingleCorePool().map(where, [7]) == [(7, 2, threading.current_thread().name)]


@pytest.mark.usefixtures("two_cores")
def test_the_number_of_cores_may_change():
    threads = SingleCorePool()
    threads.map(where, range(4))
    torch.set_num_threads(1)
    assert {cores for _, cores, _ in threads.map(where, range(4))} == {1}
    assert torch.get_num_threads() == 1
    torch.set_num_threads(3)
    assert len(threads.map(where, range(6))) == 6
    assert torch.get_num_threads() == 3


@pytest.mark.usefixtures("two_cores")
def test_an_error_reaches_the_caller():
    def fail(item):
        raise ValueError(f"image {item}")

    with pytest.raises(ValueError, match="image 0"):
        SingleCorePool().map(fail, range(4))


def work_in_child(threads, queue):
    queue.put([item for item, _, _ in threads.map(where, range(4))])


@pytest.mark.usefixtures("two_cores")
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_a_forked_child_makes_its_own_threads():
    context = multiprocessing.get_context("fork")
    threads = SingleCorePool()
    threads.map(where, range(4))
    queue = context.Queue()
    child = context.Process(target=work_in_child, args=(threads, queue))
    child.start()
    assert queue.get(timeout=60) == [0, 1, 2, 3]
    child.join()
