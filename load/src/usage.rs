//! Resource usage of a process, from Linux's `/proc`.

use std::{collections::HashMap, fs, io, time::Duration};

/// The processor time of a process, by thread.
///
/// `/proc/PID/stat` has a resolution of a hundredth of a second, which is too coarse for a load of a few
/// tenths. `schedstat` has nanoseconds, but per thread; a thread that ends is no longer counted, which
/// does not happen in a server under load.
#[derive(Debug)]
pub struct ProcessorTime(HashMap<String, u64>);

impl ProcessorTime {
    /// The time used until now.
    ///
    /// # Errors
    ///
    /// If there is no such process.
    pub fn of(process: u32) -> io::Result<Self> {
        let mut threads = HashMap::new();
        for thread in fs::read_dir(format!("/proc/{process}/task"))? {
            let thread = thread?;
            // The thread may have ended since it was listed.
            let Ok(text) = fs::read_to_string(thread.path().join("schedstat")) else { continue };
            let nanos = text.split(' ').next().and_then(|number| number.parse().ok());
            let name = thread.file_name().to_string_lossy().into_owned();
            threads.insert(name, nanos.ok_or(io::ErrorKind::InvalidData)?);
        }
        if threads.is_empty() { Err(io::ErrorKind::NotFound.into()) } else { Ok(Self(threads)) }
    }

    /// The time used between two samples.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Duration {
        let used = |(thread, nanos): (&String, &u64)| {
            nanos.saturating_sub(earlier.0.get(thread).copied().unwrap_or_default())
        };
        Duration::from_nanos(self.0.iter().map(used).sum())
    }
}

/// The resident memory of a process in bytes.
///
/// # Errors
///
/// If there is no such process.
pub fn resident(process: u32) -> io::Result<u64> {
    memory(process, "VmRSS:")
}

/// The largest resident memory that a process has had, in bytes.
///
/// # Errors
///
/// If there is no such process.
pub fn largest_resident(process: u32) -> io::Result<u64> {
    memory(process, "VmHWM:")
}

fn memory(process: u32, what: &str) -> io::Result<u64> {
    let status = fs::read_to_string(format!("/proc/{process}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix(what));
    let kilobytes = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    Ok(kilobytes.ok_or(io::ErrorKind::InvalidData)? << 10)
}

/// The number of open files and sockets of a process.
///
/// # Errors
///
/// If there is no such process.
pub fn descriptors(process: u32) -> io::Result<usize> {
    Ok(fs::read_dir(format!("/proc/{process}/fd"))?.count())
}

/// The time of all processors until now, in the system's ticks.
#[derive(Clone, Copy, Debug)]
pub struct Machine {
    all: u64,
    /// The time of other processes: all but this one and its finished children.
    others: u64,
}

impl Machine {
    /// The time until now.
    ///
    /// # Errors
    ///
    /// If the system does not tell.
    pub fn now() -> io::Result<Self> {
        let numbers = |text: &str, from: usize, count: usize| -> Option<Vec<u64>> {
            let words = text.split_whitespace().skip(from).take(count);
            words.map(|word| word.parse().ok()).collect()
        };
        // user, nice, system, idle, iowait, irq, softirq, steal.
        let machine = fs::read_to_string("/proc/stat")?;
        let machine = numbers(&machine, 1, 8).ok_or(io::ErrorKind::InvalidData)?;
        let own = fs::read_to_string("/proc/self/stat")?;
        // The name may contain spaces; twelve fields are between it and the times.
        let own = own.rsplit(')').next().and_then(|rest| numbers(rest, 11, 4));
        let own: u64 = own.ok_or(io::ErrorKind::InvalidData)?.iter().sum();
        let all: u64 = machine.iter().sum();
        let idle = machine[3] + machine[4];
        Ok(Self { all, others: (all - idle).saturating_sub(own) })
    }

    /// The share of the machine's time that other processes used, in percent.
    #[must_use]
    pub fn others_since(&self, earlier: &Self) -> f64 {
        let all = self.all.saturating_sub(earlier.all).max(1);
        self.others.saturating_sub(earlier.others) as f64 * 100.0 / all as f64
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn a_process_reads_its_own_usage() {
        let process = std::process::id();
        let before = ProcessorTime::of(process).unwrap();
        let mut sum = 0_u64;
        while ProcessorTime::of(process).unwrap().since(&before) < Duration::from_millis(5) {
            sum = std::hint::black_box(sum + 1);
        }
        let resident = resident(process).unwrap();
        assert!(resident > 1 << 20);
        assert!(largest_resident(process).unwrap() >= resident);
        assert!(descriptors(process).unwrap() >= 3);
    }

    #[test]
    fn the_share_of_others_is_at_most_all() {
        let before = Machine::now().unwrap();
        let others = Machine::now().unwrap().others_since(&before);
        assert!((0.0..=100.0).contains(&others), "{others}");
    }

    #[test]
    fn a_missing_process_has_no_usage() {
        assert!(ProcessorTime::of(u32::MAX).is_err());
        assert!(resident(u32::MAX).is_err());
    }
}
