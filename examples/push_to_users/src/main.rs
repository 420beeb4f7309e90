//! Pushes items to the users they are meant for, and shows how long each takes.
//!
//! `cargo run --release -p push_to_users -- --help` explains the flags.
//!
//! Items come from `POST /push`, standard input, or `--demo`. They wait in a bounded queue, or in one that
//! survives the process, until a worker is free; the worker broadcasts to the topic of the item's user. A
//! client that reads too slowly is disconnected, and does not slow down other clients. The page at `/` shows
//! pushes as they arrive, through the official Phoenix client.
#![allow(unreachable_pub, reason = "its modules are used by the program only")]

mod args;
mod cluster;
#[cfg(feature = "durable")]
mod dead_letters;
mod demo;
#[cfg(feature = "durable")]
mod durable;
mod http;
mod intake;
mod lines;
mod printed;
mod push;
#[cfg(feature = "durable")]
mod queues;
mod statsd;
mod stdin;
mod users;

use std::{error::Error, io::ErrorKind, process::ExitCode, time::Duration};

use clap::Parser;
use pipeline::{
    Pipeline,
    health::Health,
    inspect::Inspector,
    serve,
    source::{QueueOptions, timed_queue},
    stage::Stage,
    subscription::SubscribeOptions,
    supervisor::ConsumerSupervisor,
    ws::{Endpoint, Mount, listen, token::Signer},
};
use pipeline_example_support::{PhoenixClient, complain, finish, log_to_stderr, say};

use self::{
    args::{Args, Command, DeadLetters},
    intake::{Intake, Pushing},
    printed::Printed,
    statsd::Statsd,
    users::{PushToUser, UserChannel, UserSocket},
};

#[tokio::main]
async fn main() -> ExitCode {
    // The client of RabbitMQ logs an error for each queue that it looks for and that is not there yet.
    log_to_stderr("info,lapin=off");
    let args = Args::parse();
    let ran = match &args.command {
        Some(Command::DeadLetters(wanted)) => dead_letters(wanted).await,
        None => run(args).await,
    };
    let code = match ran {
        Ok(true) => ExitCode::SUCCESS,
        // Items were left unprocessed, or not all dead letters exist; it has been printed.
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            complain(format!("error: {error}"));
            let mut cause = error.source();
            while let Some(error) = cause {
                complain(format!("  because: {error}"));
                cause = error.source();
            }
            ExitCode::FAILURE
        }
    };
    finish();
    code
}

/// The command `dead-letters`.
async fn dead_letters(wanted: &DeadLetters) -> Result<bool, Box<dyn Error>> {
    #[cfg(feature = "durable")]
    {
        dead_letters::run(wanted).await
    }
    #[cfg(not(feature = "durable"))]
    {
        let broker = wanted.queue_at().map_or(Ok(args::Broker::Sqlite), |at| at.broker())?;
        Err(intake::missing(broker).into())
    }
}

async fn run(args: Args) -> Result<bool, Box<dyn Error>> {
    let listener = listen((args.host, args.port)).await.map_err(|error| {
        let advice = match error.kind() {
            ErrorKind::AddrNotAvailable => {
                "this machine does not have that address, try another --host"
            }
            ErrorKind::PermissionDenied => "try a --port above 1023",
            _ => "try another --port",
        };
        format!("cannot listen on {}:{}: {error} ({advice})", args.host, args.port)
    })?;
    let address = listener.local_addr()?;
    let printed = match (args.statsd_all, args.statsd_lines) {
        (true, _) => Printed::all(),
        (false, true) => Printed::news(),
        (false, false) => Printed::summary(),
    };
    let statsd =
        Statsd::install(args.statsd.as_deref(), args.statsd_dialect.into(), printed).await?;

    // The sockets: a user signs in with a token, and joins only its own topic. Frames for a slow client
    // are queued, up to a limit; then the client is disconnected. Waiting for it instead, with
    // `WhenFull::block()`, would occupy a worker, and in the end all of them.
    let signer = Signer::new(&args.secret(), "user socket")?.max_age(args.token_age());
    let sockets = Mount::new(UserSocket::new(signer.clone())).channel::<UserChannel>("user:*");
    let mut endpoint = Endpoint::builder().mount("/socket", sockets);
    if let Some(host) = &args.public_host {
        endpoint = endpoint.host(host);
    }
    let endpoint = match &args.cluster {
        Some(server) => cluster::join(endpoint, server).await?.build()?,
        None => endpoint.build()?,
    };

    // The pipeline: a queue, and one worker per item, up to `max_demand` at once. The queue is bounded
    // and in memory, or in a file, or at a server.
    let delay = Duration::from_millis(args.delay_ms);
    let (max_demand, min_demand) = (args.max_demand, args.min_demand());
    let (intake, pipeline) = if let Some(at) = args.queue_at() {
        let queue = intake::open(&at, args.lease()).await?;
        let (pubsub, acknowledge) = (endpoint.pubsub().clone(), args.acknowledge.into());
        let keep_for = args.keep_for(&at);
        let pushing = Pushing { pubsub, acknowledge, keep_for, delay, max_demand, min_demand };
        let pipeline = queue.start(pushing)?;
        (Intake::Durable(queue, pipeline.observer()), pipeline)
    } else {
        let worker = PushToUser::new(&endpoint, delay);
        let demand = SubscribeOptions::new().max_demand(max_demand).min_demand(min_demand);
        let (pushes, producer) = timed_queue(QueueOptions::new().capacity(args.queue));
        let pipeline = Pipeline::builder("push")
            .producer_with(Stage::new(producer).named("queue"))
            .consumer_supervisor_with(
                Stage::new(ConsumerSupervisor::new(worker)).named("push"),
                demand,
            )
            .start()?;
        (Intake::Memory(pushes), pipeline)
    };

    // Health checks for a load balancer, and the live view. A real program restricts access to both.
    let health = Health::new().pipeline(pipeline.observer()).endpoint(endpoint.observer());
    let mut inspector =
        Inspector::builder().pipeline(pipeline.observer()).endpoint(endpoint.observer());
    if let Some(host) = &args.public_host {
        inspector = inspector.host(host);
    }
    if args.operator {
        inspector = inspector.operator(endpoint.operator());
    }
    let inspector = inspector.build()?;

    say(format!("page     http://{address}/?user=1"));
    say(format!("inspect  http://{address}/inspect"));
    say(format!(
        "push     curl http://{address}/push -d '{{\"user_id\":1,\"event\":\"push_timed\",\"data\":{{\"text\":\"hello\"}}}}'"
    ));
    say(format!("statsd   {statsd}"));
    let client = PhoenixClient::find_or_install(|reason| {
        say(format!("client   {reason}; the page cannot show pushes, everything else works"));
    });
    if args.stdin {
        say("stdin    reading NDJSON, one push per line");
        stdin::read(intake.clone());
    }
    if args.demo {
        say("demo     pushing to users 1, 2 and 3");
        tokio::spawn(demo::trickle(intake.clone()));
    }

    let app = http::router(intake, signer, client)
        .merge(health.router())
        .nest_service("/inspect", inspector)
        .fallback_service(endpoint.clone());
    let report = serve(listener, app)
        .pipeline(pipeline)
        .endpoint(endpoint)
        .health(&health)
        .drain_within(Duration::from_secs(args.drain_secs))
        .await?;
    statsd.flush().await;
    say(report.to_string());
    Ok(report.is_clean())
}
