"""Turns: order per key, overlap otherwise, cancellation before the act and not during it."""

from __future__ import annotations

import asyncio
import random

import pytest

from ubi_rpc.storage.turns import Key, Turns


def _keys(*names: str) -> set[Key]:
    return {("x", name) for name in names}


class Recorder:
    """Acts that record their begin and end and wait to be let go."""

    def __init__(self) -> None:
        self.turns = Turns()
        self.log: list[str] = []
        self.gates: dict[str, asyncio.Event] = {}

    def start(self, name: str, *keys: str) -> asyncio.Task[str]:
        """Start an act that ends when its gate is opened."""
        gate = self.gates[name] = asyncio.Event()

        async def act() -> str:
            self.log.append(f"+{name}")
            await gate.wait()
            self.log.append(f"-{name}")
            return name

        return asyncio.create_task(self.turns.run(lambda: _keys(*keys), act))


async def _idle() -> None:
    """Let everything run that can."""
    for _ in range(20):
        await asyncio.sleep(0)


async def test_acts_on_one_key_run_in_order_of_arrival() -> None:
    record = Recorder()
    tasks = [record.start(name, "k") for name in "abc"]
    for name in "abc":
        await _idle()
        assert record.log[-1] == f"+{name}"
        record.gates[name].set()
    assert list(await asyncio.gather(*tasks)) == ["a", "b", "c"]
    assert record.log == ["+a", "-a", "+b", "-b", "+c", "-c"]


async def test_acts_on_different_keys_overlap() -> None:
    record = Recorder()
    tasks = [record.start("a", "k"), record.start("b", "l")]
    await _idle()
    assert record.log == ["+a", "+b"]
    record.gates["b"].set()
    assert await tasks[1] == "b"
    record.gates["a"].set()
    await tasks[0]


async def test_an_act_that_waits_holds_up_later_ones_on_its_keys() -> None:
    """While b waits for a, c, which shares only l with b, must not overtake it: b was asked first."""
    record = Recorder()
    tasks = [record.start("a", "k"), record.start("b", "k", "l"), record.start("c", "l")]
    await _idle()
    assert record.log == ["+a"]
    for name in "abc":
        record.gates[name].set()
    await asyncio.gather(*tasks)
    assert record.log == ["+a", "-a", "+b", "-b", "+c", "-c"]


async def test_keys_that_grow_while_waiting_are_respected() -> None:
    """A deletion of k learns, while it waits, that l stands on k, where somebody already acts."""
    record = Recorder()
    grown = {"k"}
    record.gates["d"] = asyncio.Event()

    async def act() -> str:
        record.log.append("+d")
        return "d"

    first = record.start("a", "k")
    deletion = asyncio.create_task(record.turns.run(lambda: _keys(*grown), act))
    other = record.start("o", "l")
    await _idle()
    grown.add("l")
    late = record.start("late", "l")
    record.gates["a"].set()
    await _idle()
    assert record.log == ["+a", "+o", "-a"]
    record.gates["o"].set()
    await deletion
    record.gates["late"].set()
    await asyncio.gather(first, other, late)
    assert record.log == ["+a", "+o", "-a", "-o", "+d", "+late", "-late"]


async def test_a_waiting_caller_that_is_cancelled_never_acts() -> None:
    record = Recorder()
    first, second, third = (record.start(name, "k") for name in "abc")
    await _idle()
    second.cancel()
    await _idle()
    record.gates["a"].set()
    record.gates["c"].set()
    assert list(await asyncio.gather(first, third)) == ["a", "c"]
    assert "+b" not in record.log


async def test_a_caller_that_is_cancelled_as_its_turn_comes_frees_the_key() -> None:
    record = Recorder()
    first, second, third = (record.start(name, "k") for name in "abc")
    await _idle()
    record.gates["a"].set()
    first.add_done_callback(lambda _: second.cancel())
    record.gates["b"].set()
    record.gates["c"].set()
    assert await third == "c"


