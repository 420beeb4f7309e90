//! The demand of consumers and supervisors: asked for in time, never more than agreed, against a count of
//! each event by itself.

use pipeline_core::{
    fuzzing::{Chunk, DemandWindow, WorkerSlots},
    subscription::SubscribeOptions,
};

use crate::input::Input;

pub(crate) const DICTIONARY: &[&[u8]] = &[];

pub(crate) fn run(data: &[u8]) {
    let mut input = Input::steps(data);
    let max = 1 + input.below(40);
    let min = input.below(max);
    let options = SubscribeOptions::new().max_demand(max).min_demand(min);
    assert!(options.check().is_ok(), "max {max}, min {min}");
    if input.flag() { window(input, &options, max, min) } else { slots(input, &options, max, min) }
}

fn window(mut input: Input<'_>, options: &SubscribeOptions, max: usize, min: usize) {
    let mut window = DemandWindow::new(options);
    // Events that were asked for and have not been handled.
    let mut outstanding = max;
    while !input.is_empty() {
        let events = input.below(100);
        let mut countable = outstanding;
        let mut expected = Vec::new();
        let mut left = events;
        while left > 0 {
            let mut chunk = Chunk { size: 0, excess: 0, ask: 0 };
            while left > 0 && chunk.size < max - min {
                (left, chunk.size) = (left - 1, chunk.size + 1);
                if countable > 0 {
                    (countable, outstanding) = (countable - 1, outstanding - 1);
                } else {
                    chunk.excess += 1;
                }
            }
            if outstanding <= min {
                chunk.ask = max - outstanding;
                outstanding = max;
            }
            expected.push(chunk);
        }
        let shown = format!("max {max}, min {min}: {events} events");
        assert_eq!(window.handle(events), expected, "{shown}");
        assert!(outstanding <= max && outstanding > min, "{shown}: {outstanding} outstanding");
    }
}

fn slots(mut input: Input<'_>, options: &SubscribeOptions, max: usize, min: usize) {
    let mut slots = WorkerSlots::new(options);
    assert_eq!(slots.spare(), min);
    // The demand at the producer, the running workers, and the ones that are done and not asked for again.
    let (mut asked, mut running, mut done) = (max, 0, 0);
    while !input.is_empty() {
        if input.flag() && asked > 0 {
            let started = 1 + input.below(asked);
            (asked, running) = (asked - started, running + started);
        } else if running > 0 {
            (running, done) = (running - 1, done + 1);
            let ask = slots.free();
            assert!(ask == 0 || ask == done, "asked for {ask}, {done} are done");
            assert!(ask > 0 || done < max - min, "{done} are done, and nothing is asked for");
            (asked, done) = (asked + ask, done - ask);
        }
        assert!(asked + running <= max, "{asked} asked for and {running} running, of {max}");
        assert!(asked > 0 || running > 0, "nothing runs, and nothing was asked for");
    }
}
