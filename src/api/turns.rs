//! Whose request is worked on next: tenants take turns, so that the flood of one is a line of its own and nobody else's.
//!
//! Two numbers. So many requests may be inside, whatever they do there: arrive, wait, be worked on. A tenant gets one more
//! of these places as long as it has fewer than are still free: alone it has half of them, n of them that flood have each
//! one part of n + 1, and as much is left for whoever comes next. And so many are worked on at once; the others wait, each
//! in its tenant's line, and a place that becomes free goes to the lines in turn.

use std::collections::{HashMap, VecDeque};

/// The lines, of waiters that are told by a `W`.
pub(super) struct Turns<W> {
    inside_max: usize,
    inside: usize,
    at_once: usize,
    working: usize,
    waiting: usize,
    /// Of tenants that have something inside.
    lines: HashMap<Box<str>, Line<W>>,
    /// The tenants that have somebody in line, in the order of their turns.
    order: VecDeque<Box<str>>,
    next_ticket: u64,
}

struct Line<W> {
    /// How many are inside, in line or not.
    inside: usize,
    waiting: VecDeque<(Ticket, W)>,
}

/// A place in a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ticket(u64);

impl<W> Turns<W> {
    /// So many inside, and so many of them worked on at once.
    pub fn new(inside_max: usize, at_once: usize) -> Self {
        Self {
            inside_max,
            inside: 0,
            at_once: at_once.max(1),
            working: 0,
            waiting: 0,
            lines: HashMap::new(),
            order: VecDeque::new(),
            next_ticket: 0,
        }
    }

    /// How many are inside.
    pub fn inside(&self) -> usize {
        self.inside
    }

    /// How many wait for their turn.
    pub fn waiting(&self) -> usize {
        self.waiting
    }

    /// Lets one of this tenant's in. `false`: there is no room for it.
    pub fn enter(&mut self, tenant: &str) -> bool {
        let free = self.inside_max.saturating_sub(self.inside);
        match self.lines.get_mut(tenant) {
            Some(line) if line.inside < free => line.inside = line.inside.saturating_add(1),
            None if free > 0 => {
                self.lines.insert(tenant.into(), Line { inside: 1, waiting: VecDeque::new() });
            }
            _ => return false,
        }
        self.inside = self.inside.saturating_add(1);
        true
    }

    /// One that was let in has gone, and is neither in line nor worked on.
    pub fn leave(&mut self, tenant: &str) {
        self.inside = self.inside.saturating_sub(1);
        if let Some(line) = self.lines.get_mut(tenant) {
            line.inside = line.inside.saturating_sub(1);
            if line.inside == 0 {
                self.lines.remove(tenant);
            }
        }
    }

    /// Whether one is worked on at once. Only where nobody waits is a place free.
    pub fn begin(&mut self) -> bool {
        let is_free = self.working < self.at_once;
        self.working = self.working.saturating_add(is_free.into());
        is_free
    }

    /// Puts one that was let in at the end of its tenant's line. `None`: it was not.
    pub fn wait(&mut self, tenant: &str, waiter: W) -> Option<Ticket> {
        let line = self.lines.get_mut(tenant)?;
        if line.waiting.is_empty() {
            self.order.push_back(tenant.into());
        }
        let ticket = Ticket(self.next_ticket);
        self.next_ticket = self.next_ticket.wrapping_add(1);
        line.waiting.push_back((ticket, waiter));
        self.waiting = self.waiting.saturating_add(1);
        Some(ticket)
    }

    /// One waits no more. `false`: its turn had come.
    pub fn give_up(&mut self, tenant: &str, ticket: Ticket) -> bool {
        let Some(line) = self.lines.get_mut(tenant) else { return false };
        // Tickets of a line rise.
        let Ok(place) = line.waiting.binary_search_by_key(&ticket.0, |(ticket, _)| ticket.0) else {
            return false;
        };
        line.waiting.remove(place);
        if line.waiting.is_empty() {
            self.order.retain(|waiting| **waiting != *tenant);
        }
        self.waiting = self.waiting.saturating_sub(1);
        true
    }

