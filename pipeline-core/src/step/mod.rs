//! Ready-made stages that receive: functions, batches and sinks.

mod batch;
mod for_each;
mod map;
mod map_async;
mod sink;

pub use self::{
    batch::{Batch, batch},
    for_each::{ForEach, ForEachBatch, Outcome, for_each, for_each_batch},
    map::{Filter, FlatMap, Map, filter, flat_map, map},
    map_async::{MapAsync, map_async},
    sink::{IntoSink, into_sink},
};
