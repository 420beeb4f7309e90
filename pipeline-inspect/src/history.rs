//! The samples of the last minutes, as far as they are needed. Pure.

use std::{collections::VecDeque, mem, time::Duration};

use pipeline_core::telemetry::milliseconds;
use pipeline_ws_sink::endpoint::{Latencies, PushLegs};

use crate::{
    bottleneck,
    model::{DeliveredView, LegView, PercentilesView, View},
    rates,
};

/// The window of rates and shares. The sampler's timer is not exact.
const WINDOW: Duration = Duration::from_millis(3_300);

/// The windows of percentiles, in seconds.
const WINDOWS: [u64; 3] = [10, 60, 300];

/// The length of one point of the history in seconds.
const POINT: u64 = 5;

/// The window of the parts of a push's time, in seconds. It is at most a point longer.
const LEGS: u64 = 60;

/// The number of points.
const POINTS: usize = 60;

/// Samples with their time since the start. Bounded in memory.
#[derive(Debug, Default)]
pub(crate) struct History {
    /// Views of the window, the oldest first.
    views: VecDeque<(Duration, View)>,
    /// Every sample of the last seconds.
    recent: VecDeque<(Duration, Latencies)>,
    /// One sample for every point, and the one before the first.
    coarse: VecDeque<(Duration, Latencies)>,
    points: VecDeque<PercentilesView>,
    /// One sample of the parts of a push's time for every point.
    legs: VecDeque<(Duration, PushLegs)>,
}

impl History {
    /// Adds a view, and fills in its rates, shares and percentiles from earlier ones.
    pub(crate) fn add(&mut self, at: Duration, mut view: View) -> View {
        if let Some(endpoint) = &mut view.endpoint {
            let delivered = mem::take(&mut endpoint.snapshot.delivered);
            endpoint.delivered = self.delivered(at, delivered);
            endpoint.delivered.legs = self.legs(at, mem::take(&mut endpoint.snapshot.legs));
        }
        view.uptime_seconds = at.as_secs_f64();
        while self.views.front().is_some_and(|(then, _)| at.saturating_sub(*then) > WINDOW) {
            self.views.pop_front();
        }
        self.views.push_back((at, view.clone()));
        if let Some((then, before)) = self.views.front() {
            rates::fill(&mut view, before, at.saturating_sub(*then));
            for (pipeline, before) in view.pipelines.iter_mut().zip(&before.pipelines) {
                pipeline.bottleneck = bottleneck::bottleneck(pipeline, before);
            }
        }
        view
    }

    fn delivered(&mut self, at: Duration, now: Latencies) -> DeliveredView {
        match self.coarse.back() {
            Some(last) if is_due(last.0, at) => {
                self.points.push_back(percentiles(POINT, &now.since(&last.1)));
                self.coarse.push_back((at, now.clone()));
            }
            Some(_) => {}
            None => self.coarse.push_back((at, now.clone())),
        }
        if self.points.len() > POINTS {
            self.points.pop_front();
        }
        if self.coarse.len() > POINTS + 1 {
            self.coarse.pop_front();
        }
        let old = Duration::from_secs(WINDOWS[0] + 2);
        while self.recent.front().is_some_and(|(then, _)| at.saturating_sub(*then) > old) {
            self.recent.pop_front();
        }
        let window = |seconds| {
            let before = self.before(at.saturating_sub(Duration::from_secs(seconds)));
            percentiles(seconds, &before.map_or_else(Latencies::default, |was| now.since(was)))
        };
        let windows = WINDOWS.map(window).into();
        let history = self.points.iter().cloned().collect();
        let count = now.count();
        self.recent.push_back((at, now));
        DeliveredView { count, windows, history, legs: Vec::new() }
    }

