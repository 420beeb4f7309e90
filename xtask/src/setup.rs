//! Installs dependencies of the tests that cargo does not provide.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use crate::run::{Failure, Outcome, cargo, is_installed, program, root, step};

/// The folders with packages from npm.
const NPM_FOLDERS: [&str; 3] = ["examples/store/web", "examples/support", "tests/interop"];

/// The version of cargo-deny.
const CARGO_DENY: &str = "0.20.2";

/// The version of mdBook.
const MDBOOK: &str = "0.5.4";

/// A dependency of the tests.
struct Tool {
    name: &'static str,
    is_there: fn() -> bool,
    install: fn() -> Outcome,
}

const TOOLS: [Tool; 8] = [
    Tool { name: "the packages from npm", is_there: has_npm_packages, install: npm_packages },
    Tool {
        name: "the packages from PyPI",
        is_there: has_python_packages,
        install: python_packages,
    },
    Tool { name: "Chromium and its driver", is_there: has_browser, install: browser },
    Tool { name: "netdata", is_there: has_netdata, install: netdata },
    Tool { name: "libfaketime", is_there: has_faketime, install: faketime },
    Tool { name: "servers", is_there: has_servers, install: servers },
    Tool { name: "mdBook", is_there: has_mdbook, install: install_mdbook },
    Tool { name: "cargo-deny", is_there: has_cargo_deny, install: install_cargo_deny },
];

/// Installs missing tools. Nothing else on the machine changes: no service is started, enabled or disabled.
pub(crate) fn all() -> Outcome {
    TOOLS.iter().filter(|tool| !(tool.is_there)()).try_for_each(|tool| (tool.install)())
}

/// Installs missing tools, and says so first.
pub(crate) fn if_needed() -> Outcome {
    let missing = TOOLS.iter().filter(|tool| !(tool.is_there)()).map(|tool| tool.name);
    let missing: Vec<_> = missing.collect();
    if missing.is_empty() {
        return Ok(());
    }
    println!("\nmissing: {}; running `cargo xtask setup`", missing.join(", "));
    all()
}

fn has_npm_packages() -> bool {
    NPM_FOLDERS.iter().all(|folder| is_current(&root().join(folder)))
}

/// The official Phoenix client, and the original StatsD daemon.
fn npm_packages() -> Outcome {
    if !is_installed("node") || !is_installed("npm") {
        return Err(Failure::new(
            "node and npm are needed to test with the official JavaScript client: install Node.js 20 or newer",
        ));
    }
    for folder in NPM_FOLDERS {
        let folder = root().join(folder);
        if is_current(&folder) {
            continue;
        }
        let mut npm = program("npm");
        // No package here needs its install scripts.
        npm.args(["ci", "--no-audit", "--no-fund", "--ignore-scripts"]).current_dir(&folder);
        step(&format!("npm ci in {}", folder.display()), &mut npm)?;
    }
    Ok(())
}

/// Whether npm has installed the versions of the lock file.
fn is_current(folder: &Path) -> bool {
    let modified = |path: PathBuf| fs::metadata(path).and_then(|meta| meta.modified()).ok();
    let installed = modified(folder.join("node_modules/.package-lock.json"));
    installed.is_some() && installed >= modified(folder.join("package-lock.json"))
}

/// The file that names the Python packages, with their hashes.
const REQUIREMENTS: &str = "tests/interop/requirements.txt";

/// The folder of the Python packages.
fn python_folder() -> PathBuf {
    root().join("target/tools/python")
}

/// Whether pip has installed the versions of the list.
fn has_python_packages() -> bool {
    let list = fs::read_to_string(root().join(REQUIREMENTS)).unwrap_or_default();
    let mut named = list.lines().filter_map(|line| line.split_once(" --hash")?.0.split_once("=="));
    named
        .all(|(name, version)| python_folder().join(format!("{name}-{version}.dist-info")).is_dir())
}

/// A WebSocket client in Python. Its test is skipped where there is no Python with pip.
fn python_packages() -> Outcome {
    let has_pip = program("python3").args(["-m", "pip", "--version"]).output();
    if !has_pip.is_ok_and(|run| run.status.success()) {
        println!("\nPython's pip is not installed: the test of a client in Python will be skipped");
        return Ok(());
    }
    let mut pip = program("python3");
    pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--upgrade"]);
    // Wheels without compiled code, which are the same on every platform.
    pip.args(["--no-deps", "--only-binary=:all:", "--platform=any", "--implementation=py"]);
    pip.args(["--abi=none", "--require-hashes", "--requirement", REQUIREMENTS, "--target"]);
    step("pip install", pip.arg(python_folder()))
}

