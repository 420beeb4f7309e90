"""The cases of docs/spec/websocket.md that Python's `websockets` can send, told as steps.

Prints the id of each case whose answers came, and stops at the first that differs.
"""

import json
import pathlib
import sys
import warnings

from websockets.exceptions import ConnectionClosed
from websockets.extensions.permessage_deflate import ClientPerMessageDeflateFactory as Deflate
from websockets.sync.client import connect as open_socket

# A connection is closed as its case says, and not by a context manager.
warnings.simplefilter("ignore", DeprecationWarning)

URL, TOPIC, FOLDER = sys.argv[1:]
BYTES = (pathlib.Path(FOLDER) / "bytes").read_bytes()
CASES = [json.loads(line) for line in (pathlib.Path(FOLDER) / "cases").read_text().splitlines()]
TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10


def part(place):
    """The bytes at a place."""
    at, length = place
    return BYTES[at : at + length]


def factories(offer):
    """The offers of compression."""
    all_of_them = []
    for one in offer.split(", "):
        given = {}
        for parameter in one.split(";")[1:]:
            name, _, value = parameter.strip().partition("=")
            given[name] = int(value) if value else True
        all_of_them.append(Deflate(**given))
    return all_of_them


def pieces(client, first, steps, pings):
    """The fragments of a message, with what is sent between them."""
    yield part(first["bytes"])
    for step in steps:
        if step["op"] == 0:
            yield part(step["bytes"])
            if step["fin"]:
                return
        else:
            control(client, step, pings)


def control(client, step, pings):
    """Sends a ping or a pong."""
    data = part(step["bytes"])
    if step["op"] == PING:
        pings.append((data, client.ping(data)))
    else:
        client.pong(data)


def act(client, steps, pings):
    """Takes all steps."""
    steps = iter(steps)
    for step in steps:
        if step["op"] in (PING, PONG):
            control(client, step, pings)
        elif step["op"] == CLOSE:
            data = part(step["bytes"])
            client.close(int.from_bytes(data[:2], "big"), data[2:].decode())
        elif step["fin"]:
            client.send(part(step["bytes"]), text=step["op"] == TEXT)
        else:
            client.send(pieces(client, step, steps, pings), text=step["op"] == TEXT)


def exchange(case):
    """Exchanges one case."""
    extensions = factories(case["offer"]) if case["offer"] else None
    client = open_socket(URL, compression=None, extensions=extensions, max_size=None, proxy=None)
    client.send(json.dumps(["1", "1", TOPIC, "phx_join", {}]))
    assert json.loads(client.recv())[4]["status"] == "ok"
    assert (client.protocol.extensions != []) == bool(case["accepts"]), client.protocol.extensions
    pings, answers = [], case["answers"]
    closes = bool(answers) and answers[-1]["op"] == CLOSE
    try:
        act(client, case["steps"], pings)
    except ConnectionClosed:
        # A server that has closed need not read the rest.
        assert closes
    for answer in answers:
        if answer["op"] == TEXT:
            text = client.recv(timeout=60)
            assert isinstance(text, str)
            assert json.loads(text)[4]["response"] == part(answer["bytes"]).decode()
        elif answer["op"] == BINARY:
            data = client.recv(timeout=60)
            assert isinstance(data, bytes)
            assert data[5 + sum(data[1:5]) :] == part(answer["bytes"])
        elif answer["op"] == PONG:
            data, answered = pings.pop(0)
            assert data == part(answer["bytes"])
            assert answered.wait(60), "a pong"
        else:
            try:
                unexpected = client.recv(timeout=60)
                raise AssertionError(f"{unexpected!r} came")
            except ConnectionClosed as error:
                assert error.rcvd is not None and error.rcvd.code == answer["code"], error
    if not closes:
        client.close()
        assert client.close_code == 1000, client.close_code


for told in CASES:
    try:
        exchange(told)
    except BaseException:
        print(told["id"], file=sys.stderr)
        raise
    print(told["id"], flush=True)
