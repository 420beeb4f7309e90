//! A proxy in front of the nodes. A connection goes to the next node in turn that accepts it.

use std::{io, sync::Arc};

use parking_lot::Mutex;
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    task::{JoinHandle, JoinSet},
};

/// The proxy. Dropping it ends its connections.
pub(crate) struct Proxy {
    pub(crate) address: String,
    nodes: Arc<Mutex<Vec<String>>>,
    task: JoinHandle<()>,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Proxy {
    pub(crate) async fn start(nodes: Vec<String>) -> io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?.to_string();
        let nodes = Arc::new(Mutex::new(nodes));
        let known = nodes.clone();
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            for turn in 0.. {
                let Ok((client, _)) = listener.accept().await else { continue };
                let nodes = known.lock().clone();
                connections.spawn(forward(client, nodes, turn));
                while connections.try_join_next().is_some() {}
            }
        });
        Ok(Self { address, nodes, task })
    }

    /// Notes that a node has another address.
    pub(crate) fn moved(&self, number: usize, address: &str) {
        if let Some(node) = self.nodes.lock().get_mut(number) {
            address.clone_into(node);
        }
    }
}

async fn forward(mut client: TcpStream, nodes: Vec<String>, turn: usize) {
    for node in nodes.iter().cycle().skip(turn % nodes.len().max(1)).take(nodes.len()) {
        if let Ok(mut node) = TcpStream::connect(node).await {
            // Either side may end it.
            let _ = copy_bidirectional(&mut client, &mut node).await;
            return;
        }
    }
}
