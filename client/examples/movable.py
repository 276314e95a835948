#!/usr/bin/env python3
"""A line echo server whose connections can move to another host.

    movable.py AGENT_SOCKET ADDRESS PORT

It answers each line with its number in that connection, and goes on counting where it
is moved to. Python's standard library is all it needs; docs/migration.md has the
protocol. echo.rs is the same in Rust; connections move between the two.
"""

import ipaddress
import selectors
import socket
import struct
import sys
import time

VERSION = 1
HEADER = struct.Struct("!BBHIQ")  # version, kind, zero, length of the body, move
MESSAGE_MAX = 32 * 1024
PART_MAX = MESSAGE_MAX - HEADER.size - 8

REGISTER, PENDING, READY, EXPORTED, IMPORTED, KEPT, ADOPTED, REFUSE = range(1, 9)
STATE = 16
REGISTERED, CLOSING, EXPORT, COMMITTED, RESUME, IMPORT, ADOPT, DROP = range(32, 40)

UNKNOWN, BUSY, NO_BOUNDARY, NO_ROOM, TOO_LARGE, CANCELLED, FAILED = range(1, 8)
PENDING_EXPORT, PENDING_IMPORT, PENDING_KEPT = 1, 2, 3

LINE_MAX = 64 * 1024
RETRY_S = 0.2
AGENT_S = 5


def put_endpoint(endpoint):
    address = ipaddress.ip_address(endpoint[0])
    address = getattr(address, "ipv4_mapped", None) or address
    return bytes([address.version]) + address.packed + struct.pack("!H", endpoint[1])


def get_endpoint(data, at):
    length = 4 if data[at] == 4 else 16
    address = ipaddress.ip_address(data[at + 1 : at + 1 + length])
    (port,) = struct.unpack_from("!H", data, at + 1 + length)
    return (str(address), port), at + 3 + length


def get_connection(data, at):
    """A connection: client and service. Its protocol is TCP."""
    client, at = get_endpoint(data, at + 1)
    service, at = get_endpoint(data, at)
    return client, service


def put_connection(connection):
    client, service = connection
    return bytes([socket.IPPROTO_TCP]) + put_endpoint(client) + put_endpoint(service)


class Line:
    """A connection and what the server knows of it."""

    def __init__(self, connection, sock, state=None):
        self.connection, self.sock = connection, sock
        self.count, self.input, self.output = state or (0, b"", b"")

    def state(self):
        parts = struct.pack("!QI", self.count, len(self.input))
        return parts + self.input + self.output

    @staticmethod
    def parse(state):
        count, length = struct.unpack_from("!QI", state)
        if len(state) < 12 + length:
            raise ValueError("the state makes no sense")
        return count, bytes(state[12 : 12 + length]), bytes(state[12 + length :])

    def take(self, data):
        *lines, self.input = (self.input + data).split(b"\n")
        for line in lines:
            self.count += 1
            self.output += b"%d: %s\n" % (self.count, line)


class Export:
    """A connection that was exported; nobody reads from it or writes to it."""

    def __init__(self, line, state):
        self.line, self.state, self.back = line, state, bytearray()


class Import:
    """A socket for a connection to come; once `begun`, its state was looked at."""

    def __init__(self, connection, sock):
        self.connection, self.sock = connection, sock
        self.state, self.begun = bytearray(), None


