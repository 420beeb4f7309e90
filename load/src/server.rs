//! A measured server, as a separate process.

use std::{
    io::{BufRead, BufReader},
    net::SocketAddr,
    process::{Child, ChildStdout, Command, Stdio},
};

use crate::error::LoadError;

/// The prefix of the line with a server's address.
pub(crate) const LISTENING: &str = "listening on ";

/// A running server. It is killed on drop.
#[derive(Debug)]
pub(crate) struct Server {
    child: Child,
    pub(crate) address: SocketAddr,
    /// Kept open: the server would fail to print otherwise.
    _stdout: BufReader<ChildStdout>,
}

impl Server {
    /// Starts a program, and waits until it is listening.
    pub(crate) fn start(command: &mut Command) -> Result<Self, LoadError> {
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
            Some(address) => Ok(Self { child, address, _stdout: stdout }),
            None => {
                // The process may have ended already.
                let _ = child.kill();
                child.wait()?;
                Err(LoadError::NoServer { program, source: None })
            }
        }
    }

    pub(crate) fn process(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // The process may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
