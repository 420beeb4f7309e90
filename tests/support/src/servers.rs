//! Servers of the system's packages as child processes: Redis, NATS, PostgreSQL and RabbitMQ.
//!
//! A server listens on free ports of 127.0.0.1 and keeps its files in a folder of its own, so a server
//! that already runs on the machine is left alone.

use std::{
    env,
    ffi::OsString,
    fs::{self, File},
    net::TcpListener,
    os::unix::{fs::PermissionsExt, process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use rustix::process::{Pid, Signal, getuid, kill_process, kill_process_group};
use tempfile::TempDir;
use tokio::time::{Duration, sleep, timeout};

use crate::project;

/// How long a server may take to start. RabbitMQ takes ten seconds where nothing else runs.
const START: Duration = Duration::from_secs(120);

/// Which server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Redis, with an append-only file that is synced for each command.
    Redis,
    /// NATS, with JetStream.
    Nats,
    /// PostgreSQL, with a database `test` of a user `test`.
    Postgres,
    /// RabbitMQ, with a user `guest`.
    RabbitMq,
}

impl Kind {
    /// The name of the program.
    const fn program(self) -> &'static str {
        match self {
            Self::Redis => "redis-server",
            Self::Nats => "nats-server",
            Self::Postgres => "postgres",
            Self::RabbitMq => "rabbitmq-server",
        }
    }

    /// What the server writes to its log when it accepts connections.
    const fn ready(self) -> &'static str {
        match self {
            Self::Redis => "Ready to accept connections",
            Self::Nats => "Server is ready",
            Self::Postgres => "database system is ready to accept connections",
            Self::RabbitMq => "Server startup complete",
        }
    }
}

/// A server. Killed on drop.
#[derive(Debug)]
pub struct Server {
    kind: Kind,
    program: PathBuf,
    port: u16,
    /// The ports of RabbitMQ for other nodes and for their names.
    inner_ports: [u16; 2],
    folder: TempDir,
    /// What the configuration file of NATS says.
    config: &'static str,
    running: Option<Group>,
    /// The server of the names of Erlang's nodes. RabbitMQ would start one that outlives it.
    names: Option<Group>,
}

impl Server {
    /// Starts a server, and waits until it accepts connections. None if it is not installed.
    ///
    /// # Panics
    ///
    /// If it is missing and `CI` is set, or if it does not start.
    pub async fn start(kind: Kind) -> Option<Self> {
        Self::start_with(kind, "").await
    }

    /// Starts a server of NATS with this in its configuration file, and waits until it accepts connections. None if it is
    /// not installed.
    ///
    /// # Panics
    ///
    /// If it is missing and `CI` is set, or if it does not start.
    pub async fn start_nats(config: &'static str) -> Option<Self> {
        Self::start_with(Kind::Nats, config).await
    }

    async fn start_with(kind: Kind, config: &'static str) -> Option<Self> {
        let name = kind.program();
        let program = find_or_skip(name)?;
        let folder = tempfile::Builder::new().prefix(name).tempdir().unwrap();
        let inner_ports = [free_port(), free_port()];
        let mut server = Self {
            kind,
            program,
            port: free_port(),
            inner_ports,
            folder,
            config,
            running: None,
            names: None,
        };
        if kind == Kind::Postgres {
            server.create_database();
        }
        server.start_again().await;
        Some(server)
    }

    /// The port on which it listens.
    #[must_use]
    pub const fn port(&self) -> u16 {
        self.port
    }

    /// The id of its process, while it runs.
    #[must_use]
    pub fn process(&self) -> Option<u32> {
        self.running.as_ref().map(|running| running.child.id())
    }

    /// Its address, with the user and the database of the test.
    #[must_use]
    pub fn url(&self) -> String {
        let port = self.port;
        match self.kind {
            Kind::Redis => format!("redis://127.0.0.1:{port}/"),
            Kind::Nats => format!("nats://127.0.0.1:{port}"),
            Kind::Postgres => format!("postgres://test@127.0.0.1:{port}/postgres"),
            Kind::RabbitMq => format!("amqp://guest:guest@127.0.0.1:{port}/%2f"),
        }
    }

    /// Kills it, as a failure of its machine would.
    pub fn kill(&mut self) {
        self.running = None;
    }

