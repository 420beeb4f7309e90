//! Compressed messages: bombs, and streams that are broken.

use crate::{
    case::{
        Act, Case,
        Expect::{Close, Ok, Status},
        Group, compressed, ws,
    },
    client::{
        BINARY, CLOSE, CONTINUE, FIN, PING, RSV1, TEXT, deflated, frame, head, text, upgrade,
    },
};

/// The default maximum of a message.
const MAX: usize = 1 << 20;

const BEAT: &[u8] = br#"[null,"1","phoenix","heartbeat",{}]"#;

pub(crate) fn group() -> Group {
    Group {
        title: "Compression",
        bounded: "a message is decompressed in steps, to the maximum size of a message; its \
                  bytes count in the inbox meanwhile.",
        cases: [bombs(), streams(), offers()].into_iter().flatten().collect(),
    }
}

/// A compressed text.
fn squeezed(payload: &[u8]) -> Vec<u8> {
    frame(FIN | RSV1 | TEXT, payload)
}

/// A heartbeat with padding, of this many bytes.
fn padded(bytes: usize) -> Vec<u8> {
    let [before, after] = [&br#"[null,"1","phoenix","heartbeat",""#[..], b"\"]"];
    [before, &vec![b'x'; bytes - before.len() - after.len()], after].concat()
}

fn bombs() -> Vec<Case> {
    let bomb = deflated(&vec![b'['; 16 * MAX]);
    let pieces: Vec<_> = bomb.chunks(1000).collect();
    let last = pieces.len() - 1;
    let in_pieces = pieces.iter().enumerate().map(|(n, piece)| match n {
        0 => frame(RSV1 | TEXT, piece),
        n if n == last => frame(FIN | CONTINUE, piece),
        _ => frame(CONTINUE, piece),
    });
    let in_pieces = in_pieces.collect::<Vec<_>>().concat();
    // A bomb within a bomb is decompressed once, and is then no message.
    let twice = deflated(&deflated(&vec![b'['; 16 * MAX]));
    vec![
        compressed("K-120", "16 MiB compressed a thousandfold", squeezed(&bomb), Close(1009)),
        compressed("K-121", "the same in fragments", in_pieces, Close(1009)),
        compressed(
            "K-122",
            "a message that inflates to one byte over the maximum",
            squeezed(&deflated(&padded(MAX + 1))),
            Close(1009),
        ),
        compressed(
            "K-123",
            "a message that inflates to the maximum",
            squeezed(&deflated(&padded(MAX))),
            Ok,
        ),
        compressed("K-124", "a bomb in a bomb", squeezed(&twice), Close(1007)),
        compressed(
            "K-125",
            "a binary message that inflates above the maximum",
            frame(FIN | RSV1 | BINARY, &bomb),
            Close(1009),
        ),
        compressed(
            "K-126",
            "the header of a compressed message of 4 GiB",
            head(FIN | RSV1 | TEXT, 1 << 32),
            Close(1009),
        ),
    ]
}

/// A stored block with a heartbeat, without the end of the message.
fn stored() -> Vec<u8> {
    let length = u16::try_from(BEAT.len()).unwrap();
    [&[0][..], &length.to_le_bytes(), &(!length).to_le_bytes(), BEAT].concat()
}

/// Empty blocks with fixed codes. Each has ten bits, so four of them have five bytes.
fn empty_blocks(count: usize) -> Vec<u8> {
    let four = (0..4).fold(0u64, |bits, n| bits | 0b10 << (10 * n));
    four.to_le_bytes()[..5].repeat(count / 4)
}

fn streams() -> Vec<Case> {
    let whole = deflated(&padded(2000));
    let cut = &whole[..whole.len() / 2];
    let mut flipped = stored();
    flipped[3] ^= 1;
    let ends = |count| [&[0x03, 0x00].repeat(count)[..], &stored(), &[0]].concat();
    vec![
        compressed(
            "K-127",
            "bytes that are no deflate stream",
            squeezed(&[0xff; 100]),
            Close(1002),
        ),
        compressed("K-128", "a stream that is cut", squeezed(cut), Close(1002)),
        compressed("K-129", "a block of the reserved type", squeezed(&[0x06, 0, 0]), Close(1002)),
        compressed(
            "K-130",
            "a stored block whose length is not confirmed",
            squeezed(&[&flipped[..], &[0]].concat()),
            Close(1002),
        ),
        compressed(
            "K-131",
            "a stored block that announces more than there is",
            squeezed(&[0, 0xff, 0xff, 0, 0, b'x']),
            Close(1002),
        ),
        compressed(
            "K-132",
            "a reference to the message before",
            squeezed(&[0xf2, 0x00, 0x11, 0x00, 0x00]),
            Close(1002),
        ),
        compressed(
            "K-133",
            "a block with incomplete codes",
            squeezed(&[0x04, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00]),
            Close(1002),
        ),
        compressed("K-134", "eight final blocks", squeezed(&ends(8)), Ok),
        compressed("K-135", "nine final blocks", squeezed(&ends(9)), Close(1002)),
        compressed(
            "K-136",
            "ten thousand empty blocks",
            squeezed(&[empty_blocks(10_000), stored(), vec![0]].concat()),
            Ok,
        ),
        compressed("K-137", "a compressed message without bytes", squeezed(&[]), Close(1002)),
        compressed("K-138", "a compressed empty message", squeezed(&[0]), Close(1011)),
        compressed(
            "K-139",
            "a compressed text that is not UTF-8",
            squeezed(&deflated(b"\"\xc3\x28\"")),
            Close(1007),
        ),
        compressed("K-140", "a compressed ping", frame(FIN | RSV1 | PING, b"x"), Close(1002)),
        compressed("K-141", "a compressed close", frame(FIN | RSV1 | CLOSE, b""), Close(1002)),
        compressed(
            "K-142",
            "RSV1 on the second fragment only",
            [frame(TEXT, &BEAT[..9]), frame(FIN | RSV1 | CONTINUE, &BEAT[9..])].concat(),
            Close(1002),
        ),
        compressed(
            "K-143",
            "RSV1 on both fragments",
            [frame(RSV1 | TEXT, &whole[..9]), frame(FIN | RSV1 | CONTINUE, &whole[9..])].concat(),
            Close(1002),
        ),
        compressed("K-144", "RSV2 with compression", frame(FIN | 0x20 | TEXT, BEAT), Close(1002)),
        compressed("K-145", "an uncompressed message", text(BEAT), Ok),
        ws("K-146", "a compressed message without an offer", squeezed(&whole), Close(1002)),
    ]
}

fn offers() -> Vec<Case> {
    let offer = |id, what, value: &str| {
        let lines = format!("Sec-WebSocket-Extensions: {value}\r\n");
        let act = Act::Http(upgrade(crate::client::SOCKET, &lines));
        Case { id, what, act, expect: Status(101) }
    };
    vec![
        offer("K-147", "an offer with an unknown parameter", "permessage-deflate; unheard_of"),
        offer(
            "K-148",
            "an offer of a window of seven bits",
            "permessage-deflate; client_max_window_bits=7",
        ),
        offer("K-149", "a thousand offers", &"permessage-deflate; x, ".repeat(1000)),
        offer("K-150", "an offer with a quote that does not end", "permessage-deflate; x=\"a"),
    ]
}

#[test]
fn compressed_messages_are_refused_or_answered() {
    group().run();
}