fn has_browser() -> bool {
    is_installed("chromium") && is_installed("chromedriver")
}

/// Chromium and its driver, from the system's packages. They have no service.
fn browser() -> Outcome {
    if !is_installed("apt-get") {
        return Err(Failure::new(
            "chromium and chromedriver are needed to test the page: install them so that they are found in PATH",
        ));
    }
    apt_get_update()?;
    let install =
        ["install", "-y", "-qq", "--no-install-recommends", "chromium", "chromium-driver"];
    step("apt-get install chromium", &mut as_root("apt-get", &install))
}

/// The folder into which netdata is unpacked.
fn netdata_folder() -> PathBuf {
    root().join("target/tools/netdata")
}

fn has_netdata() -> bool {
    // It has no `--version`, and is in a folder that is not always in PATH.
    let runs = |name: &Path| program(name).arg("-v").output().is_ok_and(|run| run.status.success());
    let unpacked = netdata_folder().join("usr/sbin/netdata");
    runs(Path::new("netdata")) || runs(Path::new("/usr/sbin/netdata")) || unpacked.is_file()
}

/// A second StatsD server, from the system's packages. They are unpacked, not installed: on installation,
/// netdata starts and enables a service. Its test is skipped where there is no netdata.
fn netdata() -> Outcome {
    if !is_installed("apt-get") {
        println!("\nnetdata is not installed: its test will be skipped");
        return Ok(());
    }
    apt_get_update()?;
    let mut names = vec!["netdata-core".to_owned()];
    names.extend(libraries("netdata-core")?);
    unpack("netdata", &names, &netdata_folder())
}

/// The folder into which libfaketime is unpacked.
fn faketime_folder() -> PathBuf {
    root().join("target/tools/faketime")
}

fn has_faketime() -> bool {
    let roots = [Path::new("/"), &faketime_folder()].map(|root| fs::read_dir(root.join("usr/lib")));
    let folders = roots.into_iter().flatten().flatten().flatten();
    folders.map(|folder| folder.path()).any(|it| it.join("faketime/libfaketime.so.1").is_file())
}

/// The clock of the tests that set it, from the system's packages. They are skipped where there is none.
fn faketime() -> Outcome {
    if !is_installed("apt-get") {
        println!("\nlibfaketime is not installed: the tests that set the clock will be skipped");
        return Ok(());
    }
    apt_get_update()?;
    unpack("libfaketime", &["libfaketime".to_owned()], &faketime_folder())
}

/// The folder into which servers are unpacked.
fn servers_folder() -> PathBuf {
    root().join("target/tools/servers")
}

/// Programs of the servers of durable sources, of proxies and of Prometheus, each in a folder in which `tests/support` finds it.
const SERVERS: [(&str, &str); 7] = [
    ("redis-server", "usr/bin/redis-server"),
    ("nats-server", "usr/sbin/nats-server"),
    ("postgresql", "usr/lib/postgresql"),
    ("rabbitmq-server", "usr/lib/rabbitmq"),
    ("haproxy", "usr/sbin/haproxy"),
    ("nginx", "usr/sbin/nginx"),
    ("prometheus", "usr/bin/prometheus"),
];

/// The packages of the servers that are not installed.
fn missing_servers() -> impl Iterator<Item = &'static str> {
    let roots = [PathBuf::from("/"), servers_folder()];
    let is_there = move |path: &str| roots.iter().any(|root| root.join(path).exists());
    SERVERS.into_iter().filter(move |(_, path)| !is_there(path)).map(|(package, _)| package)
}

fn has_servers() -> bool {
    missing_servers().next().is_none()
}

/// Servers of durable sources, from the system's packages. They are unpacked, not installed: on
/// installation, they are started and enabled. Tests of the sources of a missing server are skipped.
fn servers() -> Outcome {
    if !is_installed("apt-get") {
        println!("\nservers of durable sources are not installed: their tests will be skipped");
        return Ok(());
    }
    apt_get_update()?;
    let mut names: Vec<_> = missing_servers().map(str::to_owned).collect();
    let mut next = 0;
    while let Some(name) = names.get(next) {
        let needed = depends(name)?.into_iter().filter(|name| is_part_of_a_server(name));
        let new: Vec<_> = needed.filter(|name| !names.contains(name)).collect();
        names.extend(new);
        next += 1;
    }
    unpack("servers", &names, &servers_folder())
}

