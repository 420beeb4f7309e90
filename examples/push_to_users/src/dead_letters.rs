//! The command `dead-letters`: what became of pushes that were given up, and another try.

use std::{
    error::Error,
    fmt::Write,
    future::Future,
    pin::Pin,
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use pipeline::sources::DeadLetter;
use pipeline_example_support::{complain, say};
use serde_json::json;

use crate::{
    args::{Action, DeadLetters, QueueAt, Which},
    queues,
};

/// How many dead letters are read at once.
const PAGE: u32 = 100;

/// How much of a key a line of the table shows, in characters.
const KEY: usize = 24;

/// How much of a payload or a reason a line of the table shows, in characters.
const EXCERPT: usize = 60;

/// The dead letters of a queue.
pub trait Graves: Send + Sync {
    /// Up to so many after this one, in the order of the queue.
    fn list<'a>(&'a self, after: Option<&'a str>, limit: u32)
    -> Asked<'a, Vec<DeadLetter<String>>>;

    /// The dead letter with this id. By default it is looked for page by page.
    fn find<'a>(&'a self, id: &'a str) -> Asked<'a, Option<DeadLetter<String>>> {
        Box::pin(async move {
            let mut last: Option<String> = None;
            loop {
                let page = self.list(last.as_deref(), PAGE).await?;
                last = page.last().map(|dead| dead.id.clone());
                if let Some(found) = page.into_iter().find(|dead| dead.id == id) {
                    return Ok(Some(found));
                }
                if last.is_none() {
                    return Ok(None);
                }
            }
        })
    }

    /// Adds one to the queue again. Returns whether there was one with this id.
    fn replay<'a>(&'a self, id: &'a str) -> Asked<'a, bool>;

    /// Closes what the process must not leave open at its end. By default that is nothing.
    fn close(self: Arc<Self>) -> Pin<Box<dyn Future<Output = ()>>> {
        Box::pin(async {})
    }

    /// The same of all that are there when it begins. Those that are given up meanwhile are others. Returns how many there
    /// were.
    fn replay_all(&self) -> Asked<'_, u64>;

    /// Removes one. Returns whether there was one with this id.
    fn remove<'a>(&'a self, id: &'a str) -> Asked<'a, bool>;

    /// Removes all that are there when it begins, and no others. Returns how many there were.
    fn remove_all(&self) -> Asked<'_, u64>;
}

pub type Asked<'a, T> = Pin<Box<dyn Future<Output = Result<T, Box<dyn Error>>> + 'a>>;

#[cfg(any(feature = "nats", feature = "postgres", feature = "sqlite"))]
pub fn number<N: std::str::FromStr>(id: &str) -> Result<N, String> {
    id.parse().map_err(|_| format!("\"{}\" is no id, expected a number", excerpt(id)))
}

/// The same with a text as its id, as the command line has it.
pub fn with_text_id<Id: ToString>(dead: DeadLetter<Id>) -> DeadLetter<String> {
    dead.map_id(|id| id.to_string())
}

/// Does it. Returns whether all the dead letters that were named exist.
pub async fn run(wanted: &DeadLetters) -> Result<bool, Box<dyn Error>> {
    let at = wanted.queue_at().ok_or("which queue? --durable FILE or --source URL names it")?;
    let opened = opened(&at).await?;
    let done = act(&*opened, wanted).await;
    opened.close().await;
    done
}

async fn act(queue: &dyn Graves, wanted: &DeadLetters) -> Result<bool, Box<dyn Error>> {
    let as_json = wanted.json;
    match &wanted.action {
        Action::List { after, limit } => list(queue, after.as_deref(), *limit, as_json, say).await,
        Action::Show { id } => match queue.find(id).await? {
            Some(dead) => {
                say(if as_json { to_json(&dead) } else { whole(&dead) });
                Ok(true)
            }
            None => Ok(missing(id)),
        },
        Action::Replay(Which { all: true, .. }) => {
            count("replayed", queue.replay_all().await?, as_json);
            Ok(true)
        }
        Action::Drop(Which { all: true, .. }) => {
            count("dropped", queue.remove_all().await?, as_json);
            Ok(true)
        }
        Action::Replay(which) => {
            each(which, "replayed", as_json, async |id| queue.replay(id).await).await
        }
        Action::Drop(which) => {
            each(which, "dropped", as_json, async |id| queue.remove(id).await).await
        }
    }
}

async fn opened(at: &QueueAt) -> Result<Arc<dyn Graves>, String> {
    if let QueueAt::File { path, .. } = at
        && !path.exists()
    {
        return Err(format!("there is no file {}", path.display()));
    }
    Ok(queues::open_for_command(at).await?)
}

fn missing(id: &str) -> bool {
    complain(format!("there is no dead letter {}", excerpt(id)));
    false
}

async fn list(
    queue: &dyn Graves,
    after: Option<&str>,
    limit: u32,
    as_json: bool,
    mut print: impl FnMut(String),
) -> Result<bool, Box<dyn Error>> {
    let (mut last, mut left) = (after.map(str::to_owned), limit);
    let mut listed = 0;
    if !as_json {
        print(row(["id", "given up at", "tries", "key", "reason", "payload"]));
    }
    while left > 0 {
        let page = queue.list(last.as_deref(), left.min(PAGE)).await?;
        let Some(end) = page.last() else { break };
        last = Some(end.id.clone());
        left = left.saturating_sub(u32::try_from(page.len()).unwrap_or(u32::MAX));
        listed += page.len();
        for dead in &page {
            print(if as_json { to_json(dead) } else { line(dead) });
        }
    }
    match last {
        _ if as_json => {}
        Some(last) if listed > 0 => match queue.list(Some(&last), 1).await {
            Ok(page) if page.is_empty() => {}
            Ok(_) => print(more_after(&last)),
            // What was asked for is listed.
            Err(error) => complain(format!("it is not known whether there are more: {error}")),
        },
        _ => print("there are none".to_owned()),
    }
    Ok(true)
}

/// Does something with each of the dead letters that are named.
async fn each(
    which: &Which,
    done: &str,
    as_json: bool,
    act: impl AsyncFn(&str) -> Result<bool, Box<dyn Error>>,
) -> Result<bool, Box<dyn Error>> {
    let mut found_all = true;
    let mut acted = 0_u64;
    for id in &which.ids {
        if act(id).await? {
            acted += 1;
        } else {
            found_all = missing(id);
        }
    }
    count(done, acted, as_json);
    Ok(found_all)
}

fn count(done: &str, number: u64, as_json: bool) {
    say(if as_json { json!({ done: number }).to_string() } else { format!("{number} {done}") });
}

/// A line of the table.
fn row([id, at, tries, key, reason, payload]: [&str; 6]) -> String {
    format!("{id:>8}  {at:<20}  {tries:>5}  {key:<12}  {reason:<EXCERPT$}  {payload}")
}

fn line(dead: &DeadLetter<String>) -> String {
    let payload = String::from_utf8_lossy(&dead.item.payload);
    let key = dead.item.key.as_deref().unwrap_or_default();
    let (at, tries) = (dead.given_up_at.map_or_else(String::new, utc), dead.deliveries.to_string());
    let (reason, payload) = (excerpt(&dead.reason), excerpt(&payload));
    row([&printable(&dead.id), &at, &tries, &short_key(key), &reason, &payload])
}

/// Everything about one, with its payload at the end.
fn whole(dead: &DeadLetter<String>) -> String {
    let mut text = String::new();
    let mut field = |name: &str, value: &str| {
        let _ = writeln!(text, "{name:<12} {}", printable(value));
    };
    field("id", &dead.id);
    field("key", dead.item.key.as_deref().unwrap_or("-"));
    field("added at", &dead.enqueued_at.map_or_else(|| "-".to_owned(), utc));
    field("given up at", &dead.given_up_at.map_or_else(|| "-".to_owned(), utc));
    field("tries", &dead.deliveries.to_string());
    field("reason", &dead.reason);
    for (name, value) in &dead.item.headers {
        field("header", &format!("{name}: {value}"));
    }
    if let Some(trace) = dead.item.trace {
        field("trace", &trace.to_string());
    }
    let payload = String::from_utf8_lossy(&dead.item.payload);
    text + "payload\n" + &printable(&payload)
}

fn to_json(dead: &DeadLetter<String>) -> String {
    let payload = String::from_utf8_lossy(&dead.item.payload);
    json!({
        "id": dead.id,
        "key": dead.item.key,
        "enqueued_at": dead.enqueued_at.map(utc),
        "given_up_at": dead.given_up_at.map(utc),
        "deliveries": dead.deliveries,
        "reason": dead.reason,
        "headers": dead.item.headers,
        "trace": dead.item.trace.map(|trace| trace.to_string()),
        "payload": payload,
    })
    .to_string()
}

/// The beginning of a text, in one line.
pub fn excerpt(text: &str) -> String {
    let mut excerpt = printable(&text.chars().take(EXCERPT).collect::<String>());
    if excerpt.chars().count() >= EXCERPT {
        excerpt = excerpt.chars().take(EXCERPT - 1).chain(['…']).collect();
    }
    excerpt
}

/// A key in a line, and how long it is if it was cut: others may begin as it does.
fn short_key(key: &str) -> String {
    let length = key.chars().count();
    if length <= KEY {
        return printable(key);
    }
    let begin: String = key.chars().take(KEY).collect();
    format!("{}… ({length} characters)", printable(&begin))
}

/// The text without characters that control a terminal.
fn printable(text: &str) -> String {
    let shown = |c: char| if controls(c) { c.escape_default().to_string() } else { c.to_string() };
    text.chars().map(shown).collect()
}

/// Whether a character controls a terminal.
fn controls(c: char) -> bool {
    c.is_control() || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// What lists those after this one.
fn more_after(id: &str) -> String {
    // Else it would be taken for an option.
    let between = if id.starts_with('-') { '=' } else { ' ' };
    format!("more: list --after{between}{}", argument(id))
}

/// A text as an argument of a command, to be pasted into a shell: as it is where that is plain, else quoted, and without
/// characters that control a terminal. A shell of POSIX is given what is quoted as it is; that of one with such characters,
/// by the quotes of most shells for them, `$'...'`.
fn argument(text: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_.,:/@%+".contains(c);
    if !text.is_empty() && text.chars().all(is_plain) {
        return text.to_owned();
    }
    if printable(text) == text {
        return format!("'{}'", text.replace('\'', r"'\''"));
    }
    let mut quoted = String::from("$'");
    for c in text.chars() {
        match c {
            '\'' | '\\' => quoted.extend(['\\', c]),
            c if controls(c) => {
                // Each byte of it, as not all shells know the number of a character.
                for byte in c.encode_utf8(&mut [0; 4]).bytes() {
                    let _ = write!(quoted, "\\{byte:03o}");
                }
            }
            c => quoted.push(c),
        }
    }
    quoted + "'"
}

/// A time in UTC, to the second.
fn utc(time: SystemTime) -> String {
    let seconds = time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    // Years from March on, so that a leap day is the last of its year. An era is 400 of them.
    let days = days + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = year + era * 400 + u64::from(month <= 2);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use pipeline::sources::Item;

    use super::*;

    #[test]
    fn times_are_in_utc() {
        let at = |seconds| utc(UNIX_EPOCH + Duration::from_secs(seconds));
        assert_eq!(at(0), "1970-01-01T00:00:00Z");
        assert_eq!(at(951_782_399), "2000-02-28T23:59:59Z");
        assert_eq!(at(951_782_400), "2000-02-29T00:00:00Z");
        assert_eq!(at(1_709_251_200), "2024-03-01T00:00:00Z");
        assert_eq!(at(4_102_444_799), "2099-12-31T23:59:59Z");
    }

    /// Three dead letters, of a queue that cannot tell what is behind the last one.
    struct Odd;

    impl Graves for Odd {
        fn list<'a>(
            &'a self,
            after: Option<&'a str>,
            limit: u32,
        ) -> Asked<'a, Vec<DeadLetter<String>>> {
            let first = after.map_or(0, |after| after.parse::<u64>().unwrap());
            let letter = |id: u64| DeadLetter::new(id.to_string(), Item::new("x"), "no");
            let page = (first + 1..=3).take(limit.try_into().unwrap()).map(letter).collect();
            let page =
                if first < 3 { Ok(page) } else { Err("another program has dropped it".into()) };
            Box::pin(async { page })
        }

        fn replay<'a>(&'a self, _: &'a str) -> Asked<'a, bool> {
            Box::pin(async { Ok(false) })
        }

        fn replay_all(&self) -> Asked<'_, u64> {
            Box::pin(async { Ok(0) })
        }

        fn remove<'a>(&'a self, _: &'a str) -> Asked<'a, bool> {
            Box::pin(async { Ok(true) })
        }

        fn remove_all(&self) -> Asked<'_, u64> {
            Box::pin(async { Ok(0) })
        }
    }

    #[tokio::test]
    async fn a_list_is_whole_although_it_is_not_known_whether_there_are_more() {
        for as_json in [false, true] {
            assert!(list(&Odd, None, 3, as_json, drop).await.unwrap());
            assert!(list(&Odd, None, 2, as_json, drop).await.unwrap());
            // Fewer than were asked for are not what was asked for.
            assert!(list(&Odd, None, 4, as_json, drop).await.is_err());
        }
    }

    #[test]
    fn a_long_key_is_cut_on_a_line_and_its_length_is_said() {
        let with_key =
            |key: &str| line(&DeadLetter::new("1".to_owned(), Item::new("x").key(key), "no"));
        let long = with_key(&"k".repeat(100_000));
        assert!(long.contains("kkk… (100000 characters)") && long.len() < 200, "{}", long.len());
        assert!(with_key("user-7").contains("  user-7  "));
        assert!(
            whole(&DeadLetter::new("1".to_owned(), Item::new("x").key("k".repeat(100)), "no"))
                .contains(&"k".repeat(100))
        );
    }

    /// Dead letters without an end, whose ids are of another program.
    struct Foreign;

    const FOREIGN: &str = "x\u{1b}[2J; echo gone";

    impl Graves for Foreign {
        fn list<'a>(&'a self, _: Option<&'a str>, _: u32) -> Asked<'a, Vec<DeadLetter<String>>> {
            Box::pin(async { Ok(vec![DeadLetter::new(FOREIGN.to_owned(), Item::new("x"), "no")]) })
        }

        fn replay<'a>(&'a self, _: &'a str) -> Asked<'a, bool> {
            Box::pin(async { Ok(false) })
        }

        fn replay_all(&self) -> Asked<'_, u64> {
            Box::pin(async { Ok(0) })
        }

        fn remove<'a>(&'a self, _: &'a str) -> Asked<'a, bool> {
            Box::pin(async { Ok(true) })
        }

        fn remove_all(&self) -> Asked<'_, u64> {
            Box::pin(async { Ok(0) })
        }
    }

    #[tokio::test]
    async fn a_list_shows_the_ids_of_another_program_so_that_they_do_no_harm() {
        let mut lines = Vec::new();
        assert!(list(&Foreign, None, 1, false, |line| lines.push(line)).await.unwrap());
        assert!(!lines.iter().any(|line| line.chars().any(controls)), "{lines:?}");
        assert_eq!(lines.len(), 3);
        assert_eq!(lines[2], r"more: list --after $'x\033[2J; echo gone'");
    }

    #[cfg(unix)]
    #[test]
    fn the_id_of_another_program_is_one_argument_of_a_shell_and_controls_no_terminal() {
        assert_eq!(more_after("1234"), "more: list --after 1234");
        assert_eq!(more_after("-5"), "more: list --after=-5");
        assert_eq!(argument("~7.ab"), "'~7.ab'");
        let hostile = [
            "x\u{1b}[2J; echo gone",
            "; echo gone",
            "$(echo gone)`echo gone`",
            "it's \\ \"$HOME\"",
            "a\nb\tc\u{202e}d\u{85}é",
            "it's\u{1b}\\",
            "*",
            "--all",
            "",
        ];
        for id in hostile {
            let more = more_after(id);
            let argument = &more["more: list --after ".len()..];
            assert!(!argument.chars().any(controls), "{argument:?}");
            let mut shell = std::process::Command::new("bash");
            let printed = shell.arg("-c").arg(format!("printf %s {argument}")).output().unwrap();
            assert!(printed.status.success() && printed.stderr.is_empty(), "{printed:?}");
            assert_eq!(String::from_utf8(printed.stdout).unwrap(), id, "{argument}");
        }
    }

    #[test]
    fn a_terminal_is_not_controlled_by_what_others_have_written() {
        assert_eq!(printable("a\u{1b}[31m\n\u{202e}é"), "a\\u{1b}[31m\\n\\u{202e}é");
        assert_eq!(excerpt(&"x".repeat(200)).chars().count(), EXCERPT);
        assert_eq!(excerpt("short"), "short");
    }
}
