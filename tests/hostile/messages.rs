//! Messages that are not of the channel protocol, or not what a channel expects.

use std::io::Write;

use serde_json::{Value, json};
use tokio::time::Instant;

use crate::{
    arena::Arena,
    case::{
        Act, Answer, Case,
        Expect::{self, Close, Crash, Ignored, Messages, Ok, ThenClose},
        Group, at, joined, ws,
    },
    client::{
        BINARY, Client, FIN, SOCKET, TOPIC, beaten, event, frame, heartbeat, join, json_text, text,
    },
};

/// The path of a WebSocket of version 1.
const V1: &str = "/socket/websocket?vsn=1.0.0";

pub(crate) fn group() -> Group {
    let parts = [json(), numbers(), names(), version_1(), binary(), channels(), limits()];
    Group {
        title: "Messages",
        bounded: "a message counts in its client's inbox until it is handled, with 256 bytes \
                  besides its own; names and references have at most 255 bytes.",
        cases: parts.into_iter().flatten().collect(),
    }
}

/// A heartbeat with this JSON as its payload.
fn beat(payload: &str) -> Vec<u8> {
    text(format!(r#"[null,"1","phoenix","heartbeat",{payload}]"#))
}

/// An event for the joined topic, with this JSON as its payload.
fn ask(event: &str, payload: &str) -> Vec<u8> {
    text(format!(r#"["1","2","{TOPIC}","{event}",{payload}]"#))
}

fn json() -> Vec<Case> {
    let deep = |depth: usize| "[".repeat(depth) + &"]".repeat(depth);
    let deep_keys = |depth: usize| "{\"a\":".repeat(depth) + "1" + &"}".repeat(depth);
    vec![
        ws("K-160", "an empty text", text(""), Close(1011)),
        ws("K-161", "white space", text(" \n\t"), Close(1011)),
        ws("K-162", "a text that is not JSON", text("hello"), Close(1011)),
        ws("K-163", "null", text("null"), Close(1011)),
        ws("K-164", "a number", text("42"), Close(1011)),
        ws("K-165", "a string", text("\"phx_join\""), Close(1011)),
        ws("K-166", "an object", text("{}"), Close(1011)),
        ws("K-167", "an empty array", text("[]"), Close(1011)),
        ws("K-168", "an array of four", text(r#"[null,"1","phoenix","heartbeat"]"#), Close(1011)),
        ws("K-169", "an array of six", text(r#"[null,"1","phoenix","heartbeat",{},6]"#), Ok),
        ws(
            "K-170",
            "a message in an array",
            text(r#"[[null,"1","phoenix","heartbeat",{}]]"#),
            Close(1011),
        ),
        ws(
            "K-171",
            "two messages in a frame",
            text(r#"[null,"1","phoenix","heartbeat",{}] []"#),
            Close(1011),
        ),
        ws(
            "K-172",
            "a message that does not end",
            text(r#"[null,"1","phoenix","heartbeat",{}"#),
            Close(1011),
        ),
        ws(
            "K-173",
            "a trailing comma",
            text(r#"[null,"1","phoenix","heartbeat",{},]"#),
            Close(1011),
        ),
        ws("K-174", "a missing comma", text(r#"[null "1","phoenix","heartbeat",{}]"#), Close(1011)),
        ws("K-175", "single quotes", text("[null,'1','phoenix','heartbeat',{}]"), Close(1011)),
        ws("K-176", "a comment", beat("/* {} */ {}"), Close(1011)),
        ws(
            "K-177",
            "a byte order mark",
            text("\u{feff}[null,\"1\",\"phoenix\",\"heartbeat\",{}]"),
            Close(1011),
        ),
        ws("K-178", "a control character in a string", beat("\"\u{1}\""), Close(1011)),
        ws("K-179", "a NUL in a string", beat("\"\0\""), Close(1011)),
        ws("K-180", "an unknown escape", beat(r#""\x41""#), Close(1011)),
        ws("K-181", "an incomplete escape", beat(r#""\u12""#), Close(1011)),
        ws("K-182", "a lone high surrogate", beat(r#""\ud83d""#), Close(1011)),
        ws("K-183", "a lone low surrogate", beat(r#""\ude00""#), Close(1011)),
        ws("K-184", "surrogates in the wrong order", beat(r#""\ude00\ud83d""#), Close(1011)),
        ws("K-185", "a lone surrogate in a key", beat(r#"{"\ud83d":1}"#), Close(1011)),
        joined("K-186", "a payload of arrays a thousand deep", ask("ask", &deep(1000)), Ok),
        joined("K-187", "a payload of objects a thousand deep", ask("ask", &deep_keys(1000)), Ok),
        joined(
            "K-188",
            "a payload of arrays a hundred thousand deep",
            ask("ask", &deep(100_000)),
            Ok,
        ),
        joined(
            "K-189",
            "a payload a thousand deep that a channel parses",
            ask("parse", &deep(1000)),
            Crash,
        ),
        ws(
            "K-190",
            "half a million brackets that are not closed",
            text("[".repeat(500_000)),
            Close(1011),
        ),
        ws(
            "K-191",
            "half a million brackets in a payload",
            beat(&"[".repeat(500_000)),
            Close(1011),
        ),
        ws("K-192", "a message a thousand deep", text(deep(1000)), Close(1011)),
        joined("K-193", "a key twice in a payload", ask("ask", r#"{"a":1,"a":2}"#), Ok),
        joined(
            "K-194",
            "a key twice in a payload that a channel parses",
            ask("parse", r#"{"a":1,"a":2}"#),
            Ok,
        ),
        joined("K-195", "a hundred thousand keys", ask("parse", &keys(50_000)), Ok),
    ]
}

/// An object with this many keys.
fn keys(count: usize) -> String {
    let keys: Vec<_> = (0..count).map(|n| format!("\"{n}\":0")).collect();
    format!("{{{}}}", keys.join(","))
}

fn numbers() -> Vec<Case> {
    let digits = "9".repeat(100_000);
    vec![
        joined("K-196", "a number of a hundred thousand digits", ask("ask", &digits), Ok),
        joined("K-197", "such a number that a channel parses", ask("parse", &digits), Crash),
        joined("K-198", "the number 1e999", ask("ask", "1e999"), Ok),
        joined("K-199", "the number 1e999 that a channel parses", ask("parse", "1e999"), Crash),
        joined("K-200", "the number 1e-999 that a channel parses", ask("parse", "1e-999"), Ok),
        joined("K-201", "the number -0", ask("parse", "-0"), Ok),
        joined("K-202", "the number 2^64", ask("parse", "18446744073709551616"), Ok),
        ws("K-203", "a number with a leading zero", beat("01"), Close(1011)),
        ws("K-204", "a number with a plus", beat("+1"), Close(1011)),
        ws("K-205", "a number that ends with a point", beat("1."), Close(1011)),
        ws("K-206", "a number that ends with an exponent", beat("1e"), Close(1011)),
        ws("K-207", "a hexadecimal number", beat("0x10"), Close(1011)),
        ws("K-208", "NaN", beat("NaN"), Close(1011)),
        ws("K-209", "Infinity", beat("Infinity"), Close(1011)),
        ws(
            "K-210",
            "a reference of 300 digits",
            text(format!(r#"[null,{},"phoenix","heartbeat",{{}}]"#, &digits[..300])),
            Close(1011),
        ),
    ]
}

fn names() -> Vec<Case> {
    let name = |bytes: usize| "x".repeat(bytes);
    let topic = |bytes: usize| format!("room:{}", name(bytes - 5));
    let escaped = r"\u0078".repeat(250);
    let with_ref =
        |reference: &str| json_text(&json!([null, reference, "phoenix", "heartbeat", {}]));
    let with_join_ref =
        |reference: &str| json_text(&json!([reference, "1", "room:a", "phx_join", {}]));
    vec![
        ws("K-211", "a topic of 255 bytes", join(&topic(255)), Ok),
        ws("K-212", "a topic of 256 bytes", join(&topic(256)), Close(1011)),
        ws("K-213", "a topic of a megabyte", join(&topic(1_000_000)), Close(1011)),
        ws(
            "K-214",
            "a topic of 255 escaped bytes",
            text(format!(r#"["1","1","room:{escaped}","phx_join",{{}}]"#)),
            Ok,
        ),
        ws(
            "K-215",
            "a topic of 256 bytes in characters of several bytes",
            join(&format!("room:{}x", "\u{20ac}".repeat(83) + "x")),
            Close(1011),
        ),
        joined(
            "K-216",
            "an event of 255 bytes",
            event("2", &format!("ask{}", name(252)), &json!({})),
            Ok,
        ),
        joined(
            "K-217",
            "an event of 256 bytes",
            event("2", &format!("ask{}", name(253)), &json!({})),
            Close(1011),
        ),
        ws("K-218", "a reference of 255 bytes", with_ref(&name(255)), Ok),
        ws("K-219", "a reference of 256 bytes", with_ref(&name(256)), Close(1011)),
        ws("K-220", "a join reference of 255 bytes", with_join_ref(&name(255)), Ok),
        ws("K-221", "a join reference of 256 bytes", with_join_ref(&name(256)), Close(1011)),
        ws(
            "K-222",
            "a reference that is an object of 300 bytes",
            text(format!(r#"[null,{{"a":"{}"}},"phoenix","heartbeat",{{}}]"#, name(300))),
            Close(1011),
        ),
        ws("K-223", "an empty topic", join(""), unmatched(&json!("1"), "")),
        ws("K-224", "a topic with a NUL", text(r#"["1","1","room:\u0000","phx_join",{}]"#), Ok),
        ws(
            "K-225",
            "a topic with line breaks and escape sequences",
            join("room:\r\n\u{1b}[31m"),
            Ok,
        ),
        ws("K-226", "the pattern of a topic as a topic", join("room:*"), Ok),
        ws("K-227", "a topic in other letters", join("ROOM:a"), unmatched(&json!("1"), "ROOM:a")),
        ws("K-228", "a topic with a path", join("../room:a"), unmatched(&json!("1"), "../room:a")),
        ws(
            "K-229",
            "the topic of heartbeats to be joined",
            join("phoenix"),
            unmatched(&json!("1"), "phoenix"),
        ),
    ]
}

fn unmatched(reference: &Value, topic: &str) -> Expect {
    Expect::error(reference, &json!(topic), "unmatched topic")
}

fn version_1() -> Vec<Case> {
    let beat = r#"{"topic":"phoenix","event":"heartbeat","payload":{},"ref":"1"}"#;
    vec![
        v1("K-230", "an array in version 1", r#"[null,"1","phoenix","heartbeat",{}]"#, Close(1011)),
        v1(
            "K-231",
            "an object without a topic in version 1",
            &beat.replace("topic", "topik"),
            Close(1011),
        ),
        v1(
            "K-232",
            "an object without a ref in version 1",
            &beat.replace(r#","ref":"1""#, ""),
            Close(1011),
        ),
        v1(
            "K-233",
            "a topic twice in version 1",
            &beat.replace("{\"topic\"", "{\"topic\":\"a\",\"topic\""),
            Close(1011),
        ),
        v1("K-234", "an object without an end in version 1", &beat[..beat.len() - 1], Close(1011)),
        v1(
            "K-235",
            "a lone surrogate in version 1",
            &beat.replace("{}", r#""\ud800""#),
            Close(1011),
        ),
        Case {
            id: "K-236",
            what: "an object in version 2",
            act: Act::Frames { path: SOCKET, lines: "", joins: false, bytes: text(beat) },
            expect: Close(1011),
        },
        Case {
            id: "K-237",
            what: "a binary message that is not UTF-8 in version 1",
            act: Act::Frames {
                path: V1,
                lines: "",
                joins: false,
                bytes: frame(FIN | BINARY, b"\xff"),
            },
            expect: Close(1007),
        },
    ]
}

/// A text of version 1.
fn v1(id: &'static str, what: &'static str, message: &str, expect: Expect) -> Case {
    at(V1, id, what, text(message), expect)
}

fn binary() -> Vec<Case> {
    let send = |bytes: &[u8]| frame(FIN | BINARY, bytes);
    let named = |name: &str| {
        let length = u8::try_from(name.len()).unwrap();
        [&[0, 1, 1, length, 3, b'1', b'2'], name.as_bytes(), b"ask", b"\xff\x00"].concat()
    };
    vec![
        ws("K-238", "an empty binary message", send(b""), Close(1011)),
        ws(
            "K-239",
            "a binary message of the kind 1, a reply",
            send(b"\x01\x01\x01\x01\x0112ab"),
            Close(1011),
        ),
        ws(
            "K-240",
            "a binary message of the kind 2, a broadcast",
            send(b"\x02\x01\x01te"),
            Close(1011),
        ),
        ws(
            "K-241",
            "a binary message of an unknown kind",
            send(b"\x09\x00\x00\x00\x00"),
            Close(1011),
        ),
        ws("K-242", "a binary message without all lengths", send(b"\x00\x01\x01\x01"), Close(1011)),
        ws(
            "K-243",
            "a binary message that is shorter than its lengths",
            send(b"\x00\xff\xff\xff\xffabc"),
            Close(1011),
        ),
        ws("K-244", "a binary message with empty names", send(&[0; 5]), unmatched(&json!(""), "")),
        ws(
            "K-245",
            "a binary event for a topic that is not joined",
            send(&named("room:other")),
            unmatched(&json!("2"), "room:other"),
        ),
        ws(
            "K-246",
            "JSON in a binary message",
            frame(FIN | BINARY, br#"[null,"1","phoenix","heartbeat",{}]"#),
            Close(1011),
        ),
    ]
}

fn channels() -> Vec<Case> {
    let send = |message: &Value| json_text(message);
    let leave = event("9", "phx_leave", &json!({}));
    let not_joined = json!(["1", "9", TOPIC, "phx_reply", { "status": "ok", "response": {} }]);
    let crash_of_join = json!([
        "1", "1", "room:typed", "phx_reply",
        { "status": "error", "response": { "reason": "join crashed" } }
    ]);
    vec![
        ws(
            "K-247",
            "an event before its join",
            event("2", "ask", &json!({})),
            unmatched(&json!("2"), TOPIC),
        ),
        ws("K-248", "a leave before its join", leave.clone(), Messages(vec![not_joined.clone()])),
        Case {
            id: "K-249",
            what: "a second leave after the answer to the first",
            act: Act::Steps(|arena| {
                let leave = event("9", "phx_leave", &json!({}));
                let answer = after_a_leave(arena, &[], &leave)?;
                let expected =
                    json!(["1", "9", TOPIC, "phx_reply", { "status": "ok", "response": {} }]);
                if answer == expected { Result::Ok(()) } else { Err(answer.to_string()) }
            }),
            expect: Expect::As("both are answered"),
        },
        Case {
            id: "K-250",
            what: "an event after the answer to a leave",
            act: Act::Steps(|arena| {
                let answer = after_a_leave(arena, &[], &event("3", "ask", &json!({})))?;
                let is_unmatched = answer[4]["response"]["reason"] == "unmatched topic";
                if is_unmatched { Result::Ok(()) } else { Err(answer.to_string()) }
            }),
            expect: Expect::As("reply \"error\" with reason \"unmatched topic\""),
        },
        Case {
            id: "K-276",
            what: "a leave with fifty leaves and events behind it",
            act: Act::Steps(|arena| {
                let behind = [event("9", "phx_leave", &json!({})), event("3", "ask", &json!({}))];
                let answer = after_a_leave(arena, &behind.concat().repeat(50), &heartbeat("last"))?;
                if answer == beaten("last") { Result::Ok(()) } else { Err(answer.to_string()) }
            }),
            expect: Expect::As(
                "the leave is answered, and ends the channel once; messages behind it are answered, \
                 or dropped with the channel as in Phoenix",
            ),
        },
        joined(
            "K-251",
            "an event of another join",
            send(&json!(["7", "2", TOPIC, "ask", {}])),
            Ignored,
        ),
        joined(
            "K-252",
            "an event whose join reference is a number",
            send(&json!([1, "2", TOPIC, "ask", {}])),
            Ignored,
        ),
        joined(
            "K-253",
            "an event that the channel does not know",
            event("2", "unheard_of", &json!({})),
            Crash,
        ),
        joined("K-254", "an event that is a number", send(&json!(["1", "2", TOPIC, 7, {}])), Crash),
        joined("K-255", "an event that is null", send(&json!(["1", "2", TOPIC, null, {}])), Crash),
        joined("K-256", "the event phx_reply", event("2", "phx_reply", &json!({})), Crash),
        joined("K-257", "the event phx_close", event("2", "phx_close", &json!({})), Crash),
        joined("K-258", "the event phx_error", event("2", "phx_error", &json!({})), Crash),
        joined("K-259", "the event presence_diff", event("2", "presence_diff", &json!({})), Crash),
        joined(
            "K-260",
            "an event with a payload that is a string",
            event("2", "ask", &json!("x")),
            Ok,
        ),
        joined(
            "K-261",
            "an event with a payload that is null",
            event("2", "ask", &json!(null)),
            Ok,
        ),
        ws(
            "K-262",
            "a topic that is a number",
            send(&json!(["1", "2", 5, "ask", {}])),
            Expect::error(&json!("2"), &json!(5), "unmatched topic"),
        ),
        ws(
            "K-263",
            "a topic that is null",
            send(&json!(["1", "2", null, "ask", {}])),
            Expect::error(&json!("2"), &json!(null), "unmatched topic"),
        ),
        ws(
            "K-264",
            "a topic that is an array",
            send(&json!(["1", "2", ["a"], "ask", {}])),
            Expect::error(&json!("2"), &json!(["a"]), "unmatched topic"),
        ),
        ws(
            "K-265",
            "a message of nulls",
            text("[null,null,null,null,null]"),
            Expect::error(&json!(null), &json!(null), "unmatched topic"),
        ),
        ws(
            "K-266",
            "a join whose parameters are not those of the channel",
            send(&json!(["1", "1", "room:typed", "phx_join", { "user": "one" }])),
            Messages(vec![crash_of_join.clone()]),
        ),
        ws(
            "K-267",
            "a join whose parameters are an array",
            send(&json!(["1", "1", "room:typed", "phx_join", [1, 2, 3]])),
            Messages(vec![crash_of_join.clone()]),
        ),
        ws(
            "K-268",
            "a join whose number is too large",
            send(&json!(["1", "1", "room:typed", "phx_join", { "user": 1u64 << 32, "name": "" }])),
            Messages(vec![crash_of_join]),
        ),
        ws(
            "K-269",
            "an event of the topic of heartbeats",
            send(&json!([null, "2", "phoenix", "ask", {}])),
            unmatched(&json!("2"), "phoenix"),
        ),
        joined(
            "K-270",
            "a heartbeat with the reference of a join",
            send(&json!(["1", "1", "phoenix", "heartbeat", null])),
            Ok,
        ),
        Case {
            id: "K-271",
            what: "a hundred and one joins",
            act: Act::Steps(|arena| {
                let mut client =
                    Client::open(arena.address, SOCKET, "").map_err(|error| error.to_string())?;
                let joins: Vec<_> = (0..101).flat_map(|n| join(&format!("room:{n}"))).collect();
                client.send(&joins).map_err(|error| error.to_string())?;
                let mut refused = Vec::new();
                for _ in 0..101 {
                    let reply = client.message()?;
                    if reply[4]["status"] != "ok" {
                        refused.push(reply.to_string());
                    }
                }
                match &refused[..] {
                    [one] if one.contains("too many channels joined") => Result::Ok(()),
                    other => Err(format!("{other:?}")),
                }
            }),
            expect: Expect::As(
                "a hundred joins are accepted, and one is refused: `too many channels joined`",
            ),
        },
        Case {
            id: "K-272",
            what: "a topic joined a hundred times without leaving",
            act: Act::Steps(|arena| {
                let mut client =
                    Client::open(arena.address, SOCKET, "").map_err(|error| error.to_string())?;
                client.send(&join(TOPIC).repeat(100)).map_err(|error| error.to_string())?;
                client.send(&heartbeat("last")).map_err(|error| error.to_string())?;
                // A reply to each, and the end of each channel but the last.
                let (mut joined, mut closed) = (0, 0);
                while (joined, closed) != (100, 99) {
                    let message = client.message()?;
                    joined += usize::from(message[4]["status"] == "ok" && message[2] == TOPIC);
                    closed += usize::from(message[3] == "phx_close");
                }
                arena.eventually("one channel is left", |arena| {
                    let channels = arena.endpoint.snapshot().channels;
                    channels.iter().map(|route| route.open).sum::<usize>() <= 2
                })
            }),
            expect: Expect::As(
                "each join is accepted and ends the one before; one channel is left",
            ),
        },
    ]
}

/// Joins and leaves, with these bytes right behind the leave, and then returns the answer to these.
/// Answers to the bytes behind are skipped.
fn after_a_leave(arena: &Arena, behind: &[u8], last: &[u8]) -> Result<Value, String> {
    let mut client = Client::open(arena.address, SOCKET, "").map_err(|error| error.to_string())?;
    client.join()?;
    let leave = event("9", "phx_leave", &json!({}));
    let mut answer = client.ask(&[&leave[..], behind].concat())?;
    if answer[1] != "9" || answer[4]["status"] != "ok" {
        return Err(format!("the leave was answered with {answer}"));
    }
    answer = client.message()?;
    if answer[3] != "phx_close" {
        return Err(format!("{answer} came instead of the end of the channel"));
    }
    client.send(last).map_err(|error| error.to_string())?;
    answer = client.message()?;
    while !behind.is_empty() && answer[2] == TOPIC {
        if answer[3] != "phx_reply" {
            return Err(format!("{answer} came after the end of the channel"));
        }
        answer = client.message()?;
    }
    Result::Ok(answer)
}

fn limits() -> Vec<Case> {
    vec![
        Case {
            id: "K-273",
            what: "three joins where two are allowed",
            act: Act::Steps(|arena| {
                let path = "/limited/websocket?vsn=2.0.0";
                let mut client =
                    Client::open(arena.address, path, "").map_err(|error| error.to_string())?;
                let joins = [join("room:a"), join("room:b"), join("room:c")].concat();
                client.send(&joins).map_err(|error| error.to_string())?;
                let mut replies = vec![client.message()?, client.message()?, client.message()?];
                replies.retain(|reply| reply[4]["response"]["reason"] == "rate limited");
                if replies.len() == 1 && replies[0][4]["response"]["retry_after"].is_u64() {
                    Result::Ok(())
                } else {
                    Err(format!("refused: {replies:?}"))
                }
            }),
            expect: Expect::As(
                "two are accepted, and one is refused: `rate limited`, with `retry_after`",
            ),
        },
        Case {
            id: "K-274",
            what: "three joins where a client above the limit is closed",
            act: Act::Steps(|arena| {
                let path = "/strict/websocket?vsn=2.0.0";
                let open = || Client::open(arena.address, path, "").map_err(|it| it.to_string());
                let joined = |topic| json!(["1", "1", topic, "phx_reply", { "status": "ok", "response": {} }]);
                let [one, two, three] = ["room:a", "room:b", "room:c"];
                let mut client = open()?;
                let joins = [heartbeat("0"), join(one), join(two), join(three)].concat();
                let _ = client.send(&joins);
                // The channels' tasks answer the joins, and the close may come before them.
                let answers = vec![
                    Answer::Message(beaten("0")),
                    Answer::Perhaps(joined(one)),
                    Answer::Perhaps(joined(two)),
                ];
                ThenClose(answers, 1008).of_socket(&mut client)?;

                let mut client = open()?;
                for topic in [one, two] {
                    let answer = client.ask(&join(topic))?;
                    if answer != joined(topic) {
                        return Err(format!("the join was answered with {answer}"));
                    }
                }
                let _ = client.send(&join(three));
                Close(1008).of_socket(&mut client)
            }),
            expect: Expect::As(
                "close 1008; two joins are answered, unless they are sent together with the third",
            ),
        },
        Case {
            id: "K-275",
            what: "a heartbeat above the rate limit",
            act: Act::Frames {
                path: "/strict/websocket?vsn=2.0.0",
                lines: "",
                joins: false,
                bytes: heartbeat("0").repeat(10),
            },
            expect: Messages(vec![beaten("0"); 10]),
        },
        Case {
            id: "K-277",
            what: "ten thousand joins of a joined topic in one write",
            act: Act::Steps(|arena| joins_at_once(arena, 1)),
            expect: Expect::As(AT_ONCE),
        },
        Case {
            id: "K-278",
            what: "ten thousand joins of fifty joined topics in one write",
            act: Act::Steps(|arena| joins_at_once(arena, 50)),
            expect: Expect::As(AT_ONCE),
        },
    ]
}

const AT_ONCE: &str = "each is answered and ends the one before, and takes no longer than ten of \
                       which each is sent after the answer to the one before";

/// Joins these topics, and then ten thousand times more without waiting for an answer.
fn joins_at_once(arena: &Arena, topics: usize) -> Result<(), String> {
    const ONE_BY_ONE: usize = 200;
    const AT_ONCE: usize = 10_000;
    let mut client = Client::open(arena.address, SOCKET, "").map_err(|error| error.to_string())?;
    let is_ok = |answer: &Value| answer[3] == "phx_reply" && answer[4]["status"] == "ok";
    let nth = |n: usize| join(&format!("room:{}", n % topics));
    let begun = Instant::now();
    for n in 0..ONE_BY_ONE {
        let answer = client.ask(&nth(n))?;
        if !is_ok(&answer) || (n >= topics && client.message()?[3] != "phx_close") {
            return Err(format!("a join was answered with {answer}"));
        }
    }
    let one_by_one = begun.elapsed() / u32::try_from(ONE_BY_ONE).unwrap();

    let joins: Vec<_> = (0..AT_ONCE).flat_map(nth).collect();
    let mut writing = client.stream.try_clone().map_err(|error| error.to_string())?;
    let begun = Instant::now();
    std::thread::scope(|scope| {
        // It reads while it writes, as the server does.
        scope.spawn(move || writing.write_all(&joins));
        let (mut accepted, mut closed) = (0, 0);
        while accepted < AT_ONCE || closed < AT_ONCE {
            let answer = client.message()?;
            match &answer[3] {
                _ if is_ok(&answer) => accepted += 1,
                event if event == "phx_close" => closed += 1,
                _ => return Err(format!("{answer} came after {accepted} joins")),
            }
            let (took, most) = (begun.elapsed(), one_by_one * 10);
            let handled = u32::try_from(accepted).unwrap().max(1_000);
            if took > most * handled {
                return Err(format!("{accepted} joins took {took:?}, one alone {one_by_one:?}"));
            }
        }
        Result::Ok(())
    })
}

#[test]
fn messages_are_refused_or_answered() {
    group().run();
}