/// Whether a package that a server depends on is needed to run it.
fn is_part_of_a_server(name: &str) -> bool {
    // PostgreSQL loads LLVM only where it compiles queries, and Prometheus' page of scripts is not looked at.
    let is_needed = !["libllvm", "libjs-"].iter().any(|start| name.starts_with(start))
        && name != "postgresql-common";
    let prefixes = ["lib", "zlib", "erlang-", "postgresql-", "redis-"];
    is_needed && prefixes.iter().any(|prefix| name.starts_with(prefix))
}

/// Downloads packages of the system, and unpacks them into a folder.
fn unpack(tool: &str, packages: &[String], folder: &Path) -> Outcome {
    let downloads = folder.with_extension("packages");
    fs::create_dir_all(&downloads)?;
    let mut download = program("apt-get");
    // As root, it warns that it does not use a user of its own; that is no use here.
    download
        .args(["download", "-qq", "-o", "APT::Sandbox::User=root"])
        .args(packages)
        .current_dir(&downloads);
    step(&format!("download {tool}"), &mut download)?;
    for package in fs::read_dir(&downloads)? {
        let mut unpack = program("dpkg-deb");
        unpack.arg("--extract").arg(package?.path()).arg(folder);
        step(&format!("unpack {tool}"), &mut unpack)?;
    }
    fs::remove_dir_all(downloads)?;
    Ok(())
}

/// The libraries that a package depends on and that are not installed.
fn libraries(package: &str) -> Outcome<Vec<String>> {
    let depends = depends(package)?.into_iter();
    Ok(depends.filter(|name| name.starts_with("lib") || name.starts_with("zlib")).collect())
}

/// The packages that a package depends on and that are not installed.
fn depends(package: &str) -> Outcome<Vec<String>> {
    let depends = program("apt-cache").args(["depends", "--important", package]).output()?;
    let depends = String::from_utf8_lossy(&depends.stdout).into_owned();
    let names = depends.lines().filter_map(|line| line.trim().strip_prefix("Depends: "));
    let is_missing = |name: &&str| {
        let mut query = program("dpkg-query");
        query.args(["--show", name]).stdout(Stdio::null()).stderr(Stdio::null());
        !query.status().is_ok_and(|status| status.success())
    };
    Ok(names.filter(is_missing).map(str::to_owned).collect())
}

fn apt_get_update() -> Outcome {
    step("apt-get update", &mut as_root("apt-get", &["update", "-qq"]))
}

/// Runs a command with sudo, or without it where it is missing: then this is root.
fn as_root(name: &str, arguments: &[&str]) -> Command {
    let sudo = is_installed("sudo").then_some("sudo");
    let words: Vec<&str> =
        sudo.into_iter().chain([name]).chain(arguments.iter().copied()).collect();
    let mut command = program(words[0]);
    command.args(&words[1..]).env("DEBIAN_FRONTEND", "noninteractive");
    command
}

fn has_cargo_deny() -> bool {
    is_installed(cargo_deny())
}

fn install_cargo_deny() -> Outcome {
    install("cargo-deny", CARGO_DENY, &[])
}

fn has_mdbook() -> bool {
    is_installed(mdbook())
}

fn install_mdbook() -> Outcome {
    // Without its server and the search.
    install("mdbook", MDBOOK, &["--no-default-features"])
}

/// Installs a program by cargo, into the project's folder.
fn install(name: &str, version: &str, options: &[&str]) -> Outcome {
    let mut install = cargo();
    // Unoptimised: it is built more often than it runs.
    install.args(["install", "--quiet", "--locked", "--debug", "--version", version]).args(options);
    install.arg("--root").arg(root().join("target/tools")).arg(name);
    step(&format!("install {name}"), &mut install)
}

/// The path of cargo-deny, the checker of licences and sources.
pub(crate) fn cargo_deny() -> PathBuf {
    tool("cargo-deny")
}

/// The path of mdBook, which builds the guide.
pub(crate) fn mdbook() -> PathBuf {
    tool("mdbook")
}

/// The path of a program that cargo installs.
fn tool(name: &str) -> PathBuf {
    if is_installed(name) { name.into() } else { root().join("target/tools/bin").join(name) }
}
