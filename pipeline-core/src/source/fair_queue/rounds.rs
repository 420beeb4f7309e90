//! Whose turn it is: deficit round robin. Pure.

use std::iter;

use super::{
    lane::{LaneId, SPARE},
    links::Links,
};

/// Lanes that take turns. In its turn a lane is given a quantum for each unit of its weight, and
/// spends it on what it has; what it cannot spend, because the next thing costs more, it keeps for
/// its next turn. A lane that comes takes its turn after all that are there; one that leaves
/// forgets what it has kept.
///
/// From M. Shreedhar and G. Varghese, "Efficient Fair Queuing using Deficit Round Robin", 1996.
/// O(1) if nothing costs more than the quantum. Rounds in which nobody could spend are not walked
/// through one by one, but are skipped.
#[derive(Debug)]
pub(super) struct Rounds {
    quantum: u32,
    links: Links,
    turns: Vec<Turn>,
    /// The one whose turn it is, the first of the list.
    current: Option<LaneId>,
    /// Whether the current turn has begun, and its quantum been given.
    has_begun: bool,
    lanes: usize,
}

#[derive(Clone, Copy, Debug, Default)]
struct Turn {
    is_here: bool,
    weight: u32,
    deficit: u64,
}

impl Rounds {
    pub(super) fn new(quantum: u32) -> Self {
        Self {
            quantum,
            links: Links::default(),
            turns: Vec::new(),
            current: None,
            has_begun: false,
            lanes: 0,
        }
    }

    /// Lets a lane take turns; if it does already, its weight changes from its next turn on.
    pub(super) fn join(&mut self, lane: LaneId, weight: u32) {
        if self.turns.len() <= lane {
            self.turns.resize(lane + 1, Turn::default());
        }
        let turn = &mut self.turns[lane];
        turn.weight = weight;
        if !turn.is_here {
            *turn = Turn { is_here: true, weight, deficit: 0 };
            self.links.push(&mut self.current, lane);
            self.lanes += 1;
        }
    }

    /// Lets a lane take turns no more. One that does not is fine.
    pub(super) fn leave(&mut self, lane: LaneId) {
        if self.turns.get(lane).is_some_and(|turn| turn.is_here) {
            self.turns[lane].is_here = false;
            self.has_begun &= self.current != Some(lane);
            self.links.remove(&mut self.current, lane);
            self.lanes -= 1;
        }
    }

    /// The lane whose turn it is, which has paid for the next thing it has: `cost` says how much.
    pub(super) fn next(&mut self, cost: impl Fn(LaneId) -> u32) -> Option<LaneId> {
        let mut in_vain = 0;
        loop {
            let lane = self.current?;
            let share = self.share(lane);
            let turn = &mut self.turns[lane];
            if !self.has_begun {
                self.has_begun = true;
                turn.deficit += share;
                in_vain += 1;
            }
            if let Some(rest) = turn.deficit.checked_sub(cost(lane).into()) {
                turn.deficit = rest;
                return Some(lane);
            }
            self.has_begun = false;
            self.current = Some(self.links.after(lane));
            if in_vain == self.lanes {
                // In the round after it, somebody can.
                self.skip(&cost);
            }
        }
    }

    /// Forgets all lanes.
    pub(super) fn clear(&mut self) {
        self.links.clear();
        self.turns.clear();
        self.turns.shrink_to(SPARE);
        (self.current, self.has_begun, self.lanes) = (None, false, 0);
    }

    /// What a lane is given in a turn: at least 1. With what it may have kept, which is less than a
    /// cost, it fits.
    fn share(&self, lane: LaneId) -> u64 {
        u64::from(self.quantum) * u64::from(self.turns[lane].weight)
    }

    /// Gives what is given in so many rounds that in the next one somebody can spend.
    fn skip(&mut self, cost: impl Fn(LaneId) -> u32) {
        let lanes = iter::successors(self.current, |lane| Some(self.links.after(*lane)));
        let lanes: Vec<LaneId> = lanes.take(self.lanes).collect();
        let missing = |lane: LaneId| u64::from(cost(lane)) - self.turns[lane].deficit;
        let rounds = lanes.iter().map(|lane| missing(*lane).div_ceil(self.share(*lane)) - 1).min();
        for lane in lanes {
            self.turns[lane].deficit += self.share(lane) * rounds.unwrap_or(0);
        }
    }
}

