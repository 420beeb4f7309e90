//! Bundles the scripts and styles of `web/` with esbuild, so that the program has them inside.
//!
//! Without npm the program is built all the same, and its pages say what is missing.

use std::{
    env,
    error::Error,
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// What changes the bundles.
const INPUTS: [&str; 7] =
    ["admin", "common", "package-lock.json", "package.json", "react", "shop", "style"];

/// The bundles, by their entry points.
const ENTRIES: [&str; 5] =
    ["shop/shop.js", "admin/admin.js", "react/app.jsx", "style/shop.css", "style/admin.css"];

fn main() -> Result<(), Box<dyn Error>> {
    let web = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?).join("web");
    let out = PathBuf::from(env::var("OUT_DIR")?);
    for input in INPUTS {
        println!("cargo::rerun-if-changed={}", web.join(input).display());
    }
    // It does not exist before npm has installed the packages, so the bundles are tried again until then.
    println!("cargo::rerun-if-changed={}", web.join("node_modules/.package-lock.json").display());
    let bundles = out.join("bundles");
    if bundles.exists() {
        fs::remove_dir_all(&bundles)?;
    }
    let built = match install(&web).and_then(|()| bundle(&web, &bundles)) {
        Ok(()) => true,
        Err(error) => {
            println!("cargo::warning=the store's pages have no scripts and styles: {error}");
            false
        }
    };
    let names = if built { files(&bundles)? } else { Vec::new() };
    fs::write(out.join("assets.rs"), module(&bundles, &names, built)?)?;
    Ok(())
}

/// Installs the packages of the lock file, if they are not there.
fn install(web: &Path) -> Result<(), Box<dyn Error>> {
    let is_current = || {
        let lock = fs::metadata(web.join("package-lock.json")).and_then(|file| file.modified());
        let done = fs::metadata(web.join("node_modules/.package-lock.json"));
        matches!((lock, done.and_then(|file| file.modified())), (Ok(lock), Ok(done)) if lock <= done)
    };
    if is_current() {
        return Ok(());
    }
    let mut npm = Command::new("npm");
    npm.args(["ci", "--no-audit", "--no-fund", "--ignore-scripts"]).current_dir(web);
    run(&mut npm, "npm ci")
}

fn bundle(web: &Path, bundles: &Path) -> Result<(), Box<dyn Error>> {
    let mut esbuild = Command::new(web.join("node_modules/.bin/esbuild"));
    esbuild.args(ENTRIES).current_dir(web).arg(format!("--outdir={}", bundles.display()));
    esbuild.args([
        "--bundle",
        "--minify",
        "--format=esm",
        "--target=es2022,chrome110,firefox115,safari16",
        "--entry-names=[name]-[hash]",
        "--asset-names=[name]-[hash]",
        "--public-path=/assets",
        "--loader:.woff2=file",
        "--jsx=automatic",
        "--define:process.env.NODE_ENV=\"production\"",
        "--legal-comments=inline",
        "--log-level=warning",
    ]);
    run(&mut esbuild, "esbuild")
}

fn run(command: &mut Command, what: &str) -> Result<(), Box<dyn Error>> {
    let output = command.output().map_err(|error| format!("{what} cannot run: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(format!("{what}: {}", said.trim().replace('\n', " ")).into())
}

/// The names of the bundles, in order.
fn files(bundles: &Path) -> Result<Vec<String>, Box<dyn Error>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(bundles)? {
        names.push(entry?.file_name().into_string().map_err(|_| "a bundle's name is no text")?);
    }
    names.sort();
    Ok(names)
}

/// The module with the bundles inside.
fn module(bundles: &Path, names: &[String], built: bool) -> Result<String, Box<dyn Error>> {
    let mut module = String::from("const ASSETS: &[Asset] = &[\n");
    for name in names {
        let content_type = match name.rsplit_once('.').map(|(_, end)| end) {
            Some("js") => "text/javascript; charset=utf-8",
            Some("css") => "text/css; charset=utf-8",
            Some("woff2") => "font/woff2",
            _ => "application/octet-stream",
        };
        let path = bundles.join(name);
        writeln!(
            module,
            "    Asset {{ name: {name:?}, content_type: {content_type:?}, bytes: include_bytes!({path:?}) }},"
        )?;
    }
    module.push_str("];\n\n/// Whether the scripts and styles were built.\n");
    writeln!(module, "pub const SCRIPTS_BUILT: bool = {built};")?;
    Ok(module)
}
