//! An example program as a process.

use std::{
    env,
    ffi::OsString,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
};

use tokio::{
    io::{AsyncBufRead, AsyncBufReadExt, AsyncWriteExt, BufReader, Lines},
    process::{Child, ChildStderr, ChildStdin, ChildStdout, Command},
    time::timeout,
};

use crate::{
    PATIENCE, WallClock,
    http::{Response, request},
};

/// A running example. Killed on drop.
#[derive(Debug)]
pub struct Example {
    child: Child,
    stdout: Lines<BufReader<ChildStdout>>,
    stdin: Option<ChildStdin>,
    log: Option<Lines<BufReader<ChildStderr>>>,
    /// `HOST:PORT`.
    pub address: String,
}

impl Example {
    /// Starts `push_to_users` with these flags, and waits until it is listening, on a free port by
    /// default.
    pub async fn start(flags: &[&str]) -> Self {
        Self::spawn(Command::new(path("push_to_users").await), flags, "page ").await
    }

    /// The same, with the Phoenix client in another folder, and with another PATH.
    pub async fn start_in(client: &Path, programs: Option<OsString>, flags: &[&str]) -> Self {
        let mut command = Command::new(path("push_to_users").await);
        command.env("PHOENIX_CLIENT", client).env("PATH", programs.unwrap_or_default());
        Self::spawn(command, flags, "page ").await
    }

    /// Starts `push_to_users` with these flags, and keeps its log. The filter must not log more than the
    /// test reads.
    pub async fn logging(filter: &str, flags: &[&str]) -> Self {
        let mut command = Command::new(path("push_to_users").await);
        command.env("RUST_LOG", filter).stderr(Stdio::piped());
        Self::spawn(command, flags, "page ").await
    }

