"""A TCP proxy that makes trouble when told to: late, cut, half-open and deaf connections."""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from collections.abc import Callable
from contextlib import suppress

LOOPBACK = "127.0.0.1"
_CHUNK_BYTES = 64 * 1024
_CONNECT_TIMEOUT_S = 5.0


class Proxy:
    """Forwards connections on ``port`` to ``target``, both on the loopback; runs on a thread of its own.

    The methods may be called from any thread.
    """

    def __init__(self, *, port: int, target: int) -> None:
        self.port, self.target = port, target
        self._latency_s = 0.0
        self._loop = asyncio.new_event_loop()
        self._requests, self._answers = asyncio.Event(), asyncio.Event()
        self._requests.set()
        self._answers.set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._thread = threading.Thread(target=self._loop.run_forever, name=f"proxy-{port}", daemon=True)

    def start(self) -> None:
        """Listen; return when it does."""
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result(10)

    def stop(self) -> None:
        """Cut everything and end."""
        if self._thread.is_alive():
            asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(10)
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(10)
        self._loop.close()

    def delay(self, seconds: float) -> None:
        """Hold every piece of data back for ``seconds``; 0 ends it."""
        self._latency_s = seconds

    def cut(self) -> None:
        """Reset all connections."""
        self._call(self._cut)

    def hold(self, *, answers_only: bool = False) -> None:
        """Accept connections and data, and forward nothing, or everything but what the server says."""
        self._call(self._answers.clear)
        if not answers_only:
            self._call(self._requests.clear)

    def heal(self, *, cut: bool = False) -> None:
        """Forward again; with ``cut``, connections that were held are reset and what they held is lost."""
        self._latency_s = 0.0
        if cut:
            self.cut()
        self._call(self._requests.set)
        self._call(self._answers.set)

    # --- on the loop's thread ------------------------------------------------------------------------------------

    def _call(self, function: Callable[[], None]) -> None:
        self._loop.call_soon_threadsafe(function)

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._accept, LOOPBACK, self.port)

    async def _end(self) -> None:
        self._server.close()
        self._cut()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _cut(self) -> None:
        for task in self._tasks:
            task.cancel()
        for writer in self._writers:
            _reset(writer)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._writers.add(writer)
        try:
            await self._requests.wait()
            await self._carry(reader, writer)
        except (OSError, TimeoutError, asyncio.CancelledError):
            pass  # the client sees its connection end
        finally:
            self._writers.discard(writer)
            self._tasks.discard(task)
            writer.transport.abort()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async with asyncio.timeout(_CONNECT_TIMEOUT_S):
            from_server, to_server = await asyncio.open_connection(LOOPBACK, self.target)
        self._writers.add(to_server)
        pumps = [
            asyncio.ensure_future(self._pump(reader, to_server, self._requests)),
            asyncio.ensure_future(self._pump(from_server, writer, self._answers)),
        ]
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
            self._writers.discard(to_server)
            to_server.close()
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, gate: asyncio.Event) -> None:
        while data := await reader.read(_CHUNK_BYTES):
            await gate.wait()
            if self._latency_s:
                await asyncio.sleep(self._latency_s)
            writer.write(data)
            await writer.drain()


def _reset(writer: asyncio.StreamWriter) -> None:
    """End a connection so that its other side gets a reset and not a farewell."""
    lingering_s = struct.pack("ii", 1, 0)
    with suppress(OSError):
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, lingering_s)
    writer.transport.abort()
