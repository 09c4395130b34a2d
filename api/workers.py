"""N worker processes on one inherited listening socket: started, watched, restarted with a growing pause, drained together.

One socket is shared (not SO_REUSEPORT), so a worker that drains loses no connection that waits to be accepted. What one of them takes too many
of, it passes on (share.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
from typing import Final

from api.share import Pairs
from engine.errors import Unavailable
from engine.settings import Settings

BACKLOG: Final = 4_096
RESTART_FIRST_S: Final = 0.5  # a crash loop must not burn a core,
RESTART_MOST_S: Final = 15.0  # nor keep a site down once its cause is gone
LIVED_S: Final = 20.0  # a worker that ends sooner than this after the very first start has never worked
GRACE_S: Final = 5.0  # past the drain, before SIGKILL


def listen(settings: Settings) -> socket.socket:
    """The engine's listening socket, bound and inheritable. Raises `Unavailable` that says which port is taken."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((settings.host, settings.port))
    except OSError as fault:
        sock.close()
        raise Unavailable(f"cannot listen on {settings.host}:{settings.port}: {fault.strerror}; set PORT to a free one") from fault
    sock.listen(BACKLOG)
    sock.setblocking(False)
    sock.set_inheritable(True)
    return sock


async def supervise(settings: Settings, count: int) -> int:
    """Runs `count` workers until SIGINT or SIGTERM, then drains them. Returns the exit code: 0 after an orderly end."""
    sock = listen(settings)
    pairs = Pairs(count) if count > 1 else None
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for sig in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(sig, stopping.set)
    try:
        codes = await asyncio.gather(*(_keep(settings, sock, number, stopping, pairs) for number in range(count)))
    finally:
        sock.close()
        if pairs is not None:
            pairs.close()
    return max(codes)


async def _keep(settings: Settings, sock: socket.socket, number: int, stopping: asyncio.Event, pairs: Pairs | None) -> int:
    pause_s = RESTART_FIRST_S
    lived = False
    while True:
        began_s = loop_time()
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "api.cli",
            "serve",
            "--fd",
            str(sock.fileno()),
            "--number",
            str(number),
            *(("--share", pairs.words) if pairs is not None else ()),
            pass_fds=(sock.fileno(), *(pairs.fds if pairs is not None else ())),
            env=os.environ | {"TIMEPOINT_SUPERVISOR": str(os.getpid())},
            start_new_session=True,  # Ctrl-C reaches the supervisor alone, which then drains every worker in order
        )
        ended = asyncio.ensure_future(process.wait())
        stop = asyncio.ensure_future(stopping.wait())
        await asyncio.wait({ended, stop}, return_when=asyncio.FIRST_COMPLETED)
        stop.cancel()
        if pairs is not None and ended.done():
            pairs.gone(number)
        if stopping.is_set():
            return await _end(process, ended, settings.drain_s + GRACE_S)
        code = ended.result()
        lived = lived or loop_time() - began_s > LIVED_S
        if not lived and code > 0:  # it never worked, and nobody killed it: whoever started us should hear it now, not after the tenth try
            print(f"worker {number} could not start (code {code})", file=sys.stderr, flush=True)  # noqa: T201
            stopping.set()
            return code or 1
        print(f"worker {number} (pid {process.pid}) ended with {code}; again in {pause_s:.1f} s", file=sys.stderr, flush=True)  # noqa: T201
        pause_s = RESTART_FIRST_S if loop_time() - began_s > 60 else min(pause_s * 2, RESTART_MOST_S)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stopping.wait(), pause_s)
            return 0


async def _end(process: asyncio.subprocess.Process, ended: asyncio.Future[int], limit_s: float) -> int:
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    try:
        return await asyncio.wait_for(asyncio.shield(ended), limit_s)
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await ended
        return 1


def loop_time() -> float:
    """The running loop's own steady seconds."""
    return asyncio.get_running_loop().time()
