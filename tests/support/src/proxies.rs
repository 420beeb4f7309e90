//! Load balancers of the system's packages as child processes: `HAProxy` and nginx, with the configuration files
//! of `docs/deploy`.

use std::{
    fs::{self, File},
    path::PathBuf,
};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tokio::{
    net::TcpStream,
    time::{Duration, sleep, timeout},
};

use crate::{
    PATIENCE, project,
    servers::{Group, find, free_port, program, until_stopped},
};

/// Which load balancer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Balancer {
    /// `HAProxy`, which asks `/readyz`.
    Haproxy,
    /// nginx, which learns of a node from its answers.
    Nginx,
}

/// A node behind a load balancer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backend {
    /// The port of its sockets.
    pub port: u16,
    /// The port of `/readyz`.
    pub admin_port: u16,
}

impl Backend {
    /// Two ports that are free now.
    #[must_use]
    pub fn free() -> Self {
        Self { port: free_port(), admin_port: free_port() }
    }
}

/// A load balancer in front of two or three nodes. Killed on drop.
#[derive(Debug)]
pub struct Proxy {
    /// `HOST:PORT`.
    pub address: String,
    running: Group,
    folder: TempDir,
}

impl Proxy {
    /// Starts a load balancer with its configuration file of `docs/deploy`, in which only the addresses are
    /// replaced. It has two nodes, and a third one has a copy of each line of the second. None if it is not
    /// installed.
    ///
    /// # Panics
    ///
    /// If it is missing and `CI` is set, if an address is not in the file, or if it does not start.
    pub async fn start(balancer: Balancer, nodes: &[Backend]) -> Option<Self> {
        Self::with(balancer, nodes, false).await
    }

    /// `HAProxy` that gives clients to the nodes in turns, however many each has.
    ///
    /// # Panics
    ///
    /// As [`start`](Self::start).
    pub async fn start_in_turns(nodes: &[Backend]) -> Option<Self> {
        Self::with_changes(Balancer::Haproxy, nodes, &[("balance leastconn", "balance roundrobin")])
            .await
    }

    /// The same, with the option that keeps each polling client at one node.
    ///
    /// # Panics
    ///
    /// As [`start`](Self::start).
    pub async fn start_sticky(balancer: Balancer, nodes: &[Backend]) -> Option<Self> {
        Self::with(balancer, nodes, true).await
    }

    async fn with(balancer: Balancer, nodes: &[Backend], is_sticky: bool) -> Option<Self> {
        let option = match balancer {
            Balancer::Haproxy => ("# use_backend sticky", "use_backend sticky"),
            Balancer::Nginx => ("# location ~ /longpoll$", "location ~ /longpoll$"),
        };
        let changes: &[_] = if is_sticky { &[option] } else { &[] };
        Self::with_changes(balancer, nodes, changes).await
    }

    async fn with_changes(
        balancer: Balancer,
        nodes: &[Backend],
        changes: &[(&str, &str)],
    ) -> Option<Self> {
        let (name, file) = match balancer {
            Balancer::Haproxy => ("haproxy", "haproxy.cfg"),
            Balancer::Nginx => ("nginx", "nginx.conf"),
        };
        let Some(path) = find(name) else {
            assert!(
                std::env::var_os("CI").is_none(),
                "{name} is missing, and CI is set: `cargo xtask setup` unpacks it"
            );
            println!("SKIPPED: no {name}; on Debian `cargo xtask setup` unpacks it");
            return None;
        };
        let mut text = fs::read_to_string(configuration(file)).unwrap();
        if nodes.len() == 3 {
            let second = text.lines().filter(|line| line.contains("10.0.0.2:"));
            let second: Vec<_> = second.map(str::to_owned).collect();
            for line in second {
                let third = line.replace("10.0.0.2:", "10.0.0.3:").replace("two", "three");
                text = text.replace(&line, &format!("{line}\n{third}"));
            }
        }
        let address = format!("127.0.0.1:{}", free_port());
        let mut replace = |from: &str, to: &str| {
            assert!(text.contains(from), "{file} has no {from:?}");
            text = text.replace(from, to);
        };
        replace("0.0.0.0:80", &address);
        for (from, to) in changes {
            replace(from, to);
        }
        for (at, Backend { port, admin_port }) in (1..).zip(nodes) {
            if balancer == Balancer::Haproxy {
                let from = format!("10.0.0.{at}:4000 port 4001");
                replace(&from, &format!("127.0.0.1:{port} port {admin_port}"));
                // That of the option has no check of its own.
                replace(&format!("10.0.0.{at}:4000"), &format!("127.0.0.1:{port}"));
            } else {
                replace(&format!("10.0.0.{at}:4000"), &format!("127.0.0.1:{port}"));
            }
        }
        let folder = tempfile::Builder::new().prefix(name).tempdir().unwrap();
        let file = folder.path().join(file);
        if balancer == Balancer::Nginx {
            // Its folders are those of the system otherwise.
            let kinds = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"];
            let own = kinds.map(|kind| format!("    {kind}_temp_path {kind};\n")).concat();
            text = text.replacen("http {\n", &format!("http {{\n    access_log off;\n{own}"), 1);
        }
        fs::write(&file, text).unwrap();
        let mut command = program(&path);
        match balancer {
            Balancer::Haproxy => command.arg("-db").arg("-f").arg(&file),
            Balancer::Nginx => {
                command.arg("-p").arg(folder.path()).arg("-c").arg(&file);
                command.args(["-e", "stderr", "-g", "daemon off; pid pid; master_process off;"])
            }
        };
        let log = File::create(folder.path().join("log")).unwrap();
        command.stdout(log.try_clone().unwrap()).stderr(log);
        let mut proxy = Self { address, running: Group::spawn(command), folder };
        let up = timeout(PATIENCE, async {
            while TcpStream::connect(&proxy.address).await.is_err() {
                let ended = proxy.running.child.try_wait().unwrap();
                assert!(ended.is_none(), "{name} has ended: {}", proxy.log());
                sleep(Duration::from_millis(10)).await;
            }
        });
        assert!(up.await.is_ok(), "{name} does not start");
        Some(proxy)
    }

    /// What it has logged.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    /// Stops it from running, without ending it. Returns when no thread of it runs.
    pub fn freeze(&self) {
        let process = Pid::from_child(&self.running.child);
        kill_process(process, Signal::STOP).unwrap();
        until_stopped(process);
    }
}

/// A configuration file for users.
fn configuration(file: &str) -> PathBuf {
    project().join("docs/deploy").join(file)
}
