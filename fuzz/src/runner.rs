//! The plain runner: mutated inputs of the corpus, without feedback from the code.

use std::{
    cell::Cell,
    panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook},
    process,
    sync::{Arc, Once},
    thread,
    time::{Duration, Instant},
};

use fastrand::Rng;
use parking_lot::Mutex;

use crate::{Target, corpus::store, failures_folder};

/// The longest input.
const LONGEST: usize = 4095;

/// How long one input may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// The result of a run.
#[derive(Debug)]
pub struct Outcome {
    /// How many inputs were tried.
    pub executions: u64,
    /// How long that took.
    pub time: Duration,
    /// The smallest input found that fails.
    pub failure: Option<Vec<u8>>,
}

/// Runs the corpus, and then mutations of it until the time is over or an input fails. The same seed makes
/// the same mutations.
///
/// An input that takes longer than half a minute ends the process.
#[must_use]
pub fn run(target: &Target, corpus: &[Vec<u8>], seed: u64, time: Duration) -> Outcome {
    silence_panics();
    let began = Instant::now();
    let watched = watch(target);
    let mut mutator = Mutator::new(target, corpus, seed);
    let mut executions = 0;
    let mut seeds = corpus.iter();
    loop {
        let input = match seeds.next() {
            Some(input) => input,
            None => mutator.next(),
        };
        watched.lock().begin(input);
        executions += 1;
        if !passes(target, input) {
            let failure = Some(shrink(target, input.clone()));
            watched.lock().end();
            return Outcome { executions, time: began.elapsed(), failure };
        }
        if executions % 64 == 0 && began.elapsed() >= time {
            watched.lock().end();
            return Outcome { executions, time: began.elapsed(), failure: None };
        }
    }
}

fn passes(target: &Target, input: &[u8]) -> bool {
    QUIET.set(true);
    let outcome = catch_unwind(AssertUnwindSafe(|| (target.run)(input)));
    QUIET.set(false);
    outcome.is_ok()
}

thread_local! {
    /// Whether panics of this thread are expected.
    static QUIET: Cell<bool> = const { Cell::new(false) };
}

/// Hides the messages of panics while inputs are tried: a failing input is tried again many times.
fn silence_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let hook = take_hook();
        set_hook(Box::new(move |panic| {
            if !QUIET.get() {
                hook(panic);
            }
        }));
    });
}

/// A smaller input that fails as well: parts are left out, and bytes become zero.
fn shrink(target: &Target, mut input: Vec<u8>) -> Vec<u8> {
    let mut tries = 0;
    let mut part = input.len();
    while part > 0 && tries < 20_000 {
        let mut at = 0;
        let before = input.len();
        while at < input.len() && tries < 20_000 {
            tries += 1;
            let mut smaller = input.clone();
            smaller.drain(at..(at + part).min(input.len()));
            if passes(target, &smaller) {
                at += part;
            } else {
                input = smaller;
            }
        }
        if input.len() == before {
            part /= 2;
        }
    }
    for at in 0..input.len() {
        let mut simpler = input.clone();
        simpler[at] = 0;
        if !passes(target, &simpler) {
            input = simpler;
        }
    }
    input
}

/// The input that is being tried.
#[derive(Default)]
struct Watched {
    input: Vec<u8>,
    /// The number of the input.
    number: u64,
    ended: bool,
}

impl Watched {
    fn begin(&mut self, input: &[u8]) {
        self.input.clear();
        self.input.extend_from_slice(input);
        self.number += 1;
    }

    fn end(&mut self) {
        self.ended = true;
    }
}

/// Starts a thread that ends the process when one input takes too long.
fn watch(target: &Target) -> Arc<Mutex<Watched>> {
    let watched = Arc::new(Mutex::new(Watched::default()));
    let (name, shared) = (target.name, watched.clone());
    thread::spawn(move || {
        let (mut number, mut since) = (0, Instant::now());
        loop {
            thread::park_timeout(Duration::from_secs(1));
            let watched = shared.lock();
            if watched.ended {
                return;
            }
            if watched.number != number {
                (number, since) = (watched.number, Instant::now());
            } else if since.elapsed() > PATIENCE {
                let stored = store(&failures_folder(name), &watched.input);
                eprintln!("{name}: an input takes too long: {stored:?}");
                process::exit(1);
            }
        }
    });
    watched
}