    /// Starts `push_to_users` with these flags as `nohup` does: SIGHUP is ignored from the start.
    pub async fn ignoring_hangup(flags: &[&str]) -> Self {
        let mut command = Command::new("sh");
        command.args(["-c", r#"trap "" HUP; exec "$0" "$@""#]).arg(path("push_to_users").await);
        Self::spawn(command, flags, "page ").await
    }

    /// Starts `push_to_users` with these flags and a limit of open files and connections.
    pub async fn with_files(files: usize, flags: &[&str]) -> Self {
        let mut command = Command::new("sh");
        let limited = format!(r#"ulimit -n {files}; exec "$0" "$@""#);
        command.args(["-c", &limited]).arg(path("push_to_users").await);
        Self::spawn(command, flags, "page ").await
    }

    /// Starts `push_to_users` with these flags and a limit of each file's size, in units of 512 bytes.
    pub async fn with_file_size(blocks: usize, flags: &[&str]) -> Self {
        let mut command = Command::new("sh");
        // A write above the limit fails, instead of ending the program.
        let limited = format!(r#"trap "" XFSZ; ulimit -f {blocks}; exec "$0" "$@""#);
        command.args(["-c", &limited]).arg(path("push_to_users").await);
        Self::spawn(command, flags, "page ").await
    }

    /// Starts `push_to_users` with these flags. It sees a disk of so many MiB in the folder, which is empty at
    /// first and gone at the end. When it has died it is started again. None if the system does not mount one.
    pub async fn on_small_disk(folder: &Path, mib: usize, flags: &[&str]) -> Option<Self> {
        // In namespaces of their own: nothing is left of the disk and of the program.
        let mount = format!(r#"mount -t tmpfs -o size={mib}m tmpfs "$0""#);
        let mounted = |then: &str| {
            let mut command = Command::new("unshare");
            command.args(["--map-root-user", "--mount", "--pid", "--fork", "--kill-child"]);
            command.args(["sh", "-c", &format!("{mount} && {then}")]).arg(folder);
            command
        };
        if !mounted("true").status().await.is_ok_and(|it| it.success()) {
            println!("SKIPPED: the system does not mount a disk for a user");
            return None;
        }
        let mut command = mounted(r#"while :; do "$@"; done"#);
        command.arg(path("push_to_users").await);
        Some(Self::spawn(command, flags, "page ").await)
    }

    /// Kills the program on a small disk, and waits until it is listening again.
    pub async fn die_on_small_disk(&mut self) {
        let child = |of: &str| {
            let children = std::fs::read_to_string(format!("/proc/{of}/task/{of}/children"));
            children.unwrap().split_whitespace().next().unwrap().to_owned()
        };
        let shell = child(&self.child.id().unwrap().to_string());
        let status = Command::new("kill").args(["-9", &child(&shell)]).status().await.unwrap();
        assert!(status.success());
        self.is_listening("page ").await;
    }

    /// Starts `push_to_users` with these flags and a clock of its own.
    pub async fn with_clock(clock: &WallClock, flags: &[&str]) -> Self {
        let mut command = Command::new(path("push_to_users").await);
        clock.give_to(&mut command);
        Self::spawn(command, flags, "page ").await
    }

    /// Starts `channels` with a clock of its own.
    pub async fn channels_with_clock(clock: &WallClock) -> Self {
        let mut command = Command::new(path("channels").await);
        clock.give_to(&mut command);
        command.env("RUST_LOG", "off");
        Self::spawn(command, &[], "sockets ").await
    }

    /// Starts `channels` with these flags, and waits until it is listening.
    pub async fn channels(flags: &[&str]) -> Self {
        let mut command = Command::new(path("channels").await);
        // Its clients request many crashes and refusals, which would fill the output.
        command.env("RUST_LOG", "off").env("RUST_BACKTRACE", "0");
        Self::spawn(command, flags, "sockets ").await
    }

    /// Starts `room` with these flags, and waits until it is listening.
    pub async fn room(flags: &[&str]) -> Self {
        Self::spawn(Command::new(path("room").await), flags, "page ").await
    }

    /// Kills it, as a power cut would, and waits until it is gone.
    pub async fn kill(mut self) {
        self.child.kill().await.unwrap();
    }

    /// The path of an example's program, for tests that start it themselves.
    pub async fn program(example: &str) -> PathBuf {
        path(example).await
    }

    /// Starts the program, and waits for the line with its address.
    async fn spawn(mut command: Command, flags: &[&str], line: &str) -> Self {
        if !flags.contains(&"--port") {
            command.args(["--port", "0"]);
        }
        command.args(flags).kill_on_drop(true);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        #[cfg(unix)]
        reset_hangup();
        let mut child = command.spawn().unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap()).lines();
        let stdin = child.stdin.take();
        let log = child.stderr.take().map(|stderr| BufReader::new(stderr).lines());
        let mut example = Self { child, stdout, stdin, log, address: String::new() };
        example.is_listening(line).await;
        example
    }

    /// Waits for the line with its address.
    async fn is_listening(&mut self, line: &str) {
        let line = self.line_with(line).await;
        let address = line.split("://").nth(1).unwrap().split('/').next().unwrap();
        self.address = address.to_owned();
    }

    /// Runs `push_to_users` with these flags to its end. Returns its output.
    pub async fn run(flags: &[&str]) -> (ExitStatus, String) {
        let mut command = Command::new(path("push_to_users").await);
        let output = timeout(PATIENCE, command.args(flags).output()).await.unwrap().unwrap();
        let text = [output.stdout, output.stderr].concat();
        (output.status, String::from_utf8(text).unwrap())
    }

    /// The next line of output that contains this text.
    pub async fn line_with(&mut self, text: &str) -> String {
        next_with(&mut self.stdout, text).await
    }

    /// The next log line that contains this text, if the log is kept.
    pub async fn logged_with(&mut self, text: &str) -> String {
        next_with(self.log.as_mut().unwrap(), text).await
    }

    /// Writes to the program's standard input.
    pub async fn write(&mut self, text: &str) {
        self.stdin.as_mut().unwrap().write_all(text.as_bytes()).await.unwrap();
    }

    /// Closes the program's standard input.
    pub fn close_stdin(&mut self) {
        self.stdin = None;
    }

    /// Sends a signal, as an operator would.
    pub async fn signal(&self, signal: &str) {
        let id = self.child.id().unwrap().to_string();
        let status = Command::new("kill").args([signal, &id]).status().await.unwrap();
        assert!(status.success());
    }

    /// Waits for the exit. Returns the status, and the output until then.
    pub async fn wait(mut self) -> (ExitStatus, Vec<String>) {
        let reading = async {
            let mut lines = Vec::new();
            while let Some(line) = self.stdout.next_line().await.unwrap() {
                lines.push(line);
            }
            (self.child.wait().await.unwrap(), lines)
        };
        timeout(PATIENCE, reading).await.unwrap()
    }

    /// A token for a user.
    pub async fn token(&self, user: u64) -> String {
        let response = self.request("GET", &format!("/token?user={user}"), "", "").await;
        response.json()["token"].as_str().unwrap().to_owned()
    }

    /// The URL of the socket with a user's token.
    pub async fn socket_url(&self, user: u64) -> String {
        let token = self.token(user).await;
        format!("ws://{}/socket/websocket?vsn=2.0.0&token={token}", self.address)
    }

    /// Posts a push as JSON.
    pub async fn push(&self, body: &str) -> Response {
        self.request("POST", "/push", "application/json", body).await
    }

    /// Sends a request on a separate connection.
    pub async fn request(&self, method: &str, path: &str, kind: &str, body: &str) -> Response {
        self.request_with(method, path, &[("Content-Type", kind)], body).await
    }

    /// The same with these headers.
    pub async fn request_with(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &str,
    ) -> Response {
        request(&self.address, method, path, headers, body).await
    }
}

/// Lets new programs react to SIGHUP, even if the tests were started with it ignored, as by `nohup`. An ignored
/// signal stays ignored in a new program, but a caught one has its default action there.
#[cfg(unix)]
fn reset_hangup() {
    use tokio::signal::unix::{SignalKind, signal};

    // The handler stays when this is dropped.
    drop(signal(SignalKind::hangup()).unwrap());
}

/// The next line that contains this.
async fn next_with(lines: &mut Lines<impl AsyncBufRead + Unpin>, text: &str) -> String {
    let reading = async {
        loop {
            let line = lines.next_line().await.unwrap();
            let line =
                line.unwrap_or_else(|| panic!("the output ended without a line with {text:?}"));
            if line.contains(text) {
                return line;
            }
        }
    };
    timeout(PATIENCE, reading).await.unwrap_or_else(|_| panic!("no line with {text:?}"))
}

/// The examples that tests start.
const EXAMPLES: [&str; 6] = ["channels", "enrich", "load_target", "push_to_users", "room", "top"];

/// The path of an example: next to the folder of the tests. Builds it first, because `cargo test` builds
/// only its tests, unless the environment variable `EXAMPLES_ARE_BUILT` says that it is built. All examples are
/// built together: alone, each would build the libraries once more, with other features.
async fn path(example: &str) -> PathBuf {
    let mut folder = env::current_exe().unwrap();
    folder.pop();
    if folder.ends_with("deps") {
        folder.pop();
    }
    if env::var_os("EXAMPLES_ARE_BUILT").is_some() {
        return folder.join(example);
    }
    let profile = if folder.ends_with("debug") { "dev" } else { "release" };
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(["build", "--quiet", "--profile", profile]).current_dir(env!("CARGO_MANIFEST_DIR"));
    // Cargo sets these for the tests that it runs. Build scripts depend on them, and would run again for each
    // package whose tests come here.
    for (name, _) in env::vars_os() {
        let of_a_package = ["CARGO_PKG_", "CARGO_MANIFEST_"];
        if name
            .to_str()
            .is_some_and(|name| of_a_package.iter().any(|start| name.starts_with(start)))
        {
            cargo.env_remove(name);
        }
    }
    cargo.args(EXAMPLES.iter().flat_map(|name| ["--package", name]));
    let sources = ["sqlite", "redis", "nats", "postgres", "rabbitmq", "kafka"];
    cargo.args(
        sources.iter().flat_map(|name| ["--features".to_owned(), format!("push_to_users/{name}")]),
    );
    cargo.args(["--features", "channels/cluster", "--features", "push_to_users/cluster"]);
    assert!(cargo.status().await.unwrap().success(), "the examples do not build");
    folder.join(example)
}

/// The folder of the project.
#[must_use]
pub fn project() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// The folder with the npm packages that the tests use.
#[must_use]
pub fn interop() -> PathBuf {
    project().join("tests/interop")
}
