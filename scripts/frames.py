"""The leanest websocket client that can still tell frames apart.

The idea: where a host is measured its clients must cost next to nothing, and they share the machine
with it. So frames are packed before the clock starts, written many at a time, and of what comes
back only the headers are read. The mask that clients must use is zero, which masks nothing.
"""

import base64
import os
import selectors
import socket
import urllib.parse
from collections.abc import Callable, Iterator, Sequence

TIMEOUT_S = 60.0
RECEIVE_BYTES = 1 << 18
_LENGTH_IN_HEADER_MAX = 125
_LENGTH_IN_TWO_BYTES = 126
_LENGTH_IN_EIGHT_BYTES = 127
_OPCODE = 0xF
_CLOSE, _PING = 0x8, 0x9
_PONG_FRAME = b"\x8a\x80\0\0\0\0"
# A host asks now and then whether we are there, with a ping of no payload.
PING_FRAME = b"\x89\0"


def masked_frame(payload: bytes) -> bytes:
    """A text frame as a client sends it."""
    length = len(payload)
    if length <= _LENGTH_IN_HEADER_MAX:
        return b"\x81%c\0\0\0\0%b" % (length | 0x80, payload)
    return b"\x81\xfe" + length.to_bytes(2, "big") + b"\0\0\0\0" + payload


class FrameSocket:
    """A connected websocket. Raises ConnectionError when the host refuses or closes it."""

    def __init__(self, url: str) -> None:
        parts = urllib.parse.urlsplit(url)
        assert parts.hostname is not None
        self.socket = socket.create_connection((parts.hostname, parts.port or 80), TIMEOUT_S)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._unread = b""
        self._upgrade(parts)

    def fileno(self) -> int:
        return self.socket.fileno()

    def send(self, packed: bytes) -> None:
        """Writes packed frames, waiting for the host to take them."""
        self.socket.sendall(packed)

    def receive(self) -> list[bytes]:
        """The payloads of the frames that have come, at least a part of one; waits for it."""
        received = self.socket.recv(RECEIVE_BYTES)
        if not received:
            raise ConnectionError("the host closed a websocket")
        payloads, end = [], 0
        data = self._unread + received
        for opcode, start, end in _frames(data):
            if opcode == _CLOSE:
                raise ConnectionError("the host closed a websocket")
            if opcode == _PING:
                self.pong()
            else:
                payloads.append(data[start:end])
        self._unread = data[end:]
        return payloads

    def pong(self) -> None:
        """Says that we are there."""
        self.socket.sendall(_PONG_FRAME)

    def ask(self, payload: bytes) -> bytes:
        """Sends one request and waits for the frame that answers it."""
        self.send(masked_frame(payload))
        while True:
            for frame in self.receive():
                if b'"success"' in frame:
                    return frame

    def close(self) -> None:
        self.socket.close()

    def _upgrade(self, parts: urllib.parse.SplitResult) -> None:
        key = base64.b64encode(os.urandom(16)).decode()
        target = parts.path + ("?" + parts.query if parts.query else "")
        lines = (
            f"GET {target} HTTP/1.1",
            f"Host: {parts.netloc}",
            "Connection: Upgrade",
            "Upgrade: websocket",
            "Sec-WebSocket-Version: 13",
            f"Sec-WebSocket-Key: {key}",
        )
        self.socket.sendall(("\r\n".join(lines) + "\r\n\r\n").encode())
        answer = b""
        while b"\r\n\r\n" not in answer:
            received = self.socket.recv(RECEIVE_BYTES)
            if not received:
                raise ConnectionError("the host closed the connection before the upgrade")
            answer += received
        head, _, self._unread = answer.partition(b"\r\n\r\n")
        if b" 101 " not in head.split(b"\r\n", 1)[0]:
            raise ConnectionError(head.decode())


def _frames(data: bytes) -> Iterator[tuple[int, int, int]]:
    """The opcode of each whole frame, and where its payload begins and ends. Host frames are not
    masked."""
    position, available = 0, len(data)
    while position + 2 <= available:
        length, start = data[position + 1], position + 2
        if length == _LENGTH_IN_TWO_BYTES:
            start += 2
            length = int.from_bytes(data[position + 2 : start], "big")
        elif length == _LENGTH_IN_EIGHT_BYTES:
            start += 8
            length = int.from_bytes(data[position + 2 : start], "big")
        if start + length > available:
            return
        opcode = data[position] & _OPCODE
        position = start + length
        yield opcode, start, position


def pump(
    sockets: Sequence[FrameSocket],
    frames: Sequence[Sequence[bytes]],
    in_flight: int,
    on_payload: Callable[[bytes], object],
) -> None:
    """Sends each socket its frames, `in_flight` of them unanswered at a time, until all are
    answered: one frame answers one. `on_payload` gets every answer."""
    selector = selectors.DefaultSelector()
    left = 0
    for one, mine in zip(sockets, frames, strict=True):
        waiting = iter(mine)
        selector.register(one, selectors.EVENT_READ, (one, waiting))
        one.send(b"".join(_taken(waiting, in_flight)))
        left += len(mine)
    while left > 0:
        for key, _ in selector.select(TIMEOUT_S):
            one, waiting = key.data
            payloads = one.receive()
            for payload in payloads:
                on_payload(payload)
            left -= len(payloads)
            if packed := b"".join(_taken(waiting, len(payloads))):
                one.send(packed)
    selector.close()


def _taken(frames: Iterator[bytes], count: int) -> list[bytes]:
    return [frame for _, frame in zip(range(count), frames, strict=False)]
