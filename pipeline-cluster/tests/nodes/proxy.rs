//! The way of one node to the server, which can be cut off.

use std::sync::Arc;

use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    sync::watch,
    task::AbortHandle,
};

/// Passes connections on to a server while it is open. Closed, it ends them, and takes no more.
pub struct Proxy {
    pub port: u16,
    is_open: Arc<watch::Sender<bool>>,
    serving: AbortHandle,
}

impl Proxy {
    pub async fn start(server: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let is_open = Arc::new(watch::Sender::new(true));
        let gate = is_open.clone();
        let serving = tokio::spawn(async move {
            loop {
                let (mut client, _) = listener.accept().await.unwrap();
                let mut open = gate.subscribe();
                if !*open.borrow_and_update() {
                    continue;
                }
                tokio::spawn(async move {
                    let mut server = TcpStream::connect(("127.0.0.1", server)).await.unwrap();
                    tokio::select! {
                        _ = copy_bidirectional(&mut client, &mut server) => {}
                        _ = open.changed() => {}
                    }
                });
            }
        });
        Self { port, is_open, serving: serving.abort_handle() }
    }

    pub fn cut(&self) {
        self.is_open.send_replace(false);
    }

    pub fn heal(&self) {
        self.is_open.send_replace(true);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.serving.abort();
    }
}