    /// Asks it to end, and waits until it has ended.
    pub fn stop(&mut self) {
        if let Some(mut running) = self.running.take() {
            // PostgreSQL waits for its clients to leave when it is sent SIGTERM.
            let is_postgres = self.kind == Kind::Postgres;
            let signal = if is_postgres { Signal::INT } else { Signal::TERM };
            kill_process(Pid::from_child(&running.child), signal).unwrap();
            running.child.wait().unwrap();
        }
    }

    /// Stops it from running, without ending it: its connections stay open. Returns when no thread of it runs.
    pub fn freeze(&self) {
        self.running.as_ref().unwrap().freeze();
    }

    /// Lets it run on.
    pub fn thaw(&self) {
        self.running.as_ref().unwrap().signal(Signal::CONT);
    }

    /// Starts it again on the same port with the same files, and waits until it accepts connections.
    pub async fn start_again(&mut self) {
        assert!(self.running.is_none(), "it runs");
        let path = self.folder.path().join("log");
        let log = File::create(&path).unwrap();
        let mut command = self.command();
        command.stdout(log.try_clone().unwrap()).stderr(log);
        self.running = Some(Group::spawn(command));
        let up = async {
            while !fs::read_to_string(&path).unwrap_or_default().contains(self.kind.ready()) {
                let ended = self.running.as_mut().unwrap().child.try_wait().unwrap();
                assert!(ended.is_none(), "it has ended: {}", fs::read_to_string(&path).unwrap());
                sleep(Duration::from_millis(10)).await;
            }
        };
        let up = timeout(START, up).await;
        assert!(up.is_ok(), "it does not start: {}", fs::read_to_string(&path).unwrap());
    }

    /// Runs `rabbitmqctl` with the server, and returns what it says.
    ///
    /// # Panics
    ///
    /// If it fails.
    #[expect(clippy::must_use_candidate, reason = "most commands are to change something")]
    pub fn rabbitmqctl(&self, arguments: &[&str]) -> String {
        assert_eq!(self.kind, Kind::RabbitMq);
        let ran = self.of_rabbitmq("rabbitmqctl").args(arguments).output().unwrap();
        assert!(ran.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&ran.stderr));
        String::from_utf8_lossy(&ran.stdout).into_owned()
    }

    /// A file or folder of the server.
    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn command(&mut self) -> Command {
        let port = self.port.to_string();
        match self.kind {
            Kind::Redis => {
                let mut command = program(&self.program);
                command.args(["--port", &port, "--bind", "127.0.0.1", "--save", ""]);
                command.args(["--appendonly", "yes", "--appendfsync", "always", "--dir"]);
                command.arg(self.folder.path());
                command
            }
            Kind::Nats => {
                let mut command = program(&self.program);
                command.args(["--port", &port, "--addr", "127.0.0.1", "--jetstream"]);
                command.arg("--store_dir").arg(self.file("store"));
                fs::write(self.file("config"), self.config).unwrap();
                command.arg("--config").arg(self.file("config"));
                command
            }
            Kind::Postgres => {
                let mut command = without_root(&self.program);
                command.args(["-p", &port, "-c", "listen_addresses=127.0.0.1"]);
                command.args(["-c", "unix_socket_directories=", "-D"]).arg(self.file("data"));
                command
            }
            Kind::RabbitMq => self.rabbitmq(),
        }
    }

    /// The first start of PostgreSQL: it makes its files.
    fn create_database(&self) {
        let mut command = without_root(&self.program.with_file_name("initdb"));
        command.args(["--username=test", "--auth=trust", "--no-instructions", "-D"]);
        let made = command.arg(self.file("data")).output().unwrap();
        assert!(made.status.success(), "initdb: {}", String::from_utf8_lossy(&made.stderr));
    }

    fn rabbitmq(&mut self) -> Command {
        let [nodes, names] = self.inner_ports.map(|port| port.to_string());
        let erlang = find("epmd").expect("Erlang is there where RabbitMQ is");
        if self.names.is_none() {
            let mut command = program(&erlang);
            command.args(["-address", "127.0.0.1", "-port", &names]);
            self.names = Some(Group::spawn(command));
        }
        let folder = self.file("bin");
        start_of_erlang(&folder, erlang.ancestors().nth(2).unwrap());
        let mut command = self.of_rabbitmq("rabbitmq-server");
        command.env("RABBITMQ_DIST_PORT", nodes);
        command
    }

    /// A program of RabbitMQ, with the names and the files of this server.
    fn of_rabbitmq(&self, name: &str) -> Command {
        let names = self.inner_ports[1].to_string();
        let mut command = program(&self.program.with_file_name(name));
        // RabbitMQ looks for Erlang in PATH, and Debian's Erlang for its files in /usr only.
        let path = env::var_os("PATH").unwrap_or_default();
        let folders = [self.file("bin")].into_iter().chain(env::split_paths(&path));
        let path = env::join_paths(folders).unwrap();
        command.env("PATH", path).env("ERL_EPMD_PORT", names);
        command.env("HOME", self.folder.path());
        command.env("ERL_EPMD_ADDRESS", "127.0.0.1");
        command.env("RABBITMQ_NODENAME", format!("test{}@localhost", self.port));
        command.env("RABBITMQ_NODE_IP_ADDRESS", "127.0.0.1");
        command.env("RABBITMQ_NODE_PORT", self.port.to_string());
        command.env("RABBITMQ_MNESIA_BASE", self.file("data")).env("RABBITMQ_LOGS", "-");
        command.env("RABBITMQ_LOG_BASE", self.file("logs"));
        command.env("RABBITMQ_ENABLED_PLUGINS_FILE", self.file("plugins"));
        command.env("RABBITMQ_CONFIG_FILE", self.file("config"));
        // The limits of the machine are no matter of the test.
        command.env("RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS", "+S 2:2 +sbwt none");
        command
    }
}

