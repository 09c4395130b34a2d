"""Delivery: hands what a round has to say to its listeners, as frames that are made once and shared by everybody who is told the same.

No task, no await and no queue per listener. A round is planned at once and handed out in slices of `SLICE` writes with a breath between, so
that a 5,000-wide broadcast never holds the loop for more than a millisecond (on a prototype, HTTP p99 46 ms without slices, 1.5 ms with
them). Whoever does not read has the newest kept in its mailbox instead (engine/live/listener.py).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from engine.live.audience import Audience, Touched
from engine.live.channels import POSITION
from engine.live.frames import Wire
from engine.live.listener import BBOX, Listener
from engine.live.updates import Part, Update, framed, merged
from engine.meter import Meter

SLICE: Final = 25  # sockets written between two yields, 0.2-0.4 ms: with 100, HTTP p50 was twice as long; 10 cost CPU
PARTS_SLICE: Final = 100  # updates encoded between two yields: about 0.5 ms
NEVER: Final = 1 << 62

Breathe = Callable[[], Awaitable[None]]


class Job:
    """The same parts for many listeners. `first` is the oldest version among them: whoever subscribed later gets only what is newer."""

    __slots__ = ("first", "frames", "listeners", "names", "parts")

    def __init__(self, names: tuple[str, ...], parts: list[Part], listeners: list[Listener]) -> None:
        self.names, self.parts, self.listeners = names, parts, listeners
        self.first = min([update.version for update, _ in parts])
        self.frames: dict[Wire, bytes] = {}


class Delivery:
    """Of one hub."""

    def __init__(self, meter: Meter) -> None:
        self._sent = meter.counter("timepoint_live_deliveries_total", "frames handed to listeners")
        self._kept = meter.counter("timepoint_live_kept_total", "updates kept for stalled listeners")

    async def say(self, audience: Audience, touched: Touched, breathe: Breathe) -> dict[Listener, list[str]]:
        """To the crowd of each channel, its listeners of nothing else. Answers the others, with their channels that have something to say."""
        jobs, mixed = self._planned(audience, touched)
        wide = []
        written = 0
        for job in jobs:  # narrow ones first: a crowd must not hold up who is alone
            if len(job.listeners) > SLICE or len(job.parts) > PARTS_SLICE:
                wide.append(job)
                continue
            self._hand_out(job, job.listeners)
            written += len(job.listeners)
            if written >= SLICE:
                written = 0
                await breathe()
        for job in wide:
            await self.slices(job, breathe)
        return mixed

    def _planned(self, audience: Audience, touched: Touched) -> tuple[list[Job], dict[Listener, list[str]]]:
        jobs = []
        mixed: dict[Listener, list[str]] = {}
        channels = audience.channels
        for name, updates in touched.items():
            listeners = list(channels[name].listeners)
            alone = [listener for listener in listeners if len(listener.channels) == 1]
            if len(alone) < len(listeners):
                for listener in listeners:
                    if len(listener.channels) > 1:
                        mixed.setdefault(listener, []).append(name)
            if alone:
                names = (name,)
                jobs.append(Job(names, [(update, names) for update in updates], alone))
        return jobs, mixed

    async def say_mixed(self, mixed: dict[Listener, list[str]], touched: Touched, breathe: Breathe) -> None:
        """To those who listen to several channels: each update once, naming all that carry it; frames shared by who has the same ones."""
        groups: dict[tuple[str, ...], list[Listener]] = {}
        for listener, names in mixed.items():
            groups.setdefault(tuple(names), []).append(listener)
        for number, (group, listeners) in enumerate(groups.items()):
            if number % SLICE == SLICE - 1:
                await breathe()
            await self.slices(Job(group, merged(group, touched), listeners), breathe)

    async def slices(self, job: Job, breathe: Breathe) -> None:
        """One job with breaths between."""
        if len(job.parts) > PARTS_SLICE:
            for encoding in {listener.wire.encoding for listener in job.listeners}:
                for number, (update, names) in enumerate(job.parts):
                    update.push(encoding, names)
                    if number % PARTS_SLICE == PARTS_SLICE - 1:
                        await breathe()
        listeners = job.listeners
        self._hand_out(job, listeners[:SLICE])
        for start in range(SLICE, len(listeners), SLICE):
            await breathe()
            self._hand_out(job, listeners[start : start + SLICE])

    def _hand_out(self, job: Job, listeners: Sequence[Listener]) -> None:
        names, first, parts, made = job.names, job.first, job.parts, job.frames
        single = names[0] if len(names) == 1 else None
        count = 0
        for listener in listeners:
            channels = listener.channels
            if single is not None:
                is_new = channels.get(single, NEVER) >= first
            else:
                is_new = any(channels.get(name, NEVER) >= first for name in names)
            if is_new:
                self.give_new(listener, parts)
            elif listener.mailbox is None:
                wire = listener.wire
                frame = made.get(wire)
                if frame is None:
                    frame = made[wire] = framed(wire, parts)
                listener.write(frame)
                count += 1
            else:
                self._keep(listener, parts)
        self._sent.add(count)

    def give_new(self, listener: Listener, parts: list[Part]) -> None:
        """Only what is newer than the listener's subscription of the channel that carries it."""
        fresh = []
        for update, names in parts:
            kept = tuple([name for name in names if listener.channels.get(name, NEVER) < update.version])
            if kept:
                fresh.append((update, kept))
        if fresh:
            self.give(listener, fresh)

    def give(self, listener: Listener, parts: list[Part]) -> None:
        if listener.mailbox is None:
            listener.write(framed(listener.wire, parts))
            self._sent.add()
        else:
            self._keep(listener, parts)

    def _keep(self, listener: Listener, parts: list[Part]) -> None:
        box = listener.mailbox
        assert box is not None
        encoding = listener.wire.encoding
        self._kept.add(len(parts))
        for update, names in parts:
            if update.kind == "snapshot":
                box.owe(dict.fromkeys(names))
                continue
            key = update.key if update.kind == "pos" else (update.key, names)
            if not box.keep(key, names, update.push(encoding, names)):
                box.owe(dict.fromkeys(name for name in listener.channels if name.partition(":")[0] in POSITION or name == BBOX))


def with_view(parts: list[Part], seen: list[Update]) -> list[Part]:
    """The updates of a viewport among those of the listener's other channels: a vehicle that both carry is said once."""
    at = {(update.kind, update.key): index for index, (update, _) in enumerate(parts)}
    out = list(parts)
    for update in seen:
        index = at.get((update.kind, update.key))
        if index is None:
            out.append((update, (BBOX,)))
        else:
            out[index] = (out[index][0], (*out[index][1], BBOX))
    out.sort(key=lambda part: part[0].version)
    return out
