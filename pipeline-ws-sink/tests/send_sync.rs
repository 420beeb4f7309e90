//! Which public types may cross threads. A change here is a breaking one.

use pipeline_ws_sink::{
    BuildError, CheckOrigin, ConnectError, ConnectInfo, Drainer, Endpoint, EndpointBuilder,
    EndpointReport, JoinError, MissingParam, Origin, OriginError, Params, ParamsError, PathError,
    PatternError, Payload, PayloadError, PeerAddr, Reply, Signer, SignerError, Stop, TokenError,
    Topic, WhenFull,
};

fn send<T: Send>() {}
fn sync<T: Sync>() {}

#[test]
fn public_types_are_send_and_sync() {
    macro_rules! both {
        ($($type:ty),* $(,)?) => {$( send::<$type>(); sync::<$type>(); )*};
    }
    both!(
        BuildError,
        CheckOrigin,
        ConnectError,
        ConnectInfo,
        Drainer,
        Endpoint,
        EndpointReport,
        JoinError,
        MissingParam,
        Origin,
        OriginError,
        Params,
        ParamsError,
        PathError,
        PatternError,
        Payload,
        PayloadError,
        PeerAddr,
        Reply,
        Signer,
        SignerError,
        Stop,
        TokenError,
        Topic,
        WhenFull,
    );
}

#[test]
fn a_builder_may_be_sent() {
    send::<EndpointBuilder>();
}

#[test]
fn the_futures_that_callers_await_are_send() {
    fn future<F: Send>(_: &F) {}
    let _ = |endpoint: &Endpoint| future(&endpoint.drain(std::time::Duration::ZERO));
}
