"""Messages of all sizes, fragmented and compressed, sent by Python's client `websockets`.

Each is an event, and the server replies with its payload. Prints the number of messages, or the
first that differs.
"""

import json
import sys

from websockets.exceptions import ConnectionClosed
from websockets.extensions.permessage_deflate import ClientPerMessageDeflateFactory as Deflate
from websockets.sync.client import connect as open_socket

URL = sys.argv[1]
TOPIC = "room:other"
SIZES = [0, 1, 125, 126, 127, 128, 65535, 65536, 200_000, 1_000_000]
OFFERS = [
    (None, False),
    (Deflate(), True),
    (Deflate(client_no_context_takeover=True, server_no_context_takeover=True), True),
    (Deflate(client_max_window_bits=15, server_max_window_bits=15), True),
    (Deflate(client_max_window_bits=9), True),
    (Deflate(server_max_window_bits=9), False),
]


def connect(offer=None):
    """A client that has joined."""
    extensions = [offer] if offer else None
    client = open_socket(URL, compression=None, extensions=extensions, max_size=None, proxy=None)
    client.send(json.dumps(["1", "1", TOPIC, "phx_join", {}]))
    assert json.loads(client.recv())[4]["status"] == "ok"
    return client


def pieces(data, count):
    """A message in fragments."""
    if count == 1:
        return data
    size = max(1, -(-len(data) // count))
    return [data[at : at + size] for at in range(0, len(data), size)]


def text(client, payload, count):
    """Sends a text, and compares the answer."""
    client.send(pieces(json.dumps(["1", "2", TOPIC, "ask", payload], ensure_ascii=False), count))
    answer = client.recv()
    assert isinstance(answer, str)
    assert json.loads(answer)[4]["response"] == payload, f"a text of {len(payload)}"


def binary(client, payload, count):
    """Sends bytes, and compares the answer."""
    head = bytes([0, 1, 1, len(TOPIC), 3]) + f"12{TOPIC}ask".encode()
    client.send(pieces(head + payload, count))
    answer = client.recv()
    assert isinstance(answer, bytes)
    assert answer[5 + sum(answer[1:5]) :] == payload, f"{len(payload)} bytes"


def closed(client):
    """The code of the server's close."""
    try:
        client.recv(timeout=30)
    except ConnectionClosed as error:
        return error.rcvd.code
    raise AssertionError("the socket stays open")


messages = 0
for offer, accepts in OFFERS:
    client = connect(offer)
    assert (client.protocol.extensions != []) == accepts, f"{offer}"
    for size in SIZES:
        for count in [1, 2, 7]:
            text(client, "\u20ac" * (size % 100) + "x" * (size - size % 100), count)
            binary(client, b"\xfe" * size, count)
            messages += 2
    assert client.ping(b"\x07" * 125).wait(30)
    client.close()
    assert client.close_code == 1000, client.close_code
for code in [1000, 1001, 3000, 4999]:
    client = connect()
    client.close(code, "bye")
    assert client.protocol.close_rcvd.code == 1000, client.protocol.close_rcvd
for message, code in [("not a message", 1011), ("x" * ((1 << 20) + 1), 1009)]:
    client = connect()
    client.send(message)
    assert closed(client) == code
print(f"{messages} messages")