/// A process with the processes that it has started. Killed on drop.
#[derive(Debug)]
pub(crate) struct Group {
    pub(crate) child: Child,
}

impl Group {
    pub(crate) fn spawn(mut command: Command) -> Self {
        Self { child: command.process_group(0).stdin(Stdio::null()).spawn().unwrap() }
    }

    fn signal(&self, signal: Signal) {
        self.signal_all(signal);
    }

    fn freeze(&self) {
        let outside = self.signal_all(Signal::STOP);
        for process in [Pid::from_child(&self.child)].into_iter().chain(outside) {
            until_stopped(process);
        }
    }

    /// Signals all its processes. Returns those that have left the group: each process of PostgreSQL is
    /// the first of a group of its own.
    fn signal_all(&self, signal: Signal) -> Vec<Pid> {
        let id = Pid::from_child(&self.child);
        // They may have ended.
        let _ = kill_process_group(id, signal);
        let outside = children(id);
        for child in &outside {
            let _ = kill_process(*child, signal);
        }
        outside
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // While it is stopped, it starts no others.
        let outside = self.signal_all(Signal::STOP);
        for child in &outside {
            let _ = kill_process(*child, Signal::KILL);
        }
        self.signal(Signal::KILL);
        let _ = self.child.wait();
        // What they share is free when they have ended.
        for _ in 0..1000 {
            if !outside.iter().any(|child| parent(*child).is_some()) {
                break;
            }
            #[expect(clippy::disallowed_methods, reason = "a destructor cannot wait otherwise")]
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// The processes that a process has started, where the system says it.
fn children(id: Pid) -> Vec<Pid> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let ids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    ids.filter_map(Pid::from_raw).filter(|child| parent(*child) == Some(id)).collect()
}

/// The parent of a process that has not ended.
fn parent(id: Pid) -> Option<Pid> {
    let stat = fs::read_to_string(format!("/proc/{}/stat", id.as_raw_nonzero())).ok()?;
    let (state, parent) = state_and_parent(&stat)?;
    let parent = Pid::from_raw(parent.parse().ok()?)?;
    (state != "Z").then_some(parent)
}

/// What the system says in `/proc/*/stat`. The name before it may have any characters.
fn state_and_parent(stat: &str) -> Option<(&str, &str)> {
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    Some((fields.next()?, fields.next()?))
}

/// Waits until no thread of a process that was sent SIGSTOP runs, where the system says it: a thread on another
/// processor stops a little after the signal was sent.
pub(crate) fn until_stopped(process: Pid) {
    let tasks = format!("/proc/{}/task", process.as_raw_nonzero());
    let runs = || {
        let tasks = fs::read_dir(&tasks).into_iter().flatten().flatten();
        let mut states = tasks.filter_map(|task| fs::read_to_string(task.path().join("stat")).ok());
        states.any(|stat| {
            let state = state_and_parent(&stat).map(|(state, _)| state);
            state.is_some_and(|state| !["T", "t", "Z", "X"].contains(&state))
        })
    };
    for _ in 0..5_000 {
        if !runs() {
            return;
        }
        #[expect(clippy::disallowed_methods, reason = "it is over within microseconds")]
        std::thread::sleep(Duration::from_millis(1));
    }
    panic!("process {} does not stop", process.as_raw_nonzero());
}

/// Writes a program `erl` that runs the Erlang of this folder.
fn start_of_erlang(folder: &Path, erlang: &Path) {
    let inside = fs::read_dir(erlang).unwrap().flatten().map(|file| file.path());
    let is_runtime = |path: &PathBuf| path.join("bin/erlexec").is_file();
    let runtime = inside.into_iter().find(is_runtime).unwrap().join("bin");
    let script = format!(
        "#!/bin/sh\nexport ROOTDIR='{}' BINDIR='{}' EMU=beam PROGNAME=erl\nexec \"$BINDIR/erlexec\" \"$@\"\n",
        erlang.display(),
        runtime.display(),
    );
    fs::create_dir_all(folder).unwrap();
    let program = folder.join("erl");
    fs::write(&program, script).unwrap();
    fs::set_permissions(program, fs::Permissions::from_mode(0o755)).unwrap();
}

/// A port that is free now. It is none of those that systems give to connections, from 32,768: one of them could take the port
/// of a server that is restarted.
pub(crate) fn free_port() -> u16 {
    let ports = std::iter::repeat_with(|| fastrand::u16(20_000..32_000));
    let is_free = |port: &u16| TcpListener::bind(("127.0.0.1", *port)).is_ok();
    ports.take(1_000).find(is_free).expect("a port is free")
}

/// The folders in which `cargo xtask setup` unpacks packages, and those in which the system has them.
fn roots() -> [PathBuf; 2] {
    [project().join("target/tools/servers"), "/".into()]
}

/// The path of a program of these servers.
pub(crate) fn find(name: &str) -> Option<PathBuf> {
    let on_path = env::var_os("PATH").unwrap_or_default();
    let folders = roots().into_iter().flat_map(|root| {
        let versions = |parent: &str, inner: &'static str| {
            let folders = fs::read_dir(root.join(parent)).into_iter().flatten().flatten();
            folders.map(move |folder| folder.path().join(inner)).collect::<Vec<_>>()
        };
        let mut folders = versions("usr/lib/postgresql", "bin");
        // The script of RabbitMQ in PATH changes the user.
        folders.extend(versions("usr/lib/rabbitmq/lib", "sbin"));
        folders.extend(["usr/lib/erlang/bin", "usr/bin", "usr/sbin"].map(|it| root.join(it)));
        folders
    });
    let folders = folders.chain(env::split_paths(&on_path));
    folders.map(|folder| folder.join(name)).find(|path| path.is_file())
}

/// The path of a program of these servers. None if it is not installed, which fails if `CI` is set.
fn find_or_skip(name: &str) -> Option<PathBuf> {
    let program = find(name);
    if program.is_none() {
        assert!(
            env::var_os("CI").is_none(),
            "{name} is missing, and CI is set: `cargo xtask setup` unpacks it"
        );
        println!("SKIPPED: no {name}; on Debian `cargo xtask setup` unpacks it");
    }
    program
}

/// A program of the system's packages, to be run with arguments of the test. None if it is not installed.
///
/// # Panics
///
/// If it is missing and `CI` is set.
#[must_use]
pub fn tool(name: &str) -> Option<Command> {
    find_or_skip(name).map(|path| program(&path))
}

/// `127.0.0.1:PORT`, with a port that is free now.
#[must_use]
pub fn free_address() -> String {
    format!("127.0.0.1:{}", free_port())
}

/// A program with the libraries that were unpacked with it.
pub(crate) fn program(path: &Path) -> Command {
    let mut command = Command::new(path);
    command.env("LD_LIBRARY_PATH", libraries());
    command
}

fn libraries() -> OsString {
    let [unpacked, _] = roots();
    let folders = fs::read_dir(unpacked.join("usr/lib")).into_iter().flatten().flatten();
    let own = env::var_os("LD_LIBRARY_PATH").unwrap_or_default();
    let folders = folders.map(|folder| folder.path()).filter(|folder| folder.is_dir());
    let folders: Vec<_> = folders.chain(env::split_paths(&own)).collect();
    env::join_paths(folders).unwrap()
}

/// A program that refuses to run as root. It gets another user in a namespace of its own, in which it may
/// read what this process may read.
fn without_root(path: &Path) -> Command {
    if !getuid().is_root() {
        return program(path);
    }
    let mut command = program(Path::new("unshare"));
    command.args(["--user", "--map-user=1000", "--map-group=1000"]).arg(path);
    command
}