class Server:
    def __init__(self, agent_path, service):
        self.agent_path, self.service = agent_path, service
        self.selector = selectors.DefaultSelector()
        self.lines = {}
        self.moves = {}
        self.agent, self.retry_at, self.blob_max = None, 0, 0
        self.listener = socket.create_server(
            service, family=socket.AF_INET6 if ":" in service[0] else socket.AF_INET
        )
        self.listener.setblocking(False)
        self.selector.register(self.listener, selectors.EVENT_READ, self.accept)

    def run(self):
        while True:
            if self.agent is None and time.monotonic() >= self.retry_at:
                self.register()
            timeout = RETRY_S if self.agent is None else None
            for key, _ in self.selector.select(timeout):
                key.data()

    # The connections.

    def accept(self):
        sock, client = self.listener.accept()
        sock.setblocking(False)
        connection = (client[:2], sock.getsockname()[:2])
        self.serve(Line(connection, sock))

    def serve(self, line):
        self.lines[line.connection] = line
        self.selector.register(line.sock, selectors.EVENT_READ, lambda: self.turn(line))
        self.watch(line)

    def watch(self, line):
        """Writes what is to be written, or else reads."""
        events = selectors.EVENT_WRITE if line.output else selectors.EVENT_READ
        self.selector.modify(line.sock, events, lambda: self.turn(line))

    def turn(self, line):
        if line.sock.fileno() < 0 or self.lines.get(line.connection) is not line:
            return  # It was exported in this same round.
        try:
            if line.output:
                line.output = line.output[line.sock.send(line.output) :]
            else:
                data = line.sock.recv(4096)
                if not data or len(line.input) > LINE_MAX:
                    self.stop(line).close()
                    return
                line.take(data)
        except BlockingIOError:
            pass
        except OSError:
            self.stop(line).close()
            return
        self.watch(line)

    def stop(self, line):
        """From here on nobody reads from the connection or writes to it."""
        self.selector.unregister(line.sock)
        del self.lines[line.connection]
        return line.sock

    # The agent.

    def register(self):
        """Connects, registers, and tells what is pending."""
        agent = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            # An agent that hangs holds up nobody for long.
            agent.settimeout(AGENT_S)
            agent.connect(self.agent_path)
            self.agent = agent
            name = b"line-echo"
            self.send(
                REGISTER,
                0,
                bytes([len(name)])
                + name
                + struct.pack("!IHB", 1, 1, socket.IPPROTO_TCP)
                + put_endpoint(self.service),
            )
            kind, _, body, _ = self.receive()
            if kind != REGISTERED:
                raise ConnectionError(f"the agent refuses: {body[2:].decode()}")
            self.blob_max, _ = struct.unpack("!IH", body)
            for number, move in self.moves.items():
                self.tell_pending(number, move)
            self.send(READY, 0)
        except OSError as error:
            agent.close()
            self.agent = None
            self.retry_at = time.monotonic() + RETRY_S
            print(f"no agent: {error}", file=sys.stderr)
            return
        self.selector.register(agent, selectors.EVENT_READ, self.message)

    def tell_pending(self, number, move):
        if isinstance(move, Export):
            what, connection, sock = PENDING_EXPORT, move.line.connection, move.line.sock
            move.back.clear()
        else:
            what = PENDING_IMPORT if move.begun is None else PENDING_KEPT
            connection, sock = move.connection, move.sock
            if move.begun is None:
                move.state.clear()
        self.send(PENDING, number, bytes([what]) + put_connection(connection), sock)

    def send(self, kind, number, body=b"", sock=None):
        datagram = HEADER.pack(VERSION, kind, 0, len(body), number) + body
        if sock is None:
            self.agent.send(datagram)
        else:
            socket.send_fds(self.agent, [datagram], [sock.fileno()])

    def send_state(self, number, state):
        for offset in range(0, len(state), PART_MAX):
            part = state[offset : offset + PART_MAX]
            self.send(STATE, number, struct.pack("!II", len(state), offset) + part)

    def refuse(self, number, reason, text=""):
        text = text.encode()[:255].decode(errors="ignore").encode()
        self.send(REFUSE, number, bytes([reason, len(text)]) + text)

    def receive(self):
        """A message: its kind, its move, its body, and whether it ends a state."""
        data, fds, flags, _ = socket.recv_fds(self.agent, MESSAGE_MAX, 1)
        if not data:
            raise ConnectionError("it has gone")
        if len(data) < HEADER.size or fds or flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
            raise ConnectionError("it sent what is no message")
        version, kind, _, length, number = HEADER.unpack_from(data)
        if version != VERSION or length != len(data) - HEADER.size:
            raise ConnectionError(f"its message is of version {version}, or cut")
        return kind, number, data[HEADER.size :], self.moves.get(number)

    def message(self):
        try:
            kind, number, body, move = self.receive()
            if kind == CLOSING:
                raise ConnectionError(f"it closes the connection: {body[2:].decode()}")
            handlers = {
                EXPORT: self.export,
                COMMITTED: self.committed,
                RESUME: self.resume,
                IMPORT: self.import_,
                STATE: self.state,
                ADOPT: self.adopt,
                DROP: self.drop,
            }
            handlers[kind](number, body, move)
        except OSError as error:
            # What is pending stays pending: only an agent can say what becomes of it.
            print(f"no agent: {error}", file=sys.stderr)
            self.selector.unregister(self.agent)
            self.agent.close()
            self.agent = None

    def export(self, number, body, _):
        line = self.lines.get(get_connection(body, 4))
        if line is None:
            self.refuse(number, UNKNOWN)
            return
        state = line.state()
        if len(state) > self.blob_max:
            self.refuse(number, TOO_LARGE)
            return
        self.stop(line)
        self.moves[number] = Export(line, state)
        self.send_state(number, state)
        self.send(EXPORTED, number, sock=line.sock)

    def committed(self, number, _, move):
        if move is not None:
            move.line.sock.close()
            del self.moves[number]

    def resume(self, number, body, move):
        if move is not None:
            del self.moves[number]
            state = Line.parse(move.back if body[0] else move.state)
            self.serve(Line(move.line.connection, move.line.sock, state))

    def import_(self, number, body, _):
        family = socket.AF_INET if body[4] == 4 else socket.AF_INET6
        sock = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        self.moves[number] = Import(get_connection(body, 5), sock)
        self.send(IMPORTED, number, sock=sock)

    def state(self, number, body, move):
        if move is None:
            return
        total, _ = struct.unpack_from("!II", body)
        if isinstance(move, Export):
            move.back += body[8:]
            return
        move.state += body[8:]
        if len(move.state) < total:
            return
        try:
            move.begun = Line.parse(move.state)
        except (ValueError, struct.error) as error:
            self.drop(number, body, move)
            self.refuse(number, FAILED, str(error))
            return
        self.send(KEPT, number)

    def adopt(self, number, _, move):
        del self.moves[number]
        move.sock.setblocking(False)
        self.serve(Line(move.connection, move.sock, move.begun))
        self.send(ADOPTED, number)

    def drop(self, number, _, move):
        if move is not None:
            move.sock.close()
            del self.moves[number]


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit("usage: movable.py AGENT_SOCKET ADDRESS PORT")
    Server(sys.argv[1], (sys.argv[2], int(sys.argv[3]))).run()
