//! What is logged of a failing sink; alone in its file because a subscriber sees every test.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use metrics::{gauge, with_local_recorder};
use parking_lot::Mutex;
use pipeline_statsd::StatsdRecorder;
use pipeline_statsd::cadence::MetricSink;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Subscriber};

struct Switch {
    broken: Arc<AtomicBool>,
}

impl MetricSink for Switch {
    fn emit(&self, metric: &str) -> io::Result<usize> {
        if self.broken.load(Ordering::Relaxed) {
            return Err(io::Error::from(io::ErrorKind::ConnectionRefused));
        }
        Ok(metric.len())
    }
}

/// Keeps each event as its level and its fields.
#[derive(Clone, Default)]
struct Log {
    events: Arc<Mutex<Vec<String>>>,
}

impl Subscriber for Log {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        struct Fields(Vec<String>);
        impl Visit for Fields {
            fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
                self.0.push(format!("{}={value:?}", field.name()));
            }
        }
        let mut fields = Fields(vec![event.metadata().level().to_string()]);
        event.record(&mut fields);
        fields.0[1..].sort();
        self.events.lock().push(fields.0.join(" "));
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

#[test]
fn a_failing_sink_is_logged_when_it_begins_and_when_it_ends() {
    let broken = Arc::new(AtomicBool::new(false));
    let log = Log::default();
    let (recorder, flusher) = StatsdRecorder::sink(Switch { broken: Arc::clone(&broken) })
        .flush_every(Duration::MAX)
        .build()
        .unwrap();
    with_local_recorder(&recorder, || gauge!("g").set(1));

    tracing::subscriber::with_default(log.clone(), || {
        flusher.flush();
        assert!(log.events.lock().is_empty());

        broken.store(true, Ordering::Relaxed);
        for _ in 0..5 {
            flusher.flush();
        }
        broken.store(false, Ordering::Relaxed);
        for _ in 0..5 {
            flusher.flush();
        }
    });

    assert_eq!(
        *log.events.lock(),
        [
            "WARN error=connection refused errors=1 lines=0 message=statsd sink is failing",
            "INFO failed_flushes=5 message=statsd sink has recovered",
        ]
    );
}
