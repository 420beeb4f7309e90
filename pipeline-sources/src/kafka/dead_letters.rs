//! The topic of dead letters, for operators.

use std::{
    collections::{BTreeMap, HashSet},
    ops::ControlFlow,
    sync::Arc,
};

use futures::{TryStreamExt, future::ready, stream};
use rdkafka::{
    Message, Offset, TopicPartitionList,
    config::FromClientConfigAndContext,
    consumer::{BaseConsumer, Consumer},
    error::KafkaError as ClientError,
};
use tokio::{sync::mpsc, task::spawn_blocking, time::Instant};

use super::{
    KafkaError, KafkaId, KafkaQueue, Quiet, Viewer, deadline,
    format::{Record, ToWrite, drops, read, read_dead_letter, replayed, tombstone},
};
use crate::{
    item::DeadLetter,
    replaying::{Page, replay_all},
};

/// How many marks of dropped ones are under way together.
const DROPPED_AT_ONCE: usize = 1000;

/// How many are read before they are asked for. Each may be as large as a record can be.
const READ_AHEAD: usize = 16;

/// A dead letter, and its place.
type Found = (KafkaId, Record);

impl KafkaQueue {
    /// Up to `limit` items that were given up, by partition and offset, after the one with this id.
    ///
    /// It reads the topic of the dead letters from there to its end.
    ///
    /// With 16 MiB a page is full and ends, so there may be more behind one of fewer than `limit`: not behind an empty one,
    /// unless `limit` is 0.
    ///
    /// # Errors
    ///
    /// [`KafkaError`] if the servers do not answer.
    pub async fn dead_letters(
        &self,
        after: Option<KafkaId>,
        limit: u32,
    ) -> Result<Vec<DeadLetter<KafkaId>>, KafkaError> {
        self.page(after, None, Page::of(limit)).await
    }

    /// The dead letters after an id, as far as they are on a page and before these ends of the partitions.
    async fn page(
        &self,
        after: Option<KafkaId>,
        ends: Option<Arc<BTreeMap<i32, i64>>>,
        mut page: Page<KafkaId>,
    ) -> Result<Vec<DeadLetter<KafkaId>>, KafkaError> {
        self.blocking(move |queue| {
            let reader = queue.dead_letter_reader()?;
            for partition in queue.partitions(reader.0.client(), &queue.0.dead_topic)? {
                // A partition that was added since has no end.
                let end = |ends: &BTreeMap<_, _>| ends.get(&partition).copied().unwrap_or(0);
                let end = ends.as_deref().map_or(i64::MAX, end);
                let from = match after {
                    Some(after) if partition < after.partition => continue,
                    Some(after) if partition == after.partition => after.offset.saturating_add(1),
                    _ => 0,
                };
                if from < end {
                    reader.list(partition, from, end, &mut page)?;
                }
                if page.is_full() {
                    break;
                }
            }
            Ok(page.into_letters())
        })
        .await
    }

    /// The ends of the partitions of the dead letters.
    async fn ends(&self) -> Result<BTreeMap<i32, i64>, KafkaError> {
        self.blocking(|queue| {
            let reader = queue.dead_letter_reader()?;
            let (topic, time) = (&queue.0.dead_topic, queue.0.options.call_timeout);
            let end =
                |partition| Ok((partition, reader.0.fetch_watermarks(topic, partition, time)?.1));
            queue.partitions(reader.0.client(), topic)?.into_iter().map(end).collect()
        })
        .await
    }

    /// Adds an item that was given up to the queue again, as a new item whose age begins now, and drops it.
    /// Returns its new place, or `None` if there is no dead letter with this id.
    ///
    /// # Errors
    ///
    /// [`KafkaError`] if the servers do not answer. Then the item may be added, and the dead letter be
    /// there still.
    pub async fn replay(&self, id: KafkaId) -> Result<Option<KafkaId>, KafkaError> {
        let Some(letter) = self.dead_letter(id).await? else { return Ok(None) };
        let new = self.write(&self.0.topic, None, &replayed(&letter)).await?;
        self.mark_dropped(&letter, id).await?;
        Ok(Some(new))
    }

