use pipeline_statsd::{
    BuildError, Dialect, FlushReport, InstallError, StatsdBuilder, StatsdFlusher, StatsdRecorder,
    UdpError,
};

fn shared<T: Send + Sync + 'static>() {}

#[test]
fn public_types_can_be_sent_and_shared() {
    shared::<StatsdRecorder>();
    shared::<StatsdBuilder>();
    shared::<StatsdFlusher>();
    shared::<FlushReport>();
    shared::<Dialect>();
    shared::<UdpError>();
    shared::<BuildError>();
    shared::<InstallError>();
}
