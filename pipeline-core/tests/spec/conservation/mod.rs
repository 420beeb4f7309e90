//! Random pipelines with random disturbances: every lost event is counted.
//!
//! The tested law (decision 8): every emitted event was handled, or is counted in a stage's report
//! as pending, in progress or discarded. Also tested: the order on each subscription, that no
//! consumer is sent more than it asked for, and that no task is left when a pipeline has ended.
//!
//! Most plans are always the same. For others, set `PROPTEST_RNG_SEED`, and for more of them,
//! `PROPTEST_CASES`. A few are new in each run, and a failure names their seed.

mod ledger;
mod plan;
mod run;
mod stages;

use std::{
    env,
    hash::{BuildHasher, Hasher, RandomState},
    time::Duration,
};

use pipeline_core::report::PipelineReport;
use proptest::{
    prelude::*,
    test_runner::{Config, RngSeed, TestCaseResult, TestRunner},
};
use tokio::time;

use self::{
    ledger::Ledger,
    plan::{Plan, calm, wild},
    run::{Run, alone, on_threads},
};

fn config(cases: u32) -> Config {
    let mut config = Config { failure_persistence: None, ..Config::default() };
    if env::var_os("PROPTEST_CASES").is_none() {
        config.cases = cases;
    }
    if matches!(config.rng_seed, RngSeed::Random) {
        config.rng_seed = RngSeed::Fixed(20);
    }
    config
}

/// Checks that lost events are counted: emitted events are handled or counted.
fn balanced(ledger: &Ledger, report: &PipelineReport) -> TestCaseResult {
    let (emitted, handled) = ledger.balance();
    let counted: usize =
        report.stages.iter().map(|stage| stage.unprocessed() + stage.discarded).sum();
    prop_assert_eq!(emitted, handled + counted, "emitted, handled {} and: {}", handled, report);
    Ok(())
}

/// Checks that no rule was violated.
fn in_order(ledger: &Ledger, left: usize) -> TestCaseResult {
    prop_assert_eq!(ledger.complaints(), Vec::<String>::new());
    prop_assert_eq!(left, 0, "tasks are left");
    Ok(())
}

proptest! {
    #![proptest_config(config(200))]

    #[test]
    fn lost_events_are_counted_for_any_plan(plan in wild(), drains in 0u64..200) {
        are_counted(&plan, drains)?;
    }

    #[test]
    fn a_pipeline_that_is_dropped_leaves_nothing(plan in wild()) {
        let mut run = Run::new(&plan);
        let ledger = run.ledger.clone();
        let ((), left) = alone(async {
            let pipeline = run.start();
            run.carry_out_all(&plan.deeds).await;
            drop(pipeline);
            drop(run);
        });
        in_order(&ledger, left)?;
    }

    #[test]
    fn a_drain_loses_nothing_whatever_is_held_back(plan in calm()) {
        let (ledger, report) = undisturbed(&plan, false)?;
        balanced(&ledger, &report)?;
    }

    #[test]
    fn a_pipeline_that_is_let_to_delivers_everything(plan in calm()) {
        let (ledger, report) = undisturbed(&plan, true)?;
        balanced(&ledger, &report)?;
        let total: usize = plan.sources.iter().map(|(.., total)| total).sum();
        let (emitted, _) = ledger.balance();
        prop_assert!(emitted >= total, "{emitted} of {total} were emitted: {report}");
    }
}

proptest! {
    #![proptest_config(config(30))]

    #[test]
    fn lost_events_are_counted_on_any_number_of_threads(
        plan in wild(),
        drains in 0u64..200,
        threads in 1usize..4,
    ) {
        are_counted_on(threads, &plan, drains)?;
    }
}

#[test]
fn lost_events_are_counted_for_plans_that_are_new_in_each_run() {
    of_a_new_seed(50, (wild(), 0..200u64), |(plan, drains)| are_counted(&plan, drains));
    of_a_new_seed(10, (wild(), 0..200u64, 1..4usize), |(plan, drains, threads)| {
        are_counted_on(threads, &plan, drains)
    });
}

/// Tests values of a seed that is drawn, unless one is set.
fn of_a_new_seed<S: Strategy>(cases: u32, of: S, test: impl Fn(S::Value) -> TestCaseResult) {
    let mut config = config(cases);
    let drawn = RandomState::new().build_hasher().finish();
    if env::var_os("PROPTEST_RNG_SEED").is_none() {
        config.rng_seed = RngSeed::Fixed(drawn);
    }
    let seed = config.rng_seed;
    let outcome = TestRunner::new(config).run(&of, test);
    assert!(outcome.is_ok(), "with PROPTEST_RNG_SEED={seed}: {outcome:?}");
}

/// All events of a plan are handled or counted, in order, and no more are sent than were asked for.
fn are_counted(plan: &Plan, drains: u64) -> TestCaseResult {
    let run = Run::new(plan);
    let ledger = run.ledger.clone();
    let (report, left) = alone(disturbed(run, plan, drains));
    in_order(&ledger, left)?;
    balanced(&ledger, &report)?;
    let discarded: usize = report.stages.iter().map(|stage| stage.discarded).sum();
    let (received, asked) = ledger.demand();
    prop_assert!(received <= asked + discarded, "{received} received, {asked} asked for: {report}");
    Ok(())
}

/// All events of a plan are handled or counted, in order, on this number of threads.
fn are_counted_on(threads: usize, plan: &Plan, drains: u64) -> TestCaseResult {
    let run = Run::new(plan);
    let ledger = run.ledger.clone();
    let (report, left) = on_threads(threads, disturbed(run, plan, drains));
    in_order(&ledger, left)?;
    balanced(&ledger, &report)
}

/// Runs a plan with any disturbances, and drains it within `drains` milliseconds.
async fn disturbed(mut run: Run, plan: &Plan, drains: u64) -> PipelineReport {
    let pipeline = run.start();
    run.carry_out_all(&plan.deeds).await;
    let drained = pipeline.drain(Duration::from_millis(drains));
    let (report, ()) = tokio::join!(drained, run.carry_out_all(&plan.late));
    report
}

/// Runs a plan without disturbances, on request until all events are delivered, and drains it.
fn undisturbed(plan: &Plan, to_the_end: bool) -> Result<(Ledger, PipelineReport), TestCaseError> {
    let mut run = Run::new(plan);
    let ledger = run.ledger.clone();
    let (report, left) = alone(async {
        let pipeline = run.start();
        run.carry_out_all(&plan.deeds).await;
        if to_the_end {
            run.lift();
            time::sleep(Duration::from_secs(60)).await;
        }
        let drained = pipeline.drain(Duration::from_secs(3600));
        let (report, ()) = tokio::join!(drained, run.carry_out_all(&plan.late));
        drop(run);
        report
    });
    in_order(&ledger, left)?;
    prop_assert!(report.completed, "{report}");
    prop_assert_eq!(report.unprocessed(), 0, "{}", report);
    prop_assert!(report.failure().is_none(), "{report}");
    Ok((ledger, report))
}
