//! Deficit round robin. Pure.

use std::collections::BTreeMap;

use super::lane::{LaneId, SPARE};

/// Lanes that take turns. In its turn a lane receives a quantum for each unit of its weight, and
/// spends it on its items; a rest that is too small for the next item is kept for its next turn. A
/// new lane is served after all others; a lane that leaves loses its rest.
///
/// From M. Shreedhar and G. Varghese, "Efficient Fair Queuing using Deficit Round Robin", 1996.
/// O(log n) for n lanes, if no item costs more than the quantum. Rounds in which no lane could
/// spend are not iterated but skipped.
#[derive(Debug)]
pub(super) struct Rounds {
    quantum: u32,
    /// The lanes in the order of their turns, by the numbers of these.
    order: BTreeMap<u64, LaneId>,
    /// Indexed by lane.
    turns: Vec<Option<Turn>>,
    /// The number of the last turn.
    last: u64,
    /// Whether the first turn has begun, and its quantum has been added.
    has_begun: bool,
}

/// The next turn of a lane.
#[derive(Clone, Copy, Debug)]
struct Turn {
    number: u64,
    weight: u32,
    deficit: u64,
}

impl Rounds {
    pub(super) fn new(quantum: u32) -> Self {
        let (order, turns) = (BTreeMap::new(), Vec::new());
        Self { quantum, order, turns, last: 0, has_begun: false }
    }

    /// Adds a lane; if it is present, its weight changes from its next turn on.
    pub(super) fn join(&mut self, lane: LaneId, weight: u32) {
        if self.turns.len() <= lane {
            self.turns.resize(lane + 1, None);
        }
        match &mut self.turns[lane] {
            Some(turn) => turn.weight = weight,
            None => self.append(lane, Turn { number: 0, weight, deficit: 0 }),
        }
    }

    /// Gives a lane the last turn.
    fn append(&mut self, lane: LaneId, turn: Turn) {
        self.last += 1;
        self.order.insert(self.last, lane);
        self.turns[lane] = Some(Turn { number: self.last, ..turn });
    }

    /// Removes a lane, if it is present.
    pub(super) fn leave(&mut self, lane: LaneId) {
        if let Some(turn) = self.turns.get_mut(lane).and_then(Option::take) {
            let first = self.order.first_key_value().map(|(number, _)| *number);
            self.has_begun &= first != Some(turn.number);
            self.order.remove(&turn.number);
        }
    }

    /// The lane whose turn it is, after it has paid the `cost` of its next item.
    pub(super) fn next(&mut self, cost: impl Fn(LaneId) -> u32) -> Option<LaneId> {
        let mut in_vain = 0;
        loop {
            let lane = *self.order.first_key_value()?.1;
            let turn = self.turns[lane].as_mut()?;
            if !self.has_begun {
                self.has_begun = true;
                turn.deficit += turn.share(self.quantum);
                in_vain += 1;
            }
            if let Some(rest) = turn.deficit.checked_sub(cost(lane).into()) {
                turn.deficit = rest;
                return Some(lane);
            }
            let turn = *turn;
            self.has_begun = false;
            self.order.pop_first();
            self.append(lane, turn);
            if in_vain == self.order.len() {
                // In the round after it, some lane can spend.
                self.skip(&cost);
            }
        }
    }

    /// Frees the memory of many lanes once all have left. The map keeps the memory of a few.
    pub(super) fn shrink(&mut self) {
        debug_assert!(self.order.is_empty(), "lanes are still present");
        self.turns.clear();
        self.turns.shrink_to(SPARE);
    }

    /// Adds the shares of as many rounds at once that some lane can spend in the next one.
    fn skip(&mut self, cost: impl Fn(LaneId) -> u32) {
        let turns = self.order.values().filter_map(|lane| Some((*lane, self.turns[*lane]?)));
        let rounds = turns.map(|(lane, turn)| {
            let missing = u64::from(cost(lane)) - turn.deficit;
            missing.div_ceil(turn.share(self.quantum)) - 1
        });
        let rounds = rounds.min().unwrap_or(0);
        for lane in self.order.values() {
            if let Some(turn) = &mut self.turns[*lane] {
                turn.deficit += turn.share(self.quantum) * rounds;
            }
        }
    }
}

impl Turn {
    /// The share of the lane in a turn: at least 1. Together with the rest, which is less than a
    /// cost, it does not overflow.
    fn share(&self, quantum: u32) -> u64 {
        u64::from(quantum) * u64::from(self.weight)
    }
}

#[cfg(test)]
impl Rounds {
    /// The number of lanes that memory is allocated for.
    pub(super) fn room(&self) -> usize {
        self.turns.capacity()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Takes `count` turns of lanes that always have items; returns lanes and costs. The costs of a
    /// lane's items are taken from its list, repeatedly.
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
    fn a_lane_keeps_what_it_cannot_spend() {
        // Lane 0 gets 5 a turn and pays 3 each: 1, then 2, then 2 of them.
        let turns = turns(&mut rounds(5, &[1, 1]), &[vec![3], vec![5]], 8);
        assert_eq!(turns.iter().map(|turn| turn.0).collect::<Vec<_>>(), [0, 1, 0, 0, 1, 0, 0, 1]);
    }

    #[test]
    fn a_new_lane_waits_for_one_turn_of_each_other() {
        let mut rounds = rounds(1, &[2, 1]);
        assert_eq!(lanes(&mut rounds, 1), [0]);
        rounds.join(2, 1);
        assert_eq!(lanes(&mut rounds, 5), [0, 1, 2, 0, 0]);
    }

    #[test]
    fn a_removed_lane_is_skipped_and_loses_its_rest() {
        let mut rounds = rounds(1, &[1, 1, 9]);
        assert_eq!(lanes(&mut rounds, 3), [0, 1, 2]);
        rounds.leave(2);
        rounds.leave(2);
        assert_eq!(lanes(&mut rounds, 3), [0, 1, 0]);
        rounds.join(2, 1);
        assert_eq!(lanes(&mut rounds, 4), [1, 2, 0, 1]);
        (0..3).for_each(|lane| rounds.leave(lane));
        rounds.shrink();
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
    fn rounds_without_a_payment_are_skipped() {
        let asked = std::cell::Cell::new(0);
        let mut rounds = rounds(1, &[1, 2]);
        let turn = rounds.next(|_| {
            asked.set(asked.get() + 1);
            u32::MAX
        });
        assert_eq!(turn, Some(1), "it saves up the cost in half the rounds");
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

        /// In any period, the service per unit of weight of two lanes that always have items
        /// differs by less than a quantum and the cost of the most expensive item of each.
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

        /// A new lane is served before any other has had more than one turn.
        #[test]
        fn a_new_lane_is_served_after_one_turn_of_each_other(
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
