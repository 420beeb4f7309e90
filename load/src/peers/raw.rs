//! The minimum possible cost: one thread, no runtime, and one write of a prepared frame per socket and
//! message, or of several concatenated frames.
//!
//! It reads nothing after a join, checks nothing, and limits nothing.

use std::{
    io::{self, Read, Write},
    net::{TcpListener, TcpStream},
    thread,
    time::Duration,
};

use tokio::time::Instant;

use super::{JOINED, broadcast};
use pipeline_load::{server::LISTENING, unix_micros};

/// The interval of paced bursts.
const BURST: Duration = Duration::from_millis(10);

/// Part of a request for paced pushes whose times start with their burst, as if the whole burst were
/// enqueued at once, and not with the write of each.
pub(crate) const STAMPED_TOGETHER: &str = "stamped=together";

/// Serves until the process is killed.
pub(crate) fn serve(port: u16, glue: u64) -> io::Result<()> {
    let listener = TcpListener::bind(("127.0.0.1", port))?;
    println!("{LISTENING}{}", listener.local_addr()?);
    let mut sockets = Vec::new();
    for stream in listener.incoming() {
        let mut stream = stream?;
        let Some(request) = request(&mut stream)? else { continue };
        if request.contains("Upgrade: websocket") {
            join(&mut stream)?;
            sockets.push(stream);
            continue;
        }
        if request.starts_with("GET /pipe") {
            pushes(&mut sockets, number(&request, "n"))?;
        } else if request.starts_with("GET /paced") {
            let together = request.contains(STAMPED_TOGETHER);
            paced(&mut sockets, number(&request, "rate"), number(&request, "secs"), together)?;
        } else {
            let every = Duration::from_micros(number(&request, "every_us"));
            broadcasts(&mut sockets, number(&request, "n"), glue.max(1), every)?;
        }
        stream.write_all(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")?;
    }
    Ok(())
}

/// Reads the head of a request. None if the client has disconnected.
fn request(stream: &mut TcpStream) -> io::Result<Option<String>> {
    let (mut head, mut space) = (Vec::new(), [0; 4096]);
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read(&mut space)? {
            0 => return Ok(None),
            length => head.extend_from_slice(&space[..length]),
        }
    }
    Ok(Some(String::from_utf8_lossy(&head).into_owned()))
}

fn join(stream: &mut TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    stream.write_all(
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
          Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n",
    )?;
    // Every join is accepted.
    if stream.read(&mut [0; 4096])? == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    stream.write_all(&frame(JOINED))
}

fn broadcasts(
    sockets: &mut [TcpStream],
    messages: u64,
    glue: u64,
    every: Duration,
) -> io::Result<()> {
    let mut next = Instant::now();
    for n in 0..messages.div_ceil(glue) {
        if !every.is_zero() {
            wait_until(next);
            next += every;
        }
        let together = glue.min(messages - n * glue);
        let glued = frame(&broadcast(n, unix_micros())).repeat(together.try_into().unwrap_or(1));
        for socket in &mut *sockets {
            socket.write_all(&glued)?;
        }
    }
    Ok(())
}

/// Pushes to one socket after the other.
fn pushes(sockets: &mut [TcpStream], count: u64) -> io::Result<()> {
    let users = sockets.len();
    for (n, user) in (0..count).zip((0..users).cycle()) {
        push(sockets, user, n, unix_micros())?;
    }
    Ok(())
}

fn paced(sockets: &mut [TcpStream], rate: u64, secs: u64, together: bool) -> io::Result<()> {
    let (total, bursts) = (rate * secs, secs * 100);
    let users = sockets.len();
    let mut next = Instant::now();
    let mut to = (0..users).cycle();
    let mut n = 0;
    for burst in 1..=bursts {
        wait_until(next);
        next += BURST;
        let began = unix_micros();
        while n < total * burst / bursts {
            let Some(user) = to.next() else { return Ok(()) };
            push(sockets, user, n, if together { began } else { unix_micros() })?;
            n += 1;
        }
    }
    Ok(())
}

fn push(sockets: &mut [TcpStream], user: usize, n: u64, at: u64) -> io::Result<()> {
    let text = format!(r#"[null,null,"user:{user}","push_timed",{{"n":{n},"at_us":{at}}}]"#);
    sockets[user].write_all(&frame(&text))
}

/// A frame of a server.
fn frame(text: &str) -> Vec<u8> {
    let mut frame = vec![0x81];
    match u8::try_from(text.len()) {
        Ok(short @ ..126) => frame.push(short),
        _ => {
            frame.push(126);
            frame.extend(u16::try_from(text.len()).unwrap_or(u16::MAX).to_be_bytes());
        }
    }
    frame.extend_from_slice(text.as_bytes());
    frame
}

/// A number among the parameters of a request. Zero if it is missing.
fn number(request: &str, name: &str) -> u64 {
    let line = request.lines().next().unwrap_or_default();
    let words = line.split(['?', '&', ' ']).filter_map(|word| word.split_once('='));
    let value = words.filter(|(key, _)| *key == name).find_map(|(_, value)| value.parse().ok());
    value.unwrap_or_default()
}

#[expect(clippy::disallowed_methods, reason = "there is no runtime here")]
fn wait_until(moment: Instant) {
    thread::sleep(moment.saturating_duration_since(Instant::now()));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_found_by_their_names() {
        let request = "GET /bcast?topic=room:1&n=50&every_us=20000 HTTP/1.1\r\nHost: n=7\r\n\r\n";
        assert_eq!(number(request, "n"), 50);
        assert_eq!(number(request, "every_us"), 20_000);
        assert_eq!(number(request, "us"), 0);
    }
}
