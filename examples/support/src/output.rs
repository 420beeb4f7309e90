//! The program's output, written by separate threads: a terminal that does not read blocks nothing else.

use std::{
    io::{self, Write},
    sync::{
        OnceLock,
        mpsc::{Receiver, SyncSender, TrySendError, sync_channel},
    },
    thread,
    time::Duration,
};

/// Maximum number of queued texts. Further ones are dropped.
const WAITING: usize = 1024;

/// How long the program waits at exit for its output to be written.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// A writer to standard output or standard error.
///
/// Text is dropped while the queue is full, and after the reader has closed its end: a broken pipe is no
/// error.
#[derive(Clone, Debug)]
pub(crate) struct Output {
    texts: SyncSender<Text>,
}

#[derive(Debug)]
enum Text {
    Bytes(Vec<u8>),
    /// Confirms that all earlier text has been written.
    Written(SyncSender<()>),
}

/// Prints a line to standard output.
pub fn say(line: impl AsRef<str>) {
    out().line(line.as_ref());
}

/// Prints a line to standard error.
pub fn complain(line: impl AsRef<str>) {
    err().line(line.as_ref());
}

/// Standard error, for log lines.
pub(crate) fn err() -> &'static Output {
    static ERR: OnceLock<Output> = OnceLock::new();
    ERR.get_or_init(|| Output::to(io::stderr()))
}

fn out() -> &'static Output {
    static OUT: OnceLock<Output> = OnceLock::new();
    OUT.get_or_init(|| Output::to(io::stdout()))
}

/// Waits until all output is written, for a second at most.
pub fn finish() {
    out().finish();
    err().finish();
}

impl Output {
    fn to(target: impl Write + Send + 'static) -> Self {
        let (texts, waiting) = sync_channel(WAITING);
        // A write cannot be interrupted, so the thread ends with the process.
        thread::spawn(move || write_all(target, &waiting));
        Self { texts }
    }

    fn line(&self, line: &str) {
        let _ = self.texts.try_send(Text::Bytes(format!("{line}\n").into_bytes()));
    }

    fn finish(&self) {
        let (written, is_written) = sync_channel(1);
        let mut text = Text::Written(written);
        // A full channel means that the terminal does not read: then there is nothing to wait for.
        for _ in 0..2 {
            match self.texts.try_send(text) {
                Ok(()) => {
                    let _ = is_written.recv_timeout(LAST_WORDS);
                    return;
                }
                Err(TrySendError::Full(back)) => text = back,
                Err(TrySendError::Disconnected(_)) => return,
            }
            let _ = is_written.recv_timeout(LAST_WORDS / 4);
        }
    }
}

impl Write for &Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let _ = self.texts.try_send(Text::Bytes(bytes.to_vec()));
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn write_all(mut target: impl Write, texts: &Receiver<Text>) {
    for text in texts {
        match text {
            Text::Bytes(bytes) => {
                let _ = target.write_all(&bytes).and_then(|()| target.flush());
            }
            Text::Written(written) => {
                let _ = written.try_send(());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, mpsc};

    use parking_lot::Mutex;

    use super::*;

    /// A writer that blocks until the test allows it to write.
    #[derive(Clone, Default)]
    struct Terminal(Arc<Mutex<Vec<u8>>>);

    impl Write for Terminal {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn printed_text_is_written_before_the_exit() {
        let terminal = Terminal::default();
        let output = Output::to(terminal.clone());
        output.line("one");
        (&output).write_all(b"two").unwrap();
        output.finish();
        assert_eq!(*terminal.0.lock(), b"one\ntwo");
    }

    #[test]
    fn a_terminal_that_does_not_read_blocks_nothing() {
        let terminal = Terminal::default();
        let output = Output::to(terminal.clone());
        let unread = terminal.0.lock();
        let (done, is_done) = mpsc::channel();
        let printing = output.clone();
        thread::spawn(move || {
            (0..10 * WAITING).for_each(|n| printing.line(&n.to_string()));
            done.send(()).unwrap();
        });
        is_done.recv().unwrap();
        drop(unread);
    }

    #[test]
    fn a_broken_pipe_is_no_error() {
        struct Broken;
        impl Write for Broken {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::BrokenPipe.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let output = Output::to(Broken);
        output.line("one");
        output.finish();
    }
}