async def test_an_act_goes_on_when_its_caller_is_cancelled() -> None:
    record = Recorder()
    first = record.start("a", "k")
    await _idle()
    first.cancel()
    second = record.start("b", "k")
    record.gates["b"].set()
    await _idle()
    assert record.log == ["+a"]  # the key is still taken
    record.gates["a"].set()
    assert await second == "b"
    assert record.log == ["+a", "-a", "+b", "-b"]
    with pytest.raises(asyncio.CancelledError):
        await first


async def test_an_act_that_fails_without_its_caller_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    turns, gate = Turns(), asyncio.Event()

    async def act() -> None:
        await gate.wait()
        raise OSError("the disk is gone")

    caller = asyncio.create_task(turns.run(lambda: _keys("k"), act))
    await _idle()
    caller.cancel()
    gate.set()
    await turns.drain()
    await _idle()
    assert "the disk is gone" in caplog.text


async def test_an_act_that_fails_frees_its_key() -> None:
    turns = Turns()

    async def act() -> None:
        raise OSError("no")

    for _ in range(2):
        with pytest.raises(OSError, match="no"):
            await turns.run(lambda: _keys("k"), act)


async def test_settled_waits_for_what_was_asked_before_and_not_for_what_comes_later() -> None:
    record = Recorder()
    first = record.start("a", "k")
    await _idle()
    everything = asyncio.create_task(record.turns.settled(None, 60))
    of_k = asyncio.create_task(record.turns.settled(_keys("k"), 60))
    await record.turns.settled(_keys("l"), 60)
    later = record.start("later", "k")
    await _idle()
    assert not everything.done()
    assert not of_k.done()
    record.gates["a"].set()
    await everything
    await of_k
    record.gates["later"].set()
    await asyncio.gather(first, later)


async def test_settled_gives_up_after_its_limit() -> None:
    record = Recorder()
    first = record.start("a", "k")
    await record.turns.settled(None, 0.01)
    assert not first.done()
    record.gates["a"].set()
    await first


async def test_keys_that_grow_come_before_later_requests_whatever_was_cancelled_between() -> None:
    """The deletion d of k learns of l. Of l's queue, b was cancelled and c came later, so d goes before c."""
    record = Recorder()
    grown = {"k"}
    first = record.start("a", "k", "l")

    async def act() -> None:
        record.log.append("+d")

    deletion = asyncio.create_task(record.turns.run(lambda: _keys(*grown), act))
    cancelled, later = record.start("b", "l"), record.start("c", "l", "k")
    await _idle()
    cancelled.cancel()
    await _idle()
    grown.add("l")
    record.gates["a"].set()
    record.gates["c"].set()
    await asyncio.gather(first, deletion, later)
    assert record.log == ["+a", "-a", "+d", "+c", "-c"]


@pytest.mark.parametrize("seed", range(20))
async def test_random_acts_never_share_a_key_and_all_end(seed: int) -> None:
    chance, turns, busy = random.Random(seed), Turns(), set[Key]()
    order: dict[Key, list[int]] = {}

    async def one(number: int, keys: set[Key]) -> None:
        async def act() -> None:
            assert busy.isdisjoint(keys)
            busy.update(keys)
            for key in keys:
                order.setdefault(key, []).append(number)
            for _ in range(chance.randrange(4)):
                await asyncio.sleep(0)
            busy.difference_update(keys)

        await turns.run(lambda: keys, act)

    picks = [_keys(*chance.sample("abcdef", chance.randint(1, 3))) for _ in range(60)]
    tasks = [asyncio.create_task(one(number, keys)) for number, keys in enumerate(picks)]
    for task in chance.sample(tasks, 10):
        asyncio.get_running_loop().call_soon(task.cancel)
    await asyncio.gather(*tasks, return_exceptions=True)
    await turns.drain()
    for numbers in order.values():
        assert numbers == sorted(numbers)
