//! Checks of the packages that can be published.

use std::fs;

use crate::run::{Failure, Outcome, cargo, root, step};

/// Their folders.
const FOLDERS: [&str; 7] = [
    "pipeline-core",
    "pipeline-ws-sink",
    "pipeline-statsd",
    "pipeline-inspect",
    "pipeline-sources",
    "pipeline-cluster",
    ".",
];

/// A package that can be published.
struct Package {
    name: String,
    /// Its features other than the default.
    features: Vec<String>,
}

/// Each package builds alone: without features, with each feature, and with all. In the workspace, a package
/// can use what another has turned on.
pub(crate) fn features() -> Outcome {
    for Package { name, features } in published()? {
        let mut choices = vec![("no features".to_owned(), vec!["--no-default-features"])];
        for feature in &features {
            let only = vec!["--no-default-features", "--features", feature];
            choices.push((format!("only {feature}"), only));
        }
        if features.len() > 1 {
            choices.push(("all features".to_owned(), vec!["--all-features"]));
        }
        for (choice, arguments) in choices {
            step(
                &format!("lints of {name} with {choice}"),
                cargo()
                    .args(["clippy", "--quiet", "--lib", "--package", &name])
                    .args(arguments)
                    .args(["--", "--deny", "warnings"]),
            )?;
        }
    }
    Ok(())
}

/// `cargo package` has nothing to warn of, except that the project has no address.
pub(crate) fn contents() -> Outcome {
    println!("\n=== packages");
    let mut package = cargo();
    package.args(["package", "--no-verify", "--no-metadata", "--allow-dirty", "--quiet"]);
    for Package { name, .. } in published()? {
        package.args(["--package", &name]);
    }
    let output = package.output()?;
    let warnings = String::from_utf8_lossy(&output.stderr);
    if output.status.success() && warnings.is_empty() {
        Ok(())
    } else {
        Err(Failure::new(format!("cargo package: {}\n{warnings}", output.status)))
    }
}

fn published() -> Outcome<Vec<Package>> {
    FOLDERS
        .iter()
        .map(|folder| {
            let manifest = fs::read_to_string(root().join(folder).join("Cargo.toml"))?;
            package(&manifest)
                .ok_or_else(|| Failure::new(format!("{folder}/Cargo.toml: has no name")))
        })
        .collect()
}

/// The package of a manifest, in the form in which the project writes them.
fn package(manifest: &str) -> Option<Package> {
    let name = manifest.lines().find_map(|line| line.strip_prefix("name = "))?;
    let features = manifest.split_once("\n[features]\n").map_or("", |(_, rest)| rest);
    let features = features
        .lines()
        .take_while(|line| !line.starts_with('['))
        .filter(|line| line.starts_with(char::is_alphabetic))
        .filter_map(|line| line.split_once(" = "))
        .map(|(feature, _)| feature.to_owned())
        .filter(|feature| feature != "default");
    Some(Package { name: name.trim_matches('"').to_owned(), features: features.collect() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_features_of_a_manifest_are_found() {
        let manifest = "[package]\nname = \"a\"\n\n[features]\ndefault = [\"b\"]\n## Docs.\nb = [\n    \
                        \"dep:x\",\n]\n# A comment.\nc-d = [\"b\"]\n\n[dependencies]\nx = \"1\"\n";
        let package = package(manifest).unwrap();
        assert_eq!(
            (&*package.name, &*package.features),
            ("a", &["b".to_owned(), "c-d".to_owned()][..])
        );
    }
}
