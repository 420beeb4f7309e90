//! The folders of inputs.

use std::{
    collections::BTreeMap,
    fs,
    hash::{DefaultHasher, Hash, Hasher},
    io,
    path::{Path, PathBuf},
};

fn folder(of: &str, target: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(of).join(target)
}

/// The small set of inputs that mutations begin with.
#[must_use]
pub fn corpus_folder(target: &str) -> PathBuf {
    folder("corpus", target)
}

/// The inputs that once failed.
#[must_use]
pub fn regressions_folder(target: &str) -> PathBuf {
    folder("regressions", target)
}

/// The inputs that failed in a run on this machine.
#[must_use]
pub fn failures_folder(target: &str) -> PathBuf {
    folder("failures", target)
}

/// The files of a folder, by name. A folder that does not exist has none.
///
/// # Errors
///
/// A file cannot be read.
pub fn inputs(folder: &Path) -> io::Result<BTreeMap<String, Vec<u8>>> {
    let mut inputs = BTreeMap::new();
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(inputs),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_file() {
            let name = entry.file_name().to_string_lossy().into_owned();
            inputs.insert(name, fs::read(entry.path())?);
        }
    }
    Ok(inputs)
}

/// Stores an input under a name that depends on its content.
///
/// # Errors
///
/// The file cannot be written.
pub fn store(folder: &Path, input: &[u8]) -> io::Result<PathBuf> {
    let mut hasher = DefaultHasher::new();
    input.hash(&mut hasher);
    let path = folder.join(format!("{:016x}", hasher.finish()));
    fs::create_dir_all(folder)?;
    fs::write(&path, input)?;
    Ok(path)
}
