#!/usr/bin/env python3
"""Message sockets: a service that answers in capitals, and who asks it.

    messages.py AGENT_SOCKET offer NAME
    messages.py AGENT_SOCKET ask NAME TEXT...

Python's standard library is all it needs; docs/protocol.md has the protocol.
"""

import array
import socket
import struct
import sys

VERSION = 1
CONNECT, OFFER, OPENED, REFUSED = 1, 2, 32, 33
REQUEST = struct.Struct("!BBHI")  # version, kind, flags, number
OPENED_BODY = struct.Struct("!IQ")  # longest message, peer
RECORD = struct.Struct("!IBBHQQQ")  # length, kind, flags, code, name, peer, number
MESSAGE, FATE = 1, 2
WITHIN_MS = 2000

REASONS = {
    1: "another version of the protocol",
    2: "not a request",
    3: "nobody offers the service",
    4: "no such host in the POP",
    5: "no answer in time",
    6: "too many message sockets",
    7: "the agent stops",
    8: "the agent failed",
}


def ask_agent(path, request):
    """Asks the agent for a message socket. Returns it, and the longest message."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as agent:
        agent.connect(path)
        agent.send(request)
        room = socket.CMSG_SPACE(array.array("i").itemsize)
        answer, ancillary, _, _ = agent.recvmsg(512, room)
    _, kind, _, _ = REQUEST.unpack_from(answer)
    if kind == REFUSED:
        text = answer[REQUEST.size + 2 :].decode()
        raise OSError(f"{REASONS.get(answer[REQUEST.size], 'refused')} {text}".strip())
    descriptors = array.array("i")
    for _, _, data in ancillary:
        descriptors.frombytes(data)
    message_max, _ = OPENED_BODY.unpack_from(answer, REQUEST.size)
    return socket.socket(fileno=descriptors[0]), message_max


def name_of(service):
    encoded = service.encode()
    return bytes([len(encoded)]) + encoded


def connect(path, service, host=0):
    body = struct.pack("!IH", WITHIN_MS, host) + name_of(service)
    return ask_agent(path, REQUEST.pack(VERSION, CONNECT, 0, 1) + body)


def offer(path, service):
    return ask_agent(path, REQUEST.pack(VERSION, OFFER, 0, 1) + name_of(service))


def send(messages, body, name=0, peer=0):
    messages.send(RECORD.pack(len(body), MESSAGE, 0, 0, name, peer, 0) + body)


def receive(messages, message_max):
    """The next message or fate: its header's fields and its body. None at the end."""
    datagram = messages.recv(RECORD.size + message_max)
    if not datagram:
        return None
    _, kind, _, code, name, peer, number = RECORD.unpack_from(datagram)
    return kind, code, name, peer, number, datagram[RECORD.size :]


def main():
    path, what, service, *texts = sys.argv[1:]
    if what == "offer":
        messages, message_max = offer(path, service)
        print("offering", service, flush=True)
        while received := receive(messages, message_max):
            kind, _, name, peer, _, body = received
            if kind == MESSAGE:
                send(messages, body.upper(), name, peer)
        return
    messages, message_max = connect(path, service)
    for name, text in enumerate(texts, 1):
        send(messages, text.encode(), name)
    for _ in texts:
        received = receive(messages, message_max)
        if received is None:
            raise OSError("the service has gone")
        kind, code, name, _, _, body = received
        if kind == FATE:
            raise OSError(f"{texts[name - 1]} was not delivered: {code}")
        # Replies come in any order.
        print(f"{texts[name - 1]}: {body.decode()}")


if __name__ == "__main__":
    try:
        main()
    except (OSError, ValueError) as error:
        sys.exit(f"messages.py: {error}")
