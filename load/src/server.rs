//! A measured server, as a separate process.

use std::{
    io::{self, BufRead, BufReader, Read},
    net::SocketAddr,
    process::{Child, ChildStdout, Command, ExitStatus, Stdio},
};

use crate::error::LoadError;

/// The prefix of the line with a server's address.
pub const LISTENING: &str = "listening on ";

/// A running server. It is killed on drop.
#[derive(Debug)]
pub struct Server {
    child: Child,
    /// Where it listens.
    pub address: SocketAddr,
    /// Kept open: the server would fail to print otherwise.
    stdout: BufReader<ChildStdout>,
}

impl Server {
    /// Starts a program, and waits until it is listening.
    ///
    /// # Errors
    ///
    /// If it does not start, or does not print its address first.
    ///
    /// # Panics
    ///
    /// Never: its output is piped.
    pub fn start(command: &mut Command) -> Result<Self, LoadError> {
        let program = command.get_program().into();
        let mut child = match command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn() {
            Ok(child) => child,
            Err(error) => return Err(LoadError::NoServer { program, source: Some(error) }),
        };
        let stdout = child.stdout.take().expect("stdout is piped");
        let mut stdout = BufReader::new(stdout);
        let mut line = String::new();
        stdout.read_line(&mut line)?;
        match line.strip_prefix(LISTENING).and_then(|address| address.trim().parse().ok()) {
            Some(address) => Ok(Self { child, address, stdout }),
            None => {
                // The process may have ended already.
                let _ = child.kill();
                child.wait()?;
                Err(LoadError::NoServer { program, source: None })
            }
        }
    }

    /// The id of its process.
    #[must_use]
    pub fn process(&self) -> u32 {
        self.child.id()
    }

    /// Waits for its end. Returns its status, and its output after the address.
    ///
    /// # Errors
    ///
    /// If the output is not text.
    pub fn wait(mut self) -> io::Result<(ExitStatus, String)> {
        let mut printed = String::new();
        self.stdout.read_to_string(&mut printed)?;
        Ok((self.child.wait()?, printed))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // The process may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
