//! The numbers of channels of each route that have joined a topic. Pure.

use std::sync::Arc;

/// The numbers of channels of each route that have joined a topic.
///
/// Usually all channels of a topic are of one route, and most topics have a single channel: these
/// cases take no heap memory.
#[derive(Debug)]
pub(super) struct ByRoute<R> {
    first: Option<(Arc<R>, usize)>,
    others: Vec<(Arc<R>, usize)>,
}

impl<R> ByRoute<R> {
    /// Adds a channel. Returns whether it is the first of its route.
    pub(super) fn enter(&mut self, route: &Arc<R>) -> bool {
        if let Some(count) = self.count(route) {
            *count += 1;
            return false;
        }
        let new = (route.clone(), 1);
        if self.first.is_none() {
            self.first = Some(new);
        } else {
            self.others.push(new);
        }
        true
    }

    /// Removes a channel. Returns whether it was the last of its route.
    pub(super) fn leave(&mut self, route: &Arc<R>) -> bool {
        match self.count(route) {
            Some(count @ 2..) => {
                *count -= 1;
                false
            }
            Some(_) => {
                let is_other = |(other, _): &(Arc<R>, usize)| !Arc::ptr_eq(other, route);
                self.first.take_if(|first| !is_other(first));
                self.others.retain(is_other);
                true
            }
            None => false,
        }
    }

    /// Whether no channel has joined.
    pub(super) fn is_empty(&self) -> bool {
        self.first.is_none() && self.others.is_empty()
    }

    fn count(&mut self, route: &Arc<R>) -> Option<&mut usize> {
        let mut all = self.first.iter_mut().chain(&mut self.others);
        all.find(|(other, _)| Arc::ptr_eq(other, route)).map(|(_, count)| count)
    }
}

impl<R> Default for ByRoute<R> {
    fn default() -> Self {
        Self { first: None, others: Vec::new() }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_first_and_the_last_of_each_route_are_reported(
            steps in prop::collection::vec((0usize..4, any::<bool>()), 0..60)
        ) {
            let routes: Vec<Arc<usize>> = (0..4).map(Arc::new).collect();
            let (mut by_route, mut model) = (ByRoute::default(), HashMap::<usize, usize>::new());
            for (route, enters) in steps {
                let count = model.entry(route).or_default();
                if enters {
                    *count += 1;
                    prop_assert_eq!(by_route.enter(&routes[route]), *count == 1);
                } else {
                    let was_last = *count == 1;
                    *count = count.saturating_sub(1);
                    prop_assert_eq!(by_route.leave(&routes[route]), was_last);
                }
            }
        }
    }
}
