//! All open sockets of an endpoint.

use std::{collections::HashMap, sync::Arc};

use parking_lot::Mutex;
use slab::Slab;

use crate::{end::SocketEnd, outbox::Outbox};

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
    ) -> Registration {
        let mut table = self.table.lock();
        let id: Option<Arc<str>> = id.map(Into::into);
        let key = table.open.insert(Open { outbox: outbox.clone(), id: id.clone() });
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

    /// Lets no more in, and ends all that are there. Returns how many.
    pub(crate) fn drain(&self) -> usize {
        let mut table = self.table.lock();
        table.draining = true;
        table.end_all(SocketEnd::Draining)
    }

    pub(crate) fn end_all(&self, end: SocketEnd) {
        self.table.lock().end_all(end);
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
}

impl Table {
    fn end_all(&self, end: SocketEnd) -> usize {
        self.open.iter().for_each(|(_, open)| open.outbox.end(end));
        self.open.len()
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
