//! Whether the open file of a queue is still the one at its path.

use std::{
    fs, io,
    path::{Path, PathBuf, absolute},
};

use rusqlite::Connection;

use super::SqliteError;

/// A path, and which file was there when it was opened.
///
/// What is written to a file that is at no path is lost when it is closed, and SQLite does not notice that.
#[derive(Clone, Debug)]
pub(super) struct Watch(Option<(PathBuf, Identity)>);

/// What tells a file from all others that there are at the same time: its device, and its number there.
type Identity = (u64, u64);

impl Watch {
    /// Watches the file of a connection that was just opened. A database without a file is not watched, and
    /// no file is on a system that does not tell its files apart.
    pub(super) fn of(connection: &Connection, path: &Path) -> Self {
        let name = connection.path().filter(|name| !name.is_empty());
        let Some(name) = name else { return Self(None) };
        // The path as it was given may lead through links that are changed. SQLite's own leads to the file.
        let given = absolute(path).ok().filter(|path| identity(path).is_ok());
        let path = given.unwrap_or_else(|| PathBuf::from(name));
        let identity = identity(&path).ok().flatten();
        Self(identity.map(|identity| (path, identity)))
    }

    /// Fails if the file at the path is another one now, or if there is none. A file that was moved back is
    /// the same again.
    pub(super) fn check(&self) -> Result<(), SqliteError> {
        let Some((path, opened)) = &self.0 else { return Ok(()) };
        let is_there = match identity(path) {
            Ok(found) => found == Some(*opened),
            Err(error) => {
                !matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
            }
        };
        if is_there { Ok(()) } else { Err(SqliteError::Replaced { path: path.clone() }) }
    }
}

#[cfg(unix)]
fn identity(path: &Path) -> io::Result<Option<Identity>> {
    use std::os::unix::fs::MetadataExt;

    let found = fs::metadata(path)?;
    Ok(Some((found.dev(), found.ino())))
}

#[cfg(not(unix))]
fn identity(path: &Path) -> io::Result<Option<Identity>> {
    fs::metadata(path).map(|_| None)
}
