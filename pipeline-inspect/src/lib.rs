//! A live view of running pipelines and their sockets.
//!
//! An [`Inspector`] is mounted at a path next to the endpoint. Once a second it takes a snapshot of the
//! pipelines and the endpoint, without stopping any of them, and publishes it:
//!
//! | path | what |
//! | --- | --- |
//! | `/inspect/` | a page with a drawing of the stages, their bottlenecks, delivery times, sockets, topics and drops |
//! | `/inspect/data.json` | the same for scripts: a [`View`] |
//! | `/inspect/socket/websocket` | the same once a second, as the event `view` of the topic `inspect`, for any client of Phoenix Channels |
//!
//! ```
//! use axum::Router;
//! use pipeline_core::{
//!     Pipeline,
//!     source::{QueueOptions, queue},
//!     step::for_each,
//!     subscription::SubscribeOptions,
//! };
//! use pipeline_inspect::Inspector;
//! use pipeline_ws_sink::Endpoint;
//! use tokio::{
//!     io::{AsyncReadExt, AsyncWriteExt},
//!     net::TcpStream,
//! };
//!
//! #[tokio::main]
//! async fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     let (_numbers, producer) = queue::<u64>(QueueOptions::new());
//!     let pipeline = Pipeline::builder("numbers")
//!         .producer(producer)
//!         .consumer(for_each(async |number| println!("{number}")), SubscribeOptions::new())
//!         .start()?;
//!     let endpoint = Endpoint::builder().build()?;
//!
//!     let inspector =
//!         Inspector::builder().pipeline(pipeline.observer()).endpoint(endpoint.observer()).build()?;
//!     let app: Router =
//!         Router::new().nest_service("/inspect", inspector).fallback_service(endpoint.clone());
//!     let listener = pipeline_ws_sink::listen("127.0.0.1:0").await?;
//!     let address = listener.local_addr()?;
//!     tokio::spawn(async { axum::serve(listener, app).await });
//!
//!     // A script asks for the data; a browser would open `/inspect/`.
//!     let mut script = TcpStream::connect(address).await?;
//!     let request = format!("GET /inspect/data.json HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n");
//!     script.write_all(request.as_bytes()).await?;
//!     let mut answer = String::new();
//!     script.read_to_string(&mut answer).await?;
//!     assert!(answer.contains(r#""name":"numbers""#), "{answer}");
//!     Ok(())
//! }
//! ```
//!
//! # What is there
//!
//! All types are at the root of the crate.
//!
//! | type | what it is |
//! | --- | --- |
//! | [`Inspector`], [`InspectorBuilder`] | the service, and what it shows and to whom |
//! | [`View`] | all of `data.json`; [`VERSION`] is the version of its form |
//! | [`PipelineView`], [`StageView`], [`EdgeView`] | a pipeline, its stages, and the demand between two of them |
//! | [`EndpointView`], [`MountView`], [`ChannelView`] | sockets, topics and drops, by mount and by channel |
//! | [`DeliveredView`], [`LegView`], [`PercentilesView`] | the times of pushes: in all, by part of the way, and over the last minutes |
//! | [`NodeView`], [`BetweenView`] | the other nodes of a cluster, and the broadcasts between them |
//!
//! With [`InspectorBuilder::operator`], `/inspect/lookup` looks up the sockets of a user and ends them or
//! their channels; with [`InspectorBuilder::pipeline_operator`], it kills stages. Both are off by default.
//!
//! # Access control
//!
//! The inspector has no password. Without these options, it shows the names of stages, mounts and patterns,
//! and never a user, a topic or a payload; still it should not be public. Protect it like your other
//! internal pages: the sockets of the page pass through the same layers.
//!
//! It answers requests for `localhost` and for addresses. Requests for other names are refused with 403,
//! unless the name was added with [`InspectorBuilder::host`]: otherwise any page on the web could read
//! the data through a host name that resolves to your address (DNS rebinding). Behind a proxy, add the
//! name in the browser's address bar. 50 viewers may connect at the same time, unless
//! [`InspectorBuilder::max_viewers`] is set.
//!
//! ```no_run
//! use axum::{
//!     Router,
//!     extract::Request,
//!     http::{StatusCode, header::AUTHORIZATION},
//!     middleware::{self, Next},
//!     response::{IntoResponse, Response},
//! };
//! use pipeline_inspect::Inspector;
//!
//! /// Requires the user `ops` and the password `secret`.
//! async fn ask(request: Request, next: Next) -> Response {
//!     let expected = "Basic b3BzOnNlY3JldA==";
//!     if request.headers().get(AUTHORIZATION).is_some_and(|given| given == expected) {
//!         return next.run(request).await;
//!     }
//!     (StatusCode::UNAUTHORIZED, [("www-authenticate", "Basic")]).into_response()
//! }
//!
//! fn protected(inspector: Inspector) -> Router {
//!     Router::new().nest_service("/inspect", inspector).layer(middleware::from_fn(ask))
//! }
//! ```
//!
//! # The bottleneck
//!
//! Every stage is busy, waits for events, or waits for demand; the view contains the share of each in
//! the last three seconds. A stage is *occupied* if it was busy for 80 % of them. At most one stage is
//! named as the bottleneck of its pipeline:
//!
//! 1. The occupied stage farthest downstream that is waited for. A stage is waited for if one of its
//!    producers waited for demand for 20 % of the time, or had events buffered both at the beginning and
//!    at the end.
//! 2. If no occupied stage is waited for, the first one from the source that cannot do more: a producer,
//!    or a stage with events waiting both at the beginning and at the end. Supervisors are excluded
//!    here: a single worker of many makes a supervisor busy.
//!
//! In a chain with one slow stage, that stage is named: those before it wait for demand, and those after
//! it for events. When all wait for events, no stage is named.
//!
//! # Several nodes
//!
//! Where the endpoint has an [adapter](pipeline_ws_sink::pubsub::Adapter), each inspector tells the others
//! every two seconds how its node is, in a message of a few hundred bytes, and shows all of them: sockets,
//! rates, broadcasts between nodes with their lag and gaps, and bottlenecks. A node without an inspector is
//! not shown. A node that has been silent for 10 s is shown as gone, for 15 minutes.
//!
//! # What it costs
//!
//! One snapshot a second, and no work in the path of an event. The JSON is serialized only when a viewer
//! has joined or requests it. Memory is bounded: a few views, percentiles of five minutes, and a
//! report of each of up to 1000 other nodes.
#![cfg_attr(docsrs, feature(doc_cfg))]
#![warn(clippy::print_stdout, clippy::print_stderr)]
// Instants and durations: see clippy.toml.
#![cfg_attr(not(test), warn(clippy::arithmetic_side_effects))]

mod bottleneck;
mod channel;
mod folding;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
mod history;
mod hosts;
mod inspector;
mod layers;
mod lookup;
mod model;
mod nodes;
mod page;
mod rates;
mod sampler;

pub use self::{
    inspector::{Inspector, InspectorBuilder},
    model::{
        BetweenView, ChannelView, DeliveredView, EdgeView, EndpointView, LegView, MountView,
        NodeView, PercentilesView, PipelineView, StageView, VERSION, View,
    },
};
