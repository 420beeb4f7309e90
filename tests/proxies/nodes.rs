//! Nodes as processes, behind a load balancer.

use std::{env, time::Duration};

use pipeline_test_support::{
    Example, PATIENCE, get,
    proxies::{Backend, Balancer, Proxy},
    servers::{Kind, Server},
};
use tokio::{
    net::TcpStream,
    time::{sleep, timeout},
};

/// The server between the nodes: that of `BETWEEN`, `redis` or `nats`, or this one where it is not set.
pub fn between(usual: Kind) -> Kind {
    match env::var("BETWEEN").as_deref() {
        Ok("redis") => Kind::Redis,
        Ok("nats") => Kind::Nats,
        Ok(other) => panic!("BETWEEN is `redis` or `nats`, and not {other:?}"),
        Err(env::VarError::NotPresent) => usual,
        Err(error) => panic!("BETWEEN is `redis` or `nats`: {error}"),
    }
}

/// Nodes behind a load balancer.
pub struct Nodes {
    /// The server between them.
    pub server: Server,
    pub proxy: Proxy,
    pub backends: Vec<Backend>,
    pub running: Vec<Option<Example>>,
    /// Where each node finds the server.
    pub urls: Vec<String>,
    /// More flags of the nodes.
    flags: Vec<String>,
}

impl Nodes {
    /// Two nodes. None if a server is not installed.
    pub async fn start(balancer: Balancer, flags: &[&str]) -> Option<Self> {
        Self::start_many(2, balancer, flags).await
    }

    pub async fn start_many(count: usize, balancer: Balancer, flags: &[&str]) -> Option<Self> {
        Self::start_with(between(Kind::Redis), count, balancer, flags).await
    }

    pub async fn start_with(
        kind: Kind,
        count: usize,
        balancer: Balancer,
        flags: &[&str],
    ) -> Option<Self> {
        let backends: Vec<_> = (0..count).map(|_| Backend::free()).collect();
        let proxy = Proxy::start(balancer, &backends).await?;
        Self::behind(proxy, Server::start(kind).await?, backends, flags).await
    }

    /// The nodes have the same server, and find it directly.
    pub async fn behind(
        proxy: Proxy,
        server: Server,
        backends: Vec<Backend>,
        flags: &[&str],
    ) -> Option<Self> {
        let urls = vec![server.url(); backends.len()];
        Self::with_ways(proxy, server, urls, backends, flags).await
    }

    pub async fn with_ways(
        proxy: Proxy,
        server: Server,
        urls: Vec<String>,
        backends: Vec<Backend>,
        flags: &[&str],
    ) -> Option<Self> {
        let running = backends.iter().map(|_| None).collect();
        let mut nodes = Self { server, proxy, backends, running, urls, flags: vec![] };
        nodes.flags.extend(flags.iter().map(|&flag| flag.to_owned()));
        for at in 0..nodes.backends.len() {
            nodes.run(at).await;
        }
        for at in 0..nodes.backends.len() {
            nodes.is_given_clients(at).await;
        }
        Some(nodes)
    }

    /// Starts a node, and waits until it is ready.
    pub async fn run(&mut self, at: usize) {
        let Backend { port, admin_port } = self.backends[at];
        let [port, admin_port] = [port, admin_port].map(|port| port.to_string());
        let (url, name) = (&self.urls[at], format!("node-{at}"));
        let flags =
            ["--port", &port, "--admin-port", &admin_port, "--cluster", url, "--node", &name];
        // HAProxy notices within two seconds that a node is not ready.
        let times = ["--linger", "3", "--close-within", "8"];
        let more: Vec<&str> = self.flags.iter().map(String::as_str).collect();
        self.running[at] = Some(Example::channels(&[&flags[..], &times, &more].concat()).await);
        self.is_ready(at, true).await;
    }

    /// Waits until a node says that it is ready, or that it is not.
    pub async fn is_ready(&self, at: usize, so: bool) {
        let admin = format!("127.0.0.1:{}", self.backends[at].admin_port);
        let status = if so { 200 } else { 503 };
        let says = async || {
            TcpStream::connect(&admin).await.is_ok()
                && get(&admin, "/readyz").await.status == status
        };
        let said = timeout(PATIENCE, async {
            while !says().await {
                sleep(Duration::from_millis(20)).await;
            }
        });
        said.await.unwrap_or_else(|_| panic!("the node does not say {status}"));
    }

    /// Waits until the load balancer sends clients to a node.
    pub async fn is_given_clients(&self, at: usize) {
        let port = self.backends[at].port.to_string();
        let given = timeout(PATIENCE, async {
            while get(&self.proxy.address, "/ctl/port").await.body != port {
                sleep(Duration::from_millis(50)).await;
            }
        });
        let given = given.await;
        assert!(given.is_ok(), "it gives none to node {at}, {port}: {}", self.proxy.log());
    }

    /// The address of a node itself.
    pub fn address(&self, at: usize) -> String {
        format!("127.0.0.1:{}", self.backends[at].port)
    }

    /// How many sockets a node has.
    pub async fn sockets(&self, at: usize) -> usize {
        self.ask(at, "/ctl/sockets").await
    }

    /// How many sockets each node has.
    pub async fn all_sockets(&self) -> Vec<usize> {
        let mut sockets = Vec::new();
        for at in 0..self.backends.len() {
            sockets.push(self.sockets(at).await);
        }
        sockets
    }

    pub async fn ask(&self, at: usize, path: &str) -> usize {
        get(&self.address(at), path).await.body.parse().unwrap()
    }

    /// Stops a node as an operator would, and waits until it has ended.
    pub async fn stop(&mut self, at: usize) {
        let node = self.running[at].take().unwrap();
        node.signal("-TERM").await;
        let (status, said) = node.wait().await;
        assert!(status.success(), "{said:?}");
        let aborted = said.iter().any(|line| line.contains("sockets closed, 0 aborted"));
        assert!(aborted, "{said:?}");
    }
}
