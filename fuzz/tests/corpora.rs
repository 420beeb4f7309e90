//! Every input of the repository passes, and the corpora stay small.

use std::{fs, path::Path, time::Duration};

use pipeline_fuzz::{TARGETS, Target, corpus_folder, inputs, regressions_folder, run, target};

#[test]
fn every_input_of_the_corpora_passes() {
    for target in TARGETS {
        for (name, input) in inputs(&corpus_folder(target.name)).unwrap() {
            println!("{}/{name}", target.name); // shown if it fails
            (target.run)(&input);
        }
    }
}

#[test]
fn every_input_that_once_failed_passes() {
    for target in TARGETS {
        for (name, input) in inputs(&regressions_folder(target.name)).unwrap() {
            println!("{}/{name}", target.name); // shown if it fails
            (target.run)(&input);
        }
    }
}

#[test]
fn every_target_has_a_small_corpus() {
    for target in TARGETS {
        let corpus = inputs(&corpus_folder(target.name)).unwrap();
        let sizes = corpus.values().map(Vec::len);
        let (longest, sum) = (sizes.clone().max().unwrap_or(0), sizes.sum::<usize>());
        assert!(longest > 0, "{} has no corpus", target.name);
        assert!(longest < 4096, "{} has an input of {longest} bytes", target.name);
        assert!(sum < 100 * 1024, "the corpus of {} has {sum} bytes", target.name);
    }
}

#[test]
fn every_folder_belongs_to_a_target() {
    for folder in [corpus_folder(""), regressions_folder("")] {
        for entry in fs::read_dir(&folder).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            assert!(target(&name).is_some(), "there is no target {name}: {}", folder.display());
        }
    }
}

#[test]
fn every_target_is_in_the_documentation() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/fuzzing.md");
    let text = fs::read_to_string(path).unwrap();
    for target in TARGETS {
        let row = format!("| `{}` |", target.name);
        assert!(text.contains(&row), "docs/fuzzing.md has no row {row:?}");
    }
}

/// Fails for inputs with an `x` that is followed by a `y`.
fn dislikes_x_and_y(input: &[u8]) {
    let x = input.iter().position(|byte| *byte == b'x');
    assert!(x.is_none_or(|x| !input[x..].contains(&b'y')), "x and y");
}

const DISLIKING: Target = Target { name: "none", run: dislikes_x_and_y, dictionary: &[b"xx"] };

#[test]
fn a_failing_input_is_found_and_made_small() {
    let corpus = [b"a text without the first letter, by the way".to_vec()];
    let outcome = run(&DISLIKING, &corpus, 7, Duration::from_secs(600));
    assert_eq!(outcome.failure.as_deref(), Some(&b"xy"[..]), "{outcome:?}");
}

#[test]
fn a_seed_repeats_a_run() {
    let corpus = [b"only a y".to_vec()];
    let executions = || run(&DISLIKING, &corpus, 3, Duration::from_secs(600)).executions;
    assert_eq!(executions(), executions());
}
