//! Which public types may cross threads. A change here is a breaking one.

mod support;

use pipeline_ws_sink::{
    Channel, Endpoint, Mount, Payload, PubSub, Topic,
    channel::{
        ChannelContext, ChannelHandle, HandleMessage, JoinContext, JoinError, NoReplyExpected,
        PushError, Ref, Reply, SendError, SocketRef, Stop, TooManyTimers,
    },
    endpoint::{
        AnswerBody, BuildError, EndpointBuilder, EndpointObserver, EndpointReport,
        EndpointSnapshot, Latencies, MountSnapshot, PathError, PatternError, PushLegs,
        RouteSnapshot, Shed,
    },
    mount::{CheckOrigin, Drainer, LongPoll, Origin, OriginError, WhenFull},
    payload::PayloadError,
    pubsub::{
        AdapterError, AdapterSnapshot, Broadcast, BroadcastError, Lagged, LocalNode, SubscriberId,
        TopicSubscription,
    },
    socket::{ConnectError, ConnectInfo, MissingParam, Params, ParamsError, PeerAddr},
    token::{KeyDigest, KeyOptions, Signer, SignerError, TokenError},
};

fn send<T: Send>() {}
fn sync<T: Sync>() {}

#[test]
fn public_types_are_send_and_sync() {
    macro_rules! both {
        ($($type:ty),* $(,)?) => {$( send::<$type>(); sync::<$type>(); )*};
    }
    both!(
        AdapterError,
        AdapterSnapshot,
        AnswerBody,
        Broadcast,
        BroadcastError,
        BuildError,
        CheckOrigin,
        ConnectError,
        ConnectInfo,
        Drainer,
        Endpoint,
        EndpointObserver,
        EndpointReport,
        EndpointSnapshot,
        PushLegs,
        JoinError,
        KeyDigest,
        KeyOptions,
        Lagged,
        Latencies,
        LocalNode,
        LongPoll,
        MissingParam,
        MountSnapshot,
        NoReplyExpected,
        Origin,
        OriginError,
        Params,
        ParamsError,
        PathError,
        PatternError,
        Payload,
        PayloadError,
        PeerAddr,
        PubSub,
        PushError,
        Ref,
        Reply,
        RouteSnapshot,
        Shed,
        SendError,
        Signer,
        SignerError,
        SocketRef,
        Stop,
        SubscriberId,
        TopicSubscription,
        TokenError,
        TooManyTimers,
        Topic,
        WhenFull,
    );
}

#[cfg(feature = "jwt")]
#[test]
fn public_types_of_web_tokens_are_send_and_sync() {
    fn both<T: Send + Sync>() {}
    both::<pipeline_ws_sink::token::JwtAlgorithm>();
    both::<pipeline_ws_sink::token::JwtKey>();
    both::<pipeline_ws_sink::token::JwtKeyError>();
    both::<pipeline_ws_sink::token::JwtVerifier>();
}

/// The parts of a channel may cross threads, and so may a mount, for any channel type.
#[test]
fn the_parts_of_a_channel_are_send_and_sync() {
    fn both<C: Channel>() {
        send::<ChannelContext<C>>();
        sync::<ChannelContext<C>>();
        send::<ChannelHandle<C>>();
        sync::<ChannelHandle<C>>();
        send::<JoinContext<'_, C>>();
        send::<Mount<C::Socket>>();
    }
    let _ = both::<Silent>;
}

#[test]
fn a_builder_may_be_sent() {
    send::<EndpointBuilder>();
}

#[test]
fn the_futures_that_callers_await_are_send() {
    fn future<F: Send>(_: &F) {}
    fn sending<C: HandleMessage<()>>(handle: &ChannelHandle<C>) {
        future(&handle.send(()));
    }
    let _ = |endpoint: &Endpoint| future(&endpoint.drain(std::time::Duration::ZERO));
    let _ = |subscription: &mut TopicSubscription| future(&subscription.recv());
    let _ = sending::<Silent>;
}

/// A channel with a trivial message type.
struct Silent;

impl Channel for Silent {
    type Socket = support::channels::NamedSocket;
    type Config = ();

    async fn join(_: &Topic, _: Payload, _: &mut JoinContext<'_, Self>) -> Result<Self, JoinError> {
        Ok(Self)
    }
}

impl HandleMessage<()> for Silent {
    async fn handle_message(&mut self, (): (), _: &ChannelContext<Self>) -> Result<(), Stop> {
        Ok(())
    }
}
