//! All open sockets of an endpoint.

use std::{collections::HashMap, sync::Arc};

use futures::future::join_all;
use parking_lot::Mutex;
use slab::Slab;
use tokio::time;

use crate::{
    drainer::MountDrainer,
    end::SocketEnd,
    outbox::{Load, Outbox},
    telemetry::log,
};

/// How many sockets are looked at before others have a turn at the table.
const LOOK: usize = 1024;

/// The open sockets, to be ended all at once or by their id.
#[derive(Default)]
pub(crate) struct Sockets {
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    open: Slab<Open>,
    by_id: HashMap<Arc<str>, Vec<usize>>,
    draining: bool,
}

struct Open {
    outbox: Arc<Outbox>,
    id: Option<Arc<str>>,
    /// That of its mount.
    drainer: Arc<MountDrainer>,
}

/// The draining of all sockets that were open when it began. If it is dropped, it closes at once
/// those that it has not come to.
pub(crate) struct Draining {
    mounts: Vec<MountDraining>,
    count: usize,
}

/// The sockets of a mount, in the order in which they are closed.
struct MountDraining {
    drainer: Arc<MountDrainer>,
    with_channels: Vec<Arc<Outbox>>,
    channels: Vec<usize>,
    without_channels: Vec<Arc<Outbox>>,
}

/// A socket's place in the table, for as long as the socket lives.
pub(crate) struct Registration {
    sockets: Arc<Sockets>,
    key: usize,
}

impl Sockets {
    /// Enters a socket. If the endpoint drains already, the socket is told to end.
    pub(crate) fn register(
        self: &Arc<Self>,
        outbox: &Arc<Outbox>,
        id: Option<&str>,
        drainer: &Arc<MountDrainer>,
    ) -> Registration {
        let mut table = self.table.lock();
        let id: Option<Arc<str>> = id.map(Into::into);
        let open = Open { outbox: outbox.clone(), id: id.clone(), drainer: drainer.clone() };
        let key = table.open.insert(open);
        if let Some(id) = id {
            table.by_id.entry(id).or_default().push(key);
        }
        if table.draining {
            outbox.end(SocketEnd::Draining);
        }
        Registration { sockets: self.clone(), key }
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.table.lock().draining
    }

    /// Lets no more in. Those that are there end when the draining runs. The first draining has them
    /// all; another that begins meanwhile only waits.
    pub(crate) fn drain(&self) -> Draining {
        let mut table = self.table.lock();
        let count = table.open.len();
        let first = !std::mem::replace(&mut table.draining, true);
        let mounts = if first { table.by_mount() } else { Vec::new() };
        Draining { mounts, count }
    }

    pub(crate) fn end_all(&self, end: SocketEnd) {
        self.table.lock().open.iter().for_each(|(_, open)| open.outbox.end(end));
    }

    /// Ends the sockets with this id. Returns how many.
    pub(crate) fn disconnect(&self, id: &str) -> usize {
        let table = self.table.lock();
        let keys = table.by_id.get(id).map_or(&[][..], Vec::as_slice);
        for &key in keys {
            table.open[key].outbox.end(SocketEnd::Disconnected);
        }
        keys.len()
    }

    pub(crate) fn len(&self) -> usize {
        self.table.lock().open.len()
    }

    /// All that waits for all sockets. Those that come or go meanwhile may be missed.
    pub(crate) fn waiting(&self) -> Load {
        let (mut waiting, mut next) = (Load::default(), 0);
        loop {
            let table = self.table.lock();
            let to = table.open.capacity().min(next + LOOK);
            for open in (next..to).filter_map(|key| table.open.get(key)) {
                waiting = waiting.plus(open.outbox.load());
            }
            next = to;
            if next == table.open.capacity() {
                return waiting;
            }
        }
    }
}

impl Table {
    fn by_mount(&self) -> Vec<MountDraining> {
        let mut mounts: Vec<MountDraining> = Vec::new();
        for (_, open) in &self.open {
            let of_mount = |mount: &MountDraining| Arc::ptr_eq(&mount.drainer, &open.drainer);
            let at = mounts.iter().position(of_mount).unwrap_or_else(|| {
                mounts.push(MountDraining::new(open.drainer.clone()));
                mounts.len() - 1
            });
            mounts[at].insert(&open.outbox);
        }
        mounts
    }
}

impl Draining {
    /// How many sockets were open when it began.
    pub(crate) fn sockets(&self) -> usize {
        self.count
    }

    /// Tells all sockets to end, batch by batch. They may take their time.
    pub(crate) async fn run(self) {
        join_all(self.mounts.iter().map(MountDraining::run)).await;
    }
}

impl Drop for Draining {
    fn drop(&mut self) {
        for mount in &self.mounts {
            MountDraining::end(&mount.with_channels);
            MountDraining::end(&mount.without_channels);
        }
    }
}

impl MountDraining {
    fn new(drainer: Arc<MountDrainer>) -> Self {
        let (with_channels, channels, without_channels) = Default::default();
        Self { drainer, with_channels, channels, without_channels }
    }

    fn insert(&mut self, outbox: &Arc<Outbox>) {
        match outbox.channels() {
            0 => self.without_channels.push(outbox.clone()),
            channels => {
                self.with_channels.push(outbox.clone());
                self.channels.push(channels);
            }
        }
    }

    async fn run(&self) {
        let MountDrainer { socket, drainer } = &*self.drainer;
        let batches = drainer.batches(&self.channels);
        let (rounds, interval) = (batches.len(), drainer.interval());
        let total = self.channels.iter().sum();
        for (index, batch) in (1..).zip(batches) {
            let count = self.channels[batch.clone()].iter().sum();
            log::Batch { socket, count, total, index, rounds, interval }.drains();
            Self::end(&self.with_channels[batch]);
            if index < rounds {
                time::sleep(interval).await;
            }
        }
        Self::end(&self.without_channels);
    }

    fn end(sockets: &[Arc<Outbox>]) {
        sockets.iter().for_each(|outbox| outbox.end(SocketEnd::Draining));
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        let mut table = self.sockets.table.lock();
        let open = table.open.remove(self.key);
        if let Some(id) = &open.id
            && let Some(keys) = table.by_id.get_mut(id)
        {
            keys.retain(|&key| key != self.key);
            if keys.is_empty() {
                table.by_id.remove(id);
            }
        }
    }
}