    /// The parts of a push's time in the last minute.
    fn legs(&mut self, at: Duration, now: PushLegs) -> Vec<LegView> {
        let window = Duration::from_secs(LEGS + POINT);
        while self.legs.front().is_some_and(|(then, _)| at.saturating_sub(*then) > window) {
            self.legs.pop_front();
        }
        if self.legs.is_empty() {
            self.legs.push_back((at, now.clone()));
        }
        let before = &self.legs[0].1;
        let leg = |leg: &str, normal_ms, now: &Latencies, before| {
            let percentiles = percentiles(LEGS, &now.since(before));
            LegView { leg: leg.to_owned(), normal_ms, percentiles }
        };
        let views = vec![
            leg("queued", Some(1.0), &now.queued, &before.queued),
            leg("waited", Some(1.0), &now.waited, &before.waited),
            leg("worked", None, &now.worked, &before.worked),
            leg("written", Some(5.0), &now.written, &before.written),
        ];
        if self.legs.back().is_some_and(|(then, _)| is_due(*then, at)) {
            self.legs.push_back((at, now));
        }
        views
    }

    /// The newest sample that is at least this old, or the oldest one.
    fn before(&self, moment: Duration) -> Option<&Latencies> {
        let newest = |samples: &VecDeque<(Duration, Latencies)>| {
            samples.partition_point(|(then, _)| *then <= moment).checked_sub(1)
        };
        if let Some(at) = newest(&self.recent) {
            return Some(&self.recent[at].1);
        }
        let at = newest(&self.coarse).unwrap_or(0);
        self.coarse.get(at).map(|(_, sample)| sample)
    }
}

/// Whether a sample is in another point than the one before.
fn is_due(then: Duration, at: Duration) -> bool {
    then.as_secs() / POINT != at.as_secs() / POINT
}