    /// Replays the items that were given up and for which the function says so. It takes those that are there when
    /// it begins, however many, and not those that fail again meanwhile. Returns how many there were.
    ///
    /// ```no_run
    /// # async fn replay(queue: pipeline_sources::kafka::KafkaQueue) -> Result<(), Box<dyn std::error::Error>> {
    /// let replayed = queue.replay_all(|dead| !dead.reason.starts_with("not valid JSON")).await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// Those of [`dead_letters`](Self::dead_letters) and of [`replay`](Self::replay). Those before it are replayed.
    pub async fn replay_all(
        &self,
        mut which: impl FnMut(&DeadLetter<KafkaId>) -> bool,
    ) -> Result<u64, KafkaError> {
        let ends = Arc::new(self.ends().await?);
        replay_all!(
            which,
            after => self.page(after.copied(), Some(ends.clone()), Page::next()),
            id => self.replay(*id)
        )
    }

    /// Drops an item that was given up: it is no longer listed. Returns whether there was one with this id.
    ///
    /// # Errors
    ///
    /// [`KafkaError`] if the servers do not answer.
    pub async fn drop_dead_letter(&self, id: KafkaId) -> Result<bool, KafkaError> {
        let Some(letter) = self.dead_letter(id).await? else { return Ok(false) };
        self.mark_dropped(&letter, id).await?;
        Ok(true)
    }

    /// Removes the items that were given up and for which the function says so. It takes those that are there when it
    /// begins, however many, and not those that are given up meanwhile. Returns
    /// how many there were. It reads the topic of the dead letters
    /// twice, whatever their number.
    ///
    /// # Errors
    ///
    /// [`KafkaError`] if the servers do not answer. Those before it are removed.
    pub async fn drop_all_dead_letters(
        &self,
        mut which: impl FnMut(&DeadLetter<KafkaId>) -> bool,
    ) -> Result<u64, KafkaError> {
        let mut walk = self.walk(self.ends().await?);
        let marks = stream::poll_fn(|cx| walk.poll_recv(cx)).try_filter_map(|(id, letter)| {
            let is_chosen = which(&read_dead_letter(&letter, id));
            ready(Ok(is_chosen.then(|| (id, tombstone(&letter, id)))))
        });
        let written = marks.map_ok(async |(id, mark): (KafkaId, ToWrite)| {
            self.write(&self.0.dead_topic, Some(id.partition), &mark).await
        });
        let count = written.try_buffer_unordered(DROPPED_AT_ONCE);
        count.try_fold(0_u64, |dropped, _| ready(Ok(dropped.saturating_add(1)))).await
    }

    /// Reads the dead letters before these ends of the partitions, one after the other, until the receiver is gone.
    fn walk(&self, ends: BTreeMap<i32, i64>) -> mpsc::Receiver<Result<Found, KafkaError>> {
        let (found, walk) = mpsc::channel(READ_AHEAD);
        let queue = self.clone();
        spawn_blocking(move || {
            let walked = queue.dead_letter_reader().and_then(|reader| {
                ends.into_iter().try_for_each(|(partition, end)| {
                    reader.each(partition, 0, end, |id, letter| {
                        match found.blocking_send(Ok((id, letter))) {
                            Ok(()) => ControlFlow::Continue(()),
                            Err(_) => ControlFlow::Break(()),
                        }
                    })
                })
            });
            if let Err(error) = walked {
                // Nothing waits for it any more if it is not received.
                let _ = found.blocking_send(Err(error));
            }
        });
        walk
    }

    async fn mark_dropped(&self, letter: &Record, id: KafkaId) -> Result<(), KafkaError> {
        let mark = tombstone(letter, id);
        self.write(&self.0.dead_topic, Some(id.partition), &mark).await?;
        Ok(())
    }