/// Makes new inputs of known ones.
struct Mutator<'a> {
    random: Rng,
    dictionary: &'a [&'a [u8]],
    /// The corpus, and some of the mutated inputs.
    pool: Vec<Vec<u8>>,
    /// How many of the pool are the corpus.
    kept: usize,
    input: Vec<u8>,
}

/// How many mutated inputs are in the pool.
const MUTATED: usize = 64;

impl<'a> Mutator<'a> {
    fn new(target: &'a Target, corpus: &[Vec<u8>], seed: u64) -> Self {
        let mut pool = corpus.to_vec();
        if pool.is_empty() {
            pool.push(Vec::new());
        }
        let kept = pool.len();
        let random = Rng::with_seed(seed);
        Self { random, dictionary: target.dictionary, pool, kept, input: Vec::new() }
    }

    fn next(&mut self) -> &Vec<u8> {
        let of = self.random.usize(..self.pool.len());
        self.input.clone_from(&self.pool[of]);
        let most = 1 << self.random.u32(..5);
        for _ in 0..self.random.usize(1..=most) {
            self.mutate();
        }
        self.input.truncate(LONGEST);
        // Mutations of mutations lead farther.
        if self.random.u8(..16) == 0 {
            if self.pool.len() < self.kept + MUTATED {
                self.pool.push(self.input.clone());
            } else {
                let at = self.kept + self.random.usize(..MUTATED);
                self.pool[at].clone_from(&self.input);
            }
        }
        &self.input
    }

    fn mutate(&mut self) {
        let length = self.input.len();
        let at = self.random.usize(..=length);
        match self.random.u8(..12) {
            0 if at < length => self.input[at] ^= 1 << self.random.u8(..8),
            1 if at < length => self.input[at] = self.random.u8(..),
            2 if at < length => {
                let small = self.random.u8(..16);
                let byte = &mut self.input[at];
                *byte =
                    if small < 8 { byte.wrapping_add(small) } else { byte.wrapping_sub(small - 7) };
            }
            3 if at < length => {
                self.input[at] =
                    [0, 1, 0x7f, 0x80, 0xff, b'"', b'\n', b' '][self.random.usize(..8)];
            }
            4 => self.remove(at),
            5 => {
                let bytes: Vec<u8> =
                    (0..self.random.usize(1..=8)).map(|_| self.random.u8(..)).collect();
                self.insert(at, &bytes);
            }
            6 if !self.dictionary.is_empty() => {
                let word = self.dictionary[self.random.usize(..self.dictionary.len())];
                self.insert(at, word);
            }
            7 => {
                let other = &self.pool[self.random.usize(..self.pool.len())];
                let part = Self::part(&mut self.random, other);
                self.insert(at, &part);
            }
            8 => {
                let other = &self.pool[self.random.usize(..self.pool.len())];
                let from = self.random.usize(..=other.len());
                let tail = other[from..].to_vec();
                self.input.truncate(at);
                self.input.extend_from_slice(&tail);
            }
            9 => {
                let part = Self::part(&mut self.random, &self.input);
                self.insert(at, &part);
            }
            10 => {
                let count = 1 << self.random.u32(..9);
                let bytes = vec![self.random.u8(..); count];
                self.insert(at, &bytes);
            }
            11 => self.input.truncate(at),
            _ => self.input.push(self.random.u8(..)),
        }
    }

    fn part(random: &mut Rng, of: &[u8]) -> Vec<u8> {
        let from = random.usize(..=of.len());
        let rest = &of[from..];
        rest[..random.usize(..=rest.len().min(64))].to_vec()
    }

    fn insert(&mut self, at: usize, bytes: &[u8]) {
        if self.input.len() + bytes.len() <= LONGEST {
            self.input.splice(at..at, bytes.iter().copied());
        }
    }

    fn remove(&mut self, at: usize) {
        let end = (at + self.random.usize(1..=16)).min(self.input.len());
        self.input.drain(at.min(end)..end);
    }
}
