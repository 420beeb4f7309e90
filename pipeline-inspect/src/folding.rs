//! Many stages that do the same, such as the processors of a pipeline of messages, become one. Pure.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use pipeline_core::snapshot::{Activity, StageSnapshot};

use crate::model::{EdgeView, StageView};

/// How many such stages are shown one by one.
const FEW: usize = 8;

/// Folds stages whose names differ in a number, that are of the same kind, and that have the same producers
/// and consumers. Their counts are added up, and so are those of their subscriptions.
pub(crate) fn fold(
    stages: Vec<StageView>,
    edges: Vec<EdgeView>,
) -> (Vec<StageView>, Vec<EdgeView>) {
    if stages.len() <= FEW {
        return (stages, edges);
    }
    let names = names(&stages, &edges);
    if names.is_empty() {
        return (stages, edges);
    }
    let (mut folded, mut places) = (Vec::<StageView>::new(), HashMap::<&str, usize>::new());
    for mut stage in stages {
        match names.get(stage.name()) {
            None => folded.push(stage),
            Some(name) => match places.get(&**name) {
                Some(place) => add(&mut folded[*place], &stage),
                None => {
                    places.insert(name, folded.len());
                    stage.snapshot.stage = name.as_str().into();
                    folded.push(stage);
                }
            },
        }
    }
    let mut sums: BTreeMap<(String, String), EdgeView> = BTreeMap::new();
    let mut order = Vec::new();
    for mut edge in edges {
        for end in [&mut edge.from, &mut edge.to] {
            if let Some(name) = names.get(&**end) {
                end.clone_from(name);
            }
        }
        let ends = (edge.from.clone(), edge.to.clone());
        match sums.get_mut(&ends) {
            Some(sum) => {
                sum.sent = sum.sent.saturating_add(edge.sent);
                sum.pending_demand = sum.pending_demand.saturating_add(edge.pending_demand);
            }
            None => {
                order.push(ends.clone());
                sums.insert(ends, edge);
            }
        }
    }
    (folded, order.iter().filter_map(|ends| sums.remove(ends)).collect())
}

/// The names of the stages that are folded, each with the name of the one that they become.
fn names(stages: &[StageView], edges: &[EdgeView]) -> HashMap<String, String> {
    type Ends<'a> = HashMap<&'a str, BTreeSet<&'a str>>;
    let (mut producers, mut consumers) = (Ends::new(), Ends::new());
    for edge in edges {
        producers.entry(&edge.to).or_default().insert(&edge.from);
        consumers.entry(&edge.from).or_default().insert(&edge.to);
    }
    let mut groups = BTreeMap::<_, Vec<&str>>::new();
    // What a durable source reports is its own.
    for stage in stages.iter().filter(|stage| stage.snapshot.source.is_none()) {
        if let Some(base) = base(stage.name()) {
            let [before, after] = [&producers, &consumers]
                .map(|ends| ends.get(stage.name()).cloned().unwrap_or_default());
            let key = (base, stage.snapshot.kind.name(), before, after);
            groups.entry(key).or_default().push(stage.name());
        }
    }
    let many = groups.into_iter().filter(|(_, names)| names.len() > FEW);
    many.flat_map(|((base, ..), names)| {
        let folded = format!("{base}_* ({})", names.len());
        names.into_iter().map(|name| (name.to_owned(), folded.clone())).collect::<Vec<_>>()
    })
    .collect()
}

/// The name without its number, if it has one.
fn base(name: &str) -> Option<&str> {
    let (base, number) = name.rsplit_once('_')?;
    let is_number = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
    (is_number && !base.is_empty()).then_some(base)
}

/// Adds the numbers of a stage to those of others.
fn add(sum: &mut StageView, stage: &StageView) {
    sum.stages = sum.stages.saturating_add(stage.stages);
    sum.demand = sum.demand.saturating_add(stage.demand);
    let (sum_of, of) = (&mut sum.snapshot, &stage.snapshot);
    let StageSnapshot {
        activity,
        events_in,
        events_out,
        queued,
        queue_capacity,
        waiting,
        buffered,
        buffer_capacity,
        discarded,
        refused,
        worker_failures,
        given_up,
        restarts,
        failures,
        busy,
        waiting_for_events,
        waiting_for_demand,
        ..
    } = of;
    if rank(*activity) > rank(sum_of.activity) {
        sum_of.activity = *activity;
    }
    for (sum, number) in [
        (&mut sum_of.events_in, events_in),
        (&mut sum_of.events_out, events_out),
        (&mut sum_of.discarded, discarded),
        (&mut sum_of.refused, refused),
        (&mut sum_of.worker_failures, worker_failures),
        (&mut sum_of.given_up, given_up),
        (&mut sum_of.restarts, restarts),
        (&mut sum_of.failures, failures),
    ] {
        *sum = sum.saturating_add(*number);
    }
    for (sum, number) in [
        (&mut sum_of.queued, queued),
        (&mut sum_of.waiting, waiting),
        (&mut sum_of.buffered, buffered),
    ] {
        *sum = sum.saturating_add(*number);
    }
    for (sum, time) in [
        (&mut sum_of.busy, busy),
        (&mut sum_of.waiting_for_events, waiting_for_events),
        (&mut sum_of.waiting_for_demand, waiting_for_demand),
    ] {
        *sum = sum.saturating_add(*time);
    }
    let both = |a: Option<usize>, b: Option<usize>| Some(a?.saturating_add(b?));
    sum_of.queue_capacity = both(sum_of.queue_capacity, *queue_capacity);
    sum_of.buffer_capacity = both(sum_of.buffer_capacity, *buffer_capacity);
    sum_of.workers = both(sum_of.workers, of.workers);
    for (sums, counts) in
        [(&mut sum_of.discarded_by, &of.discarded_by), (&mut sum_of.refused_by, &of.refused_by)]
    {
        for (reason, count) in counts {
            let sum = sums.entry(reason.clone()).or_default();
            *sum = sum.saturating_add(*count);
        }
    }
}