    /// A dead letter, if it was not dropped.
    async fn dead_letter(&self, id: KafkaId) -> Result<Option<Record>, KafkaError> {
        self.blocking(move |queue| {
            let reader = queue.dead_letter_reader()?;
            if !queue.partitions(reader.0.client(), &queue.0.dead_topic)?.contains(&id.partition) {
                return Ok(None);
            }
            let mut found = None;
            reader.scan(id.partition, id.offset, |offset, record| {
                if offset == id.offset {
                    found = Some(record);
                } else if drops(&record) == Some(id.offset) {
                    found = None;
                }
                // Without the record itself, nothing has to be looked for.
                if found.is_none() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            })?;
            Ok(found.filter(|record| !record.is_tombstone()))
        })
        .await
    }

    fn dead_letter_reader(&self) -> Result<Reader, KafkaError> {
        let mut config = self.viewer_config();
        config.set("auto.offset.reset", "earliest").set("enable.partition.eof", "true");
        config.set("fetch.wait.max.ms", "20");
        let consumer = Viewer::from_config_and_context(&config, Quiet)?;
        Ok(Reader(consumer, self.clone()))
    }
}

/// Reads the topic of the dead letters, and is no member of the group.
struct Reader(BaseConsumer<Quiet>, KafkaQueue);

impl Reader {
    /// Lists the dead letters of a partition from an offset on, before another.
    fn list(
        &self,
        partition: i32,
        from: i64,
        end: i64,
        page: &mut Page<KafkaId>,
    ) -> Result<(), KafkaError> {
        self.each(partition, from, end, |id, record| {
            if page.is_full() {
                return ControlFlow::Break(());
            }
            page.push(read_dead_letter(&record, id));
            ControlFlow::Continue(())
        })
    }

    /// Calls a function with each dead letter of a partition from an offset on, before another.
    fn each(
        &self,
        partition: i32,
        from: i64,
        end: i64,
        mut each: impl FnMut(KafkaId, Record) -> ControlFlow<()>,
    ) -> Result<(), KafkaError> {
        let mut dropped = HashSet::new();
        self.scan(partition, from, |_, record| {
            dropped.extend(drops(&record).filter(|offset| *offset < end));
            ControlFlow::Continue(())
        })?;
        self.scan(partition, from, |offset, record| {
            if offset >= end {
                return ControlFlow::Break(());
            }
            if record.is_tombstone() || dropped.contains(&offset) {
                return ControlFlow::Continue(());
            }
            each(KafkaId { partition, offset }, record)
        })
    }

    /// Calls a function with each record of a partition from an offset to what is its end now.
    fn scan(
        &self,
        partition: i32,
        from: i64,
        mut each: impl FnMut(i64, Record) -> ControlFlow<()>,
    ) -> Result<(), KafkaError> {
        let Self(consumer, queue) = self;
        let (topic, time) = (&queue.0.dead_topic, queue.0.options.call_timeout);
        let (begin, end) = consumer.fetch_watermarks(topic, partition, time)?;
        let from = from.max(begin);
        if from >= end {
            return Ok(());
        }
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(topic, partition, Offset::Offset(from))?;
        consumer.assign(&list)?;
        let mut until = deadline(time);
        loop {
            let wait = until.saturating_duration_since(Instant::now());
            if wait.is_zero() {
                return Err(KafkaError::Timeout(time));
            }
            match consumer.poll(wait) {
                None => {}
                Some(Ok(message)) => {
                    let offset = message.offset();
                    if offset >= end || each(offset, read(&message)).is_break() || offset + 1 >= end
                    {
                        break;
                    }
                    // The function may have waited.
                    until = deadline(time);
                }
                Some(Err(ClientError::PartitionEOF(_))) => break,
                Some(Err(error)) => return Err(error.into()),
            }
        }
        Ok(consumer.unassign()?)
    }
}
