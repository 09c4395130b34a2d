"""An even share of connections for each of several workers on one listening socket: who has taken too many passes new ones on.

The kernel wakes every worker that waits on the socket, and who is there first takes all that wait: in bursts one of four took 2.5 times its
share (docs/decisions/0062-workers.md), and a WebSocket stays where it was taken for hours. So every worker writes on a board, shared memory,
how many connections it has, and a new connection that finds its worker more than SLACK above the emptiest goes there through a socket pair, as
a file descriptor, before a byte of it is read.

Promises: nobody passes to a worker that starts, drains, hangs or has died (its line on the board is older than FRESH_S); a connection is passed
once at most; where it cannot be passed it stays. What was passed to a worker that dies before it took it waits in the pair for its successor.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import logging
import mmap
import os
import socket
import struct
import tempfile
from collections.abc import Callable
from typing import Any, Final

log = logging.getLogger(__name__)

SLACK: Final = 4  # connections above the emptiest worker that nobody minds: short ones end before it would pay
FRESH_S: Final = 1.0
BEAT_S: Final = 0.1
LINE: Final = struct.Struct("qd")  # open connections, when it was said (the machine's steady seconds; 0: takes none)
ANCILLARY: Final = socket.CMSG_LEN(array.array("i").itemsize)


class Pairs:
    """What the supervisor makes for its workers, and they inherit: the board's file and a socket pair for each of them."""

    def __init__(self, count: int) -> None:
        with tempfile.TemporaryFile() as file:
            file.truncate(count * LINE.size)
            self.board = os.dup(file.fileno())
        self.pairs = [socket.socketpair() for _ in range(count)]
        for pair in self.pairs:
            for end in pair:
                end.setblocking(False)

    @property
    def fds(self) -> list[int]:
        return [self.board, *(end.fileno() for pair in self.pairs for end in pair)]

    @property
    def words(self) -> str:
        """For a worker's command line."""
        return ",".join(map(str, self.fds))

    def gone(self, number: int) -> None:
        """That worker has ended: nobody passes to it until its successor takes."""
        os.pwrite(self.board, bytes(LINE.size), number * LINE.size)

    def close(self) -> None:
        os.close(self.board)
        for pair in self.pairs:
            for end in pair:
                end.close()


class Share:
    """One worker's side. `words`: as `Pairs` says them; `number`: which worker this is; `now_s`: the machine's steady seconds, the same for all."""

    def __init__(self, words: str, number: int, now_s: Callable[[], float]) -> None:
        board, *ends = (int(word) for word in words.split(","))
        self._number, self._now_s = number, now_s
        self._count = len(ends) // 2
        self._board = mmap.mmap(board, self._count * LINE.size)
        os.close(board)
        sockets = [socket.socket(fileno=fd) for fd in ends]
        self._inbox, self._outs = sockets[2 * number], sockets[1::2]
        self._held: Callable[[], int] = int
        self._factory: Callable[[], asyncio.BaseProtocol] | None = None
        self._taking: set[asyncio.Task[Any]] = set()
        self.passed = 0  # connections given to others

    def pass_on(self, transport: Any) -> bool:
        """A new connection: to the emptiest worker, if we have too many. True: it is not ours any more."""
        if self._factory is None:
            return False
        now_s = self._now_s()
        emptiest, fewest = -1, self._say(now_s) - SLACK
        for number in range(self._count):
            held, said_s = LINE.unpack_from(self._board, number * LINE.size)
            if held < fewest and number != self._number and now_s - said_s < FRESH_S:
                emptiest, fewest = number, held
        if emptiest < 0:
            return False
        try:
            fd = array.array("i", [transport.get_extra_info("socket").fileno()])
            self._outs[emptiest].sendmsg([b"c"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fd)])
        except OSError:  # its pair is full
            return False
        held, said_s = LINE.unpack_from(self._board, emptiest * LINE.size)
        LINE.pack_into(
            self._board, emptiest * LINE.size, held + 1, said_s
        )  # a hint for the next of this burst; its own count comes within a beat
        transport.abort()
        self.passed += 1
        return True

    def begin(self, factory: Callable[[], asyncio.BaseProtocol], held: Callable[[], int]) -> None:
        """From now on others pass connections to us, which `factory` serves, and we pass ours. `held`: how many we have."""
        self._factory, self._held = factory, held
        asyncio.get_running_loop().add_reader(self._inbox.fileno(), self._take)
        self._beat()

    def end(self) -> None:
        """Nobody passes to us any more. What is in the pair already is served; what still comes waits for our successor."""
        if self._factory is None:
            return
        self._say(0.0)
        self._take()
        self._factory = None
        asyncio.get_running_loop().remove_reader(self._inbox.fileno())

    def _beat(self) -> None:
        if self._factory is not None:
            self._say(self._now_s())
            asyncio.get_running_loop().call_later(BEAT_S, self._beat)

    def _say(self, now_s: float) -> int:
        held = self._held()
        LINE.pack_into(self._board, self._number * LINE.size, held, now_s)
        return held

    def _take(self) -> None:
        factory = self._factory
        for _ in range(64):
            try:
                _, ancillary, _, _ = self._inbox.recvmsg(1, ANCILLARY)
            except (BlockingIOError, InterruptedError):
                return
            for level, kind, data in ancillary:
                if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS and factory is not None:
                    task = asyncio.ensure_future(self._serve(factory, socket.socket(fileno=struct.unpack("i", data)[0])))
                    self._taking.add(task)
                    task.add_done_callback(self._taking.discard)

    @staticmethod
    async def _serve(factory: Callable[[], asyncio.BaseProtocol], connection: socket.socket) -> None:
        connection.setblocking(False)
        with contextlib.suppress(OSError):  # it has gone meanwhile
            await asyncio.get_running_loop().connect_accepted_socket(factory, connection)
