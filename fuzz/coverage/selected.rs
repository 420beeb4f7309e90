//! The target that the environment variable `FUZZ_TARGET` names, for libFuzzer. One program for all targets is
//! built once.

#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use pipeline_fuzz::{Target, target};

static SELECTED: LazyLock<&Target> = LazyLock::new(|| {
    let name = std::env::var("FUZZ_TARGET").expect("FUZZ_TARGET names a target");
    target(&name).expect("FUZZ_TARGET names a target")
});

fuzz_target!(|data: &[u8]| (SELECTED.run)(data));