#[cfg(test)]
impl Rounds {
    /// How many lanes there is memory for.
    pub(super) fn room(&self) -> usize {
        self.turns.capacity().max(self.links.room())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Lanes that always have something: whose turn it is, `count` times, and at what cost. The
    /// cost of what a lane has next is taken from its list, over and over.
    fn turns(rounds: &mut Rounds, costs: &[Vec<u32>], count: usize) -> Vec<(LaneId, u32)> {
        let mut taken = vec![0; costs.len()];
        let mut turns = Vec::new();
        for _ in 0..count {
            let next = |lane: LaneId| costs[lane][taken[lane] % costs[lane].len()];
            let lane = rounds.next(next).expect("there are lanes");
            turns.push((lane, next(lane)));
            taken[lane] += 1;
        }
        turns
    }

    fn lanes(rounds: &mut Rounds, count: usize) -> Vec<LaneId> {
        (0..count).filter_map(|_| rounds.next(|_| 1)).collect()
    }

    fn rounds(quantum: u32, weights: &[u32]) -> Rounds {
        let mut rounds = Rounds::new(quantum);
        for (lane, weight) in weights.iter().enumerate() {
            rounds.join(lane, *weight);
        }
        rounds
    }

    #[test]
    fn a_turn_is_a_quantum_for_each_unit_of_weight() {
        assert_eq!(lanes(&mut rounds(1, &[1, 1, 1]), 7), [0, 1, 2, 0, 1, 2, 0]);
        assert_eq!(lanes(&mut rounds(1, &[1, 3]), 8), [0, 1, 1, 1, 0, 1, 1, 1]);
        assert_eq!(lanes(&mut rounds(2, &[1, 2]), 7), [0, 0, 1, 1, 1, 1, 0]);
        assert_eq!(lanes(&mut rounds(2, &[1]), 5), [0; 5]);
        assert_eq!(lanes(&mut rounds(1, &[]), 5), []);
    }

    #[test]
    fn what_a_lane_cannot_spend_it_keeps() {
        // Lane 0 gets 5 a turn and pays 3 each: 1, then 2, then 2 of them.
        let turns = turns(&mut rounds(5, &[1, 1]), &[vec![3], vec![5]], 8);
        assert_eq!(turns.iter().map(|turn| turn.0).collect::<Vec<_>>(), [0, 1, 0, 0, 1, 0, 0, 1]);
    }

    #[test]
    fn who_comes_waits_for_the_turns_of_those_who_are_there() {
        let mut rounds = rounds(1, &[2, 1]);
        assert_eq!(lanes(&mut rounds, 1), [0]);
        rounds.join(2, 1);
        assert_eq!(lanes(&mut rounds, 5), [0, 1, 2, 0, 0]);
    }

    #[test]
    fn who_leaves_is_passed_over_and_forgets_what_was_kept() {
        let mut rounds = rounds(1, &[1, 1, 9]);
        assert_eq!(lanes(&mut rounds, 3), [0, 1, 2]);
        rounds.leave(2);
        rounds.leave(2);
        assert_eq!(lanes(&mut rounds, 3), [0, 1, 0]);
        rounds.join(2, 1);
        assert_eq!(lanes(&mut rounds, 4), [1, 2, 0, 1]);
        rounds.clear();
        assert_eq!(lanes(&mut rounds, 1), []);
    }

    #[test]
    fn a_weight_changes_with_the_next_turn() {
        let mut rounds = rounds(1, &[2, 1]);
        assert_eq!(lanes(&mut rounds, 1), [0]);
        rounds.join(0, 3);
        assert_eq!(lanes(&mut rounds, 5), [0, 1, 0, 0, 0]);
    }

    #[test]
    fn rounds_in_which_nobody_could_pay_are_skipped() {
        let asked = std::cell::Cell::new(0);
        let mut rounds = rounds(1, &[1, 2]);
        let turn = rounds.next(|_| {
            asked.set(asked.get() + 1);
            u32::MAX
        });
        assert_eq!(turn, Some(1), "it comes to the sum in half the rounds");
        assert!(asked.get() < 10, "{}", asked.get());
    }

    /// Deficit round robin, one round after the other, as in the paper.
    fn by_the_book(quantum: u32, weights: &[u32], costs: &[Vec<u32>], count: usize) -> Vec<LaneId> {
        let (mut taken, mut deficits) = (vec![0; costs.len()], vec![0; costs.len()]);
        let mut turns = Vec::new();
        while turns.len() < count {
            for lane in 0..weights.len() {
                deficits[lane] += u64::from(quantum * weights[lane]);
                loop {
                    let cost = u64::from(costs[lane][taken[lane] % costs[lane].len()]);
                    if deficits[lane] < cost {
                        break;
                    }
                    deficits[lane] -= cost;
                    taken[lane] += 1;
                    turns.push(lane);
                }
            }
        }
        turns.truncate(count);
        turns
    }

    fn busy() -> impl Strategy<Value = (u32, Vec<u32>, Vec<Vec<u32>>)> {
        let costs = prop::collection::vec(1u32..40, 1..6);
        let lanes = prop::collection::vec((1u32..5, costs), 1..6);
        (1u32..50, lanes).prop_map(|(quantum, lanes)| {
            let (weights, costs) = lanes.into_iter().unzip();
            (quantum, weights, costs)
        })
    }

    proptest! {
        #[test]
        fn turns_are_those_of_the_paper((quantum, weights, costs) in busy()) {
            let turns = turns(&mut rounds(quantum, &weights), &costs, 200);
            let lanes: Vec<LaneId> = turns.into_iter().map(|turn| turn.0).collect();
            prop_assert_eq!(lanes, by_the_book(quantum, &weights, &costs, 200));
        }

        /// In whatever stretch of time, what two lanes that always have something are served
        /// differs, for each unit of their weights, by less than a quantum and what the most
        /// expensive thing of each costs.
        #[test]
        fn no_lane_gets_ahead_of_another((quantum, weights, costs) in busy()) {
            let turns = turns(&mut rounds(quantum, &weights), &costs, 60);
            let most: Vec<u32> = costs.iter().map(|costs| *costs.iter().max().unwrap()).collect();
            for from in 0..turns.len() {
                let mut served = vec![0u32; weights.len()];
                for (lane, cost) in &turns[from..] {
                    served[*lane] += cost;
                    for a in 0..weights.len() {
                        for b in 0..a {
                            let ahead = (served[a] * weights[b]).abs_diff(served[b] * weights[a]);
                            let bound = quantum * weights[a] * weights[b]
                                + most[a] * weights[b] + most[b] * weights[a];
                            prop_assert!(ahead < bound, "{ahead} of {bound}: {a} and {b}");
                        }
                    }
                }
            }
        }

        /// Who comes, whenever it is, is served before any other has had more than one turn.
        #[test]
        fn a_newcomer_waits_for_one_turn_of_each(
            (quantum, weights, costs) in busy(), before in 0usize..60, cost in 1u32..50
        ) {
            let mut rounds = rounds(quantum, &weights);
            turns(&mut rounds, &costs, before);
            let newcomer = weights.len();
            rounds.join(newcomer, 1);
            let cost = cost.min(quantum);
            let mut all = costs.clone();
            all.push(vec![cost]);
            let turns = turns(&mut rounds, &all, 2000);
            let mut served = vec![0u32; weights.len()];
            for (lane, cost) in turns.iter().take_while(|turn| turn.0 != newcomer) {
                served[*lane] += cost;
            }
            for (lane, served) in served.into_iter().enumerate() {
                let kept = costs[lane].iter().max().unwrap() - 1;
                prop_assert!(served <= quantum * weights[lane] + kept);
            }
        }
    }
}
