//! The servers that the project is compared with.

pub(crate) mod baseline;
pub(crate) mod raw;

/// The reply to any join.
const JOINED: &str = r#"["1","1","room:1","phx_reply",{"status":"ok","response":{}}]"#;

/// A broadcast in the format of the project's own server.
fn broadcast(n: u64, made_at: u64) -> String {
    const DATA: &str = "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx";
    format!(r#"[null,null,"room:1","msg",{{"d":"{DATA}","n":{n},"at_us":{made_at}}}]"#)
}