    /// One is worked on no more: whose turn it is now, if anybody waits.
    pub fn end(&mut self) -> Option<W> {
        let Some((tenant, line)) = self.order.pop_front().and_then(|tenant| {
            let line = self.lines.get_mut(&tenant)?;
            Some((tenant, line))
        }) else {
            self.working = self.working.saturating_sub(1);
            return None;
        };
        let next = line.waiting.pop_front();
        if !line.waiting.is_empty() {
            self.order.push_back(tenant);
        }
        self.waiting = self.waiting.saturating_sub(1);
        next.map(|(_, waiter)| waiter)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Lets one in and puts it in line.
    fn queue(turns: &mut Turns<(char, usize)>, tenant: &str, number: usize) -> Ticket {
        assert!(turns.enter(tenant));
        turns.wait(tenant, (tenant.chars().next().unwrap(), number)).unwrap()
    }

    #[test]
    fn a_flood_leaves_room_for_the_next_tenant_each_time() {
        let mut turns = Turns::<()>::new(12, 4);
        let fill = |turns: &mut Turns<()>, tenant: &str| (0..100).filter(|_| turns.enter(tenant)).count();
        assert_eq!(fill(&mut turns, "a"), 6, "half of what there is");
        assert_eq!(fill(&mut turns, "b"), 3, "half of what is left");
        assert_eq!(fill(&mut turns, "c"), 2);
        assert_eq!(fill(&mut turns, "d"), 1);
        assert_eq!((fill(&mut turns, "e"), turns.inside()), (0, 12));
        turns.leave("a");
        assert!(!turns.enter("a"), "it has more than are free");
        assert!(turns.enter("e"));
        assert!(!turns.enter("e"));
    }

    #[test]
    fn one_place_is_for_whoever_comes() {
        let mut turns = Turns::<()>::new(1, 1);
        assert!(turns.enter("a") && !turns.enter("a") && !turns.enter("b"));
        turns.leave("a");
        assert!(turns.enter("b"));
    }

    #[test]
    fn lines_are_served_in_turn() {
        let mut turns = Turns::new(100, 1);
        assert!(turns.begin() && !turns.begin());
        for number in 0..3 {
            queue(&mut turns, "a", number);
        }
        queue(&mut turns, "b", 0);
        queue(&mut turns, "c", 0);
        queue(&mut turns, "b", 1);
        assert_eq!(turns.waiting(), 6);
        let served: Vec<_> = std::iter::from_fn(|| turns.end()).collect();
        assert_eq!(served, [('a', 0), ('b', 0), ('c', 0), ('a', 1), ('b', 1), ('a', 2)]);
        assert_eq!((turns.waiting(), turns.begin(), turns.begin()), (0, true, false));
    }

    #[test]
    fn who_gives_up_is_not_called_and_who_was_called_knows() {
        let mut turns = Turns::new(100, 1);
        assert!(turns.begin());
        let first = queue(&mut turns, "a", 0);
        let second = queue(&mut turns, "a", 1);
        queue(&mut turns, "b", 0);
        assert!(turns.give_up("a", second) && !turns.give_up("a", second));
        assert_eq!(turns.end(), Some(('a', 0)));
        assert!(!turns.give_up("a", first), "its turn had come");
        assert_eq!(turns.end(), Some(('b', 0)));
        assert_eq!((turns.end(), turns.waiting()), (None, 0));
    }

    #[test]
    fn who_was_not_let_in_has_no_line() {
        assert_eq!(Turns::new(1, 1).wait("a", ()), None);
    }

    proptest! {
        /// Whatever comes: no more inside or worked on than may be, nobody forgotten, and no place free while one waits.
        #[test]
        fn the_bounds_hold_and_nobody_is_forgotten(
            inside_max in 1usize..12,
            at_once in 1usize..5,
            steps in prop::collection::vec((0u8..4, 0usize..3, any::<prop::sample::Index>()), 0..200),
        ) {
            let tenants = ["a", "b", "c"];
            let mut turns = Turns::new(inside_max, at_once);
            // Those in line, with what they will be told; and those that are worked on.
            let mut in_line: Vec<(usize, Ticket, usize)> = Vec::new();
            let mut working: Vec<usize> = Vec::new();
            for (number, (step, tenant, which)) in steps.into_iter().enumerate() {
                match step {
                    0 | 1 if turns.enter(tenants[tenant]) => match turns.begin() {
                        true => working.push(tenant),
                        false => {
                            in_line.push((tenant, turns.wait(tenants[tenant], number).unwrap(), number));
                        }
                    },
                    2 if !working.is_empty() => {
                        let tenant = working.remove(which.index(working.len()));
                        if let Some(next) = turns.end() {
                            let place = in_line.iter().position(|(_, _, number)| *number == next).unwrap();
                            working.push(in_line.remove(place).0);
                        }
                        turns.leave(tenants[tenant]);
                    }
                    3 if !in_line.is_empty() => {
                        let (tenant, ticket, _) = in_line.remove(which.index(in_line.len()));
                        prop_assert!(turns.give_up(tenants[tenant], ticket));
                        turns.leave(tenants[tenant]);
                    }
                    _ => {}
                }
                prop_assert_eq!(turns.inside(), working.len() + in_line.len());
                prop_assert_eq!(turns.waiting(), in_line.len());
                prop_assert!(turns.inside() <= inside_max && working.len() <= at_once);
                prop_assert!(in_line.is_empty() || working.len() == at_once);
            }
        }
    }
}
