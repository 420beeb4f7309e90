//! The way to a server, which can be cut off, stand still or be slow.

use std::sync::Arc;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::watch,
    task::AbortHandle,
    time::{Duration, sleep},
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Open,
    /// Connections are closed, and no more are taken.
    Cut,
    /// Nothing is forwarded and nothing is closed, as by a network that loses each packet.
    Silent,
    /// So many bytes in a second, of each connection and direction.
    Slow(usize),
}

/// Passes connections on to a port of this machine.
#[derive(Debug)]
pub struct Way {
    /// The port on which it listens.
    pub port: u16,
    mode: Arc<watch::Sender<Mode>>,
    serving: AbortHandle,
}

impl Way {
    /// An open way to a port.
    pub async fn to(server: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let mode = Arc::new(watch::Sender::new(Mode::Open));
        let gate = mode.clone();
        let serving = tokio::spawn(async move {
            loop {
                let (client, _) = listener.accept().await.unwrap();
                if *gate.borrow() != Mode::Cut {
                    tokio::spawn(connection(client, server, gate.subscribe()));
                }
            }
        });
        Self { port, mode, serving: serving.abort_handle() }
    }

    /// Closes all connections, and takes no more.
    pub fn cut(&self) {
        self.mode.send_replace(Mode::Cut);
    }

    /// Forwards nothing any longer, and closes nothing.
    pub fn silence(&self) {
        self.mode.send_replace(Mode::Silent);
    }

    /// Forwards so many bytes in a second at most.
    pub fn slow(&self, bytes_per_second: usize) {
        self.mode.send_replace(Mode::Slow(bytes_per_second));
    }

    /// Forwards everything again.
    pub fn heal(&self) {
        self.mode.send_replace(Mode::Open);
    }
}

impl Drop for Way {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

async fn connection(client: TcpStream, server: u16, mut mode: watch::Receiver<Mode>) {
    let passing = mode.clone();
    let both = async {
        forwards(&mut passing.clone()).await;
        // A server that is away ends the connection.
        let Ok(server) = TcpStream::connect(("127.0.0.1", server)).await else { return };
        let (from_client, to_client) = client.into_split();
        let (from_server, to_server) = server.into_split();
        tokio::join!(
            pass(from_client, to_server, passing.clone()),
            pass(from_server, to_client, passing)
        );
    };
    tokio::select! {
        () = both => {}
        _ = mode.wait_for(|mode| *mode == Mode::Cut) => {}
    }
}

/// Waits while it forwards nothing.
async fn forwards(mode: &mut watch::Receiver<Mode>) {
    // The sender is gone with the test.
    let _ = mode.wait_for(|mode| *mode != Mode::Silent).await;
}

async fn pass(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut mode: watch::Receiver<Mode>) {
    let mut buffer = vec![0; 4096];
    loop {
        forwards(&mut mode).await;
        let read = from.read(&mut buffer).await.unwrap_or(0);
        // What has come while it stood still waits too.
        forwards(&mut mode).await;
        if read == 0 || to.write_all(&buffer[..read]).await.is_err() {
            return;
        }
        let Mode::Slow(rate) = *mode.borrow() else { continue };
        sleep(Duration::from_secs_f64(read as f64 / rate as f64)).await;
    }
}
