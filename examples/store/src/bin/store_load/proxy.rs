//! A proxy in front of the nodes. A connection goes to the next node in turn that accepts it.

use std::{io, sync::Arc};

use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    task::{JoinHandle, JoinSet},
};

/// The proxy. Dropping it ends its connections.
pub(crate) struct Proxy {
    pub(crate) address: String,
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
        let nodes = Arc::new(nodes);
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            for turn in 0.. {
                let Ok((client, _)) = listener.accept().await else { continue };
                connections.spawn(forward(client, nodes.clone(), turn));
                while connections.try_join_next().is_some() {}
            }
        });
        Ok(Self { address, task })
    }
}

async fn forward(mut client: TcpStream, nodes: Arc<Vec<String>>, turn: usize) {
    for node in nodes.iter().cycle().skip(turn % nodes.len().max(1)).take(nodes.len()) {
        if let Ok(mut node) = TcpStream::connect(node).await {
            // Either side may end it.
            let _ = copy_bidirectional(&mut client, &mut node).await;
            return;
        }
    }
}