fn percentiles(seconds: u64, of: &Latencies) -> PercentilesView {
    let part = |part| of.quantile(part).map(milliseconds);
    PercentilesView {
        seconds,
        count: of.count(),
        p50: part(0.5),
        p90: part(0.9),
        p99: part(0.99),
        max: of.max().map(milliseconds),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{EndpointView, PipelineView, StageView};

    fn view(events_in: u64) -> View {
        let mut stage = StageView::default();
        (stage.snapshot.stage, stage.snapshot.events_in) = ("work".into(), events_in);
        let pipeline = PipelineView { stages: vec![stage], ..PipelineView::default() };
        View { pipelines: vec![pipeline], ..View::default() }
    }

    fn deliveries(all: &Latencies) -> View {
        let mut endpoint = EndpointView::default();
        endpoint.snapshot.delivered = all.clone();
        View { endpoint: Some(endpoint), ..View::default() }
    }

    fn per_second(view: &View) -> f64 {
        view.pipelines[0].stages[0].in_per_second
    }

    /// Samples once a second, with this many more deliveries of this many milliseconds each time.
    fn deliver(history: &mut History, seconds: std::ops::Range<u64>, all: &mut Latencies, ms: u64) {
        for second in seconds {
            all.extend([Duration::from_millis(ms); 10]);
            history.add(Duration::from_secs(second), deliveries(all));
        }
    }

    #[test]
    fn rates_are_those_of_the_last_three_seconds() {
        let mut history = History::default();
        let at = Duration::from_secs;
        assert_eq!(per_second(&history.add(at(0), view(0))), 0.0);
        assert_eq!(per_second(&history.add(at(1), view(100))), 100.0);
        assert_eq!(per_second(&history.add(at(2), view(100))), 50.0);
        let third = history.add(at(3), view(300));
        assert_eq!((per_second(&third), third.window_seconds), (100.0, 3.0));
        // The first second is out of the window.
        assert_eq!(per_second(&history.add(at(4), view(400))), 100.0);
        assert_eq!(per_second(&history.add(at(60), view(400))), 0.0);
    }

    #[test]
    fn percentiles_are_those_of_their_window() {
        let (mut history, mut all) = (History::default(), Latencies::default());
        history.add(Duration::ZERO, deliveries(&all));
        deliver(&mut history, 1..100, &mut all, 10);
        deliver(&mut history, 100..105, &mut all, 1000);
        let seen = history.add(Duration::from_secs(105), deliveries(&all));
        let delivered = seen.endpoint.unwrap().delivered;
        let counts: Vec<u64> = delivered.windows.iter().map(|window| window.count).collect();
        assert_eq!((delivered.count, counts), (1040, vec![90, 590, 1040]));
        let near = |value: Option<f64>, expected: f64| {
            let value = value.unwrap();
            assert!((value - expected).abs() < expected / 20.0, "{value}, expected {expected}");
        };
        let [short, long, whole] = &delivered.windows[..] else { panic!("three windows") };
        near(short.p50, 1000.0);
        near(long.p50, 10.0);
        near(long.p99, 1000.0);
        near(whole.p90, 10.0);
        near(whole.max, 1000.0);
    }

    #[test]
    fn a_point_of_the_history_is_five_seconds() {
        let (mut history, mut all) = (History::default(), Latencies::default());
        history.add(Duration::ZERO, deliveries(&all));
        deliver(&mut history, 1..21, &mut all, 10);
        let seen = history.add(Duration::from_secs(21), deliveries(&all));
        let counts: Vec<u64> =
            seen.endpoint.unwrap().delivered.history.iter().map(|point| point.count).collect();
        assert_eq!(counts, [50, 50, 50, 50]);
    }

    #[test]
    fn its_size_is_the_same_after_an_hour_as_after_five_minutes() {
        let (mut history, mut all) = (History::default(), Latencies::default());
        deliver(&mut history, 0..400, &mut all, 10);
        let size = |history: &History| {
            let History { views, recent, coarse, points, legs } = history;
            (views.len(), recent.len(), coarse.len(), points.len(), legs.len())
        };
        let after = size(&history);
        deliver(&mut history, 400..4000, &mut all, 10);
        assert_eq!(size(&history), after);
        assert_eq!(after.3, POINTS);
    }

    #[test]
    fn the_parts_of_a_push_are_those_of_the_last_minute() {
        let mut history = History::default();
        let mut legs = PushLegs::default();
        let mut shown = Vec::new();
        // Slow workers for a minute, then a slow network.
        for second in 0..200 {
            let mut view = View::default();
            let mut endpoint = EndpointView::default();
            let worked = if second < 60 { 300 } else { 1 };
            legs.worked.extend([Duration::from_millis(worked)]);
            legs.written.extend([Duration::from_millis(301 - worked); 2]);
            endpoint.snapshot.legs = legs.clone();
            view.endpoint = Some(endpoint);
            shown.push(history.add(Duration::from_secs(second), view));
        }
        let legs = |second: usize| &shown[second].endpoint.as_ref().unwrap().delivered.legs;
        let names: Vec<&str> = legs(0).iter().map(|leg| &*leg.leg).collect();
        assert_eq!(names, ["queued", "waited", "worked", "written"]);
        assert_eq!(legs(0)[2].percentiles.count, 0, "only what comes after the start counts");
        let near = |shown: Option<f64>, ms: f64| (shown.unwrap() - ms).abs() < ms / 16.0;
        assert!(near(legs(59)[2].percentiles.p50, 300.0), "{:?}", legs(59));
        assert!(near(legs(59)[3].percentiles.p50, 1.0), "{:?}", legs(59));
        assert!(near(legs(199)[2].percentiles.p99, 1.0), "{:?}", legs(199));
        assert!(near(legs(199)[3].percentiles.p99, 300.0), "{:?}", legs(199));
        let counts = [2, 3].map(|leg: usize| legs(199)[leg].percentiles.count);
        assert!((60..=65).contains(&counts[0]) && counts[1] == 2 * counts[0], "{counts:?}");
        assert!(legs(199)[0].percentiles.p50.is_none());
        assert!(history.legs.len() < 15, "{}", history.legs.len());
    }

    #[test]
    fn without_a_delivery_there_are_no_percentiles() {
        let seen = History::default().add(Duration::ZERO, deliveries(&Latencies::default()));
        let delivered = seen.endpoint.unwrap().delivered;
        assert_eq!(delivered.windows.len(), 3);
        assert!(delivered.windows.iter().all(|window| window.count == 0 && window.p50.is_none()));
    }
}