/// Of several activities, the one with the highest rank is shown.
const fn rank(activity: Activity) -> u8 {
    match activity {
        Activity::Busy => 5,
        Activity::WaitingForDemand => 4,
        Activity::WaitingForEvents => 3,
        Activity::Paused => 2,
        Activity::Starting => 1,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use pipeline_core::snapshot::{SourceSnapshot, StageKind};

    use super::*;
    use crate::{
        model::{PipelineView, View},
        rates,
    };

    fn stage(name: &str, kind: StageKind) -> StageView {
        let mut stage = StageView { stages: 1, demand: 2, ..StageView::default() };
        (stage.snapshot.stage, stage.snapshot.kind) = (name.into(), kind);
        stage.snapshot.events_in = 10;
        stage
    }

    fn edge(from: &str, to: &str) -> EdgeView {
        let (from, to) = (from.to_owned(), to.to_owned());
        EdgeView { from, to, sent: 10, pending_demand: 2, ..EdgeView::default() }
    }

    /// A pipeline of messages with a batcher: so many processors, and so many batch processors.
    fn of_messages(processors: usize, batch_processors: usize) -> (Vec<StageView>, Vec<EdgeView>) {
        let mut source = stage("source_0", StageKind::Producer);
        source.snapshot.source = Some(SourceSnapshot::default());
        let (mut stages, mut edges) = (vec![source], Vec::new());
        for n in 0..processors {
            let name = format!("processor_{n}");
            stages.push(stage(&name, StageKind::ProducerConsumer));
            edges.push(edge("source_0", &name));
            edges.push(edge(&name, "batcher_default"));
        }
        stages.push(stage("batcher_default", StageKind::ProducerConsumer));
        for n in 0..batch_processors {
            let name = format!("batch_processor_default_{n}");
            stages.push(stage(&name, StageKind::Consumer));
            edges.push(edge("batcher_default", &name));
        }
        (stages, edges)
    }

    fn name(stage: &StageView) -> &str {
        stage.name()
    }

    #[test]
    fn hundreds_of_processors_are_one_stage() {
        let (stages, edges) = of_messages(200, 2);
        let (folded, edges) = fold(stages, edges);
        let names: Vec<_> = folded.iter().map(name).collect();
        let batch = ["batch_processor_default_0", "batch_processor_default_1"];
        assert_eq!(names, ["source_0", "processor_* (200)", "batcher_default", batch[0], batch[1]]);
        let processors = &folded[1];
        assert_eq!((processors.stages, processors.demand), (200, 400));
        assert_eq!(processors.snapshot.events_in, 2000);
        let seen: Vec<_> = edges.iter().map(|e| (&*e.from, &*e.to, e.sent)).collect();
        assert_eq!(
            seen,
            [
                ("source_0", "processor_* (200)", 2000),
                ("processor_* (200)", "batcher_default", 2000),
                ("batcher_default", batch[0], 10),
                ("batcher_default", batch[1], 10),
            ]
        );
    }

    #[test]
    fn few_stages_a_chain_and_sources_stay_apart() {
        let (stages, edges) = of_messages(8, 8);
        assert_eq!(fold(stages, edges).0.len(), 18);
        let chain: Vec<_> =
            (0..20).map(|n| stage(&format!("step_{n}"), StageKind::ProducerConsumer)).collect();
        let names: Vec<_> = chain.iter().map(|stage| name(stage).to_owned()).collect();
        let edges = names.windows(2).map(|two| edge(&two[0], &two[1])).collect();
        assert_eq!(fold(chain, edges).0.len(), 20);
        let sources = (0..20).map(|n| {
            let mut source = stage(&format!("source_{n}"), StageKind::Producer);
            source.snapshot.source = Some(SourceSnapshot::default());
            source
        });
        assert_eq!(fold(sources.collect(), Vec::new()).0.len(), 20);
    }

    #[test]
    fn shares_are_those_of_the_average_stage() {
        let view = |busy: u64| {
            let stages = (0..20).map(|n| {
                let mut stage = stage(&format!("processor_{n}"), StageKind::Consumer);
                // Half of them are busy.
                stage.snapshot.busy = Duration::from_secs(if n < 10 { busy } else { 0 });
                stage
            });
            let (stages, edges) = fold(stages.collect(), Vec::new());
            let pipeline = PipelineView { stages, edges, ..PipelineView::default() };
            View { pipelines: vec![pipeline], ..View::default() }
        };
        let (before, mut now) = (view(0), view(2));
        rates::fill(&mut now, &before, Duration::from_secs(2));
        let stages = &now.pipelines[0].stages;
        assert_eq!((stages.len(), stages[0].stages), (1, 20));
        assert!((stages[0].busy - 0.5).abs() < 1e-9, "{}", stages[0].busy);
    }
}
