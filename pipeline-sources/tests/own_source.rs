//! The source of one's own that the guide builds.
#![cfg(feature = "test-kit")]
#![allow(clippy::unwrap_used, reason = "helpers of tests are tests too")]

use std::{fs, time::Duration};

use pipeline_sources::{
    Fetch, Item,
    contract::{Subject, check},
};
use tempfile::TempDir;

#[expect(dead_code, reason = "it is a program of its own")]
#[path = "../examples/folder.rs"]
mod folder;

use self::folder::Folder;

/// A folder, which is removed at the end.
struct InFolder(Folder, TempDir);

impl Subject for InFolder {
    type Broker = Folder;

    fn broker(&self) -> Folder {
        self.0.clone()
    }

    async fn push(&self, item: Item) {
        self.0.push(&item).unwrap();
    }

    async fn dead_letters(&self) -> Vec<String> {
        self.0.dead_letters().unwrap()
    }

    async fn push_malformed(&self) -> bool {
        fs::write(self.1.path().join("items/1,0,0,0,none"), "no JSON\n").unwrap();
        true
    }

    async fn fill_graves(&self) -> bool {
        // A file cannot have folders in it.
        fs::remove_dir(self.1.path().join("dead")).unwrap();
        fs::write(self.1.path().join("dead"), "").unwrap();
        true
    }

    async fn empty_graves(&self) {
        fs::remove_file(self.1.path().join("dead")).unwrap();
        fs::create_dir(self.1.path().join("dead")).unwrap();
    }
}

fn in_folder() -> InFolder {
    let folder = tempfile::tempdir().unwrap();
    let opened = Folder::open(folder.path().to_owned(), Duration::from_millis(800)).unwrap();
    InFolder(opened, folder)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_folder_of_the_guide_keeps_the_contract() {
    check(async || in_folder()).await;
}

#[tokio::test]
async fn a_file_that_is_no_item_says_why() {
    let InFolder(mut folder, files) = in_folder();
    fs::write(files.path().join("items/1,0,0,0,none"), "no JSON\n").unwrap();
    fs::write(files.path().join("items/a file of another program"), "").unwrap();
    let fetched = folder.fetch(10).await.unwrap();
    assert_eq!(fetched.len(), 1);
    let why = fetched[0].malformed.as_deref().unwrap();
    assert!(why.starts_with("the first line is not JSON: "), "{why}");
}
