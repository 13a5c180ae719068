//! Whose request is worked on next: tenants take turns, so that the flood of one is a line of its own and nobody else's.
//!
//! Two numbers. So many requests may be inside, whatever they do there: arrive, wait, be worked on. A tenant gets one more
//! of these places as long as it has fewer than are still free: alone it has half of them, n of them that flood have each
//! one part of n + 1, and as much is left for whoever comes next. And so many are worked on at once; the others wait, each
//! in its tenant's line. A place that becomes free goes to the tenant that has the fewest of them: what is shared is the
//! places that are held, not those that are given out, so that who holds one for long gets the next one late.

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
    /// The tenants that have somebody in line, in the order of their turns among those that have as many places.
    order: VecDeque<Box<str>>,
    next_ticket: u64,
}

struct Line<W> {
    /// How many are inside, in line or not.
    inside: usize,
    /// How many of them are worked on.
    working: usize,
    waiting: VecDeque<(Ticket, W)>,
}

impl<W> Line<W> {
    /// Nothing of it is there any more.
    fn is_over(&self) -> bool {
        self.inside == 0 && self.working == 0
    }
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
                self.lines.insert(tenant.into(), Line { inside: 1, working: 0, waiting: VecDeque::new() });
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
            if line.is_over() {
                self.lines.remove(tenant);
            }
        }
    }

    /// Whether one that was let in is worked on at once. Only where nobody waits is a place free.
    pub fn begin(&mut self, tenant: &str) -> bool {
        let Some(line) = self.lines.get_mut(tenant).filter(|_| self.working < self.at_once) else {
            return false;
        };
        line.working = line.working.saturating_add(1);
        self.working = self.working.saturating_add(1);
        true
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

    /// One of this tenant's is worked on no more: whose turn it is now, if anybody waits.
    pub fn end(&mut self, tenant: &str) -> Option<W> {
        if let Some(line) = self.lines.get_mut(tenant) {
            line.working = line.working.saturating_sub(1);
            if line.is_over() {
                self.lines.remove(tenant);
            }
        }
        let next = self.next();
        if next.is_none() {
            self.working = self.working.saturating_sub(1);
        }
        next
    }

    /// The first in the line of the tenant that has the fewest places; of several, of the one that waits longest for one.
    fn next(&mut self) -> Option<W> {
        let places = |tenant: &str| self.lines.get(tenant).map_or(0, |line| line.working);
        let (turn, _) = self.order.iter().enumerate().min_by_key(|(_, tenant)| places(tenant))?;
        let tenant = self.order.remove(turn)?;
        let line = self.lines.get_mut(&tenant)?;
        let (_, waiter) = line.waiting.pop_front()?;
        line.working = line.working.saturating_add(1);
        if !line.waiting.is_empty() {
            self.order.push_back(tenant);
        }
        self.waiting = self.waiting.saturating_sub(1);
        Some(waiter)
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

    /// One after the other, each when the one before has ended, beginning with the end of that tenant's.
    fn serve(turns: &mut Turns<(char, usize)>, first: char) -> Vec<(char, usize)> {
        let mut ends = first;
        let next = || {
            let next = turns.end(ends.to_string().as_str())?;
            ends = next.0;
            Some(next)
        };
        std::iter::from_fn(next).collect()
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
        assert!(turns.enter("d") && turns.begin("d") && !turns.begin("d"));
        for number in 0..3 {
            queue(&mut turns, "a", number);
        }
        queue(&mut turns, "b", 0);
        queue(&mut turns, "c", 0);
        queue(&mut turns, "b", 1);
        assert_eq!(turns.waiting(), 6);
        assert_eq!(serve(&mut turns, 'd'), [('a', 0), ('b', 0), ('c', 0), ('a', 1), ('b', 1), ('a', 2)]);
        assert_eq!((turns.waiting(), turns.begin("d"), turns.begin("d")), (0, true, false));
    }

    #[test]
    fn who_holds_its_places_for_long_gets_the_next_one_late() {
        let mut turns = Turns::new(1_000, 8);
        // One tenant has them all, and more in line: they wait for each other, and end one by one.
        for _ in 0..8 {
            assert!(turns.enter("slow") && turns.begin("slow"));
        }
        for number in 0..20 {
            queue(&mut turns, "slow", number);
            queue(&mut turns, "quick", number);
        }
        // Each that ends makes room for the other tenant, until they have as many.
        for number in 0..4 {
            assert_eq!(turns.end("slow"), Some(('q', number)));
        }
        // And then each keeps its share, whichever of them is quicker.
        for number in 4..12 {
            assert_eq!(turns.end("quick"), Some(('q', number)));
        }
        assert_eq!(turns.end("slow"), Some(('s', 0)));
        // Who comes now has the next place.
        queue(&mut turns, "third", 0);
        assert_eq!(turns.end("quick"), Some(('t', 0)));
    }

    #[test]
    fn a_place_outlives_its_tenants_stay() {
        let mut turns = Turns::<()>::new(10, 2);
        assert!(turns.enter("a") && turns.begin("a"));
        turns.leave("a");
        assert!(turns.enter("b") && turns.begin("b") && !turns.begin("b"));
        assert_eq!(turns.end("a"), None);
        assert!(turns.begin("b") && turns.lines.len() == 1);
    }

    #[test]
    fn who_gives_up_is_not_called_and_who_was_called_knows() {
        let mut turns = Turns::new(100, 1);
        assert!(turns.enter("d") && turns.begin("d"));
        let first = queue(&mut turns, "a", 0);
        let second = queue(&mut turns, "a", 1);
        queue(&mut turns, "b", 0);
        assert!(turns.give_up("a", second) && !turns.give_up("a", second));
        assert_eq!(turns.end("d"), Some(('a', 0)));
        assert!(!turns.give_up("a", first), "its turn had come");
        assert_eq!(turns.end("a"), Some(('b', 0)));
        assert_eq!((turns.end("b"), turns.waiting()), (None, 0));
    }

    #[test]
    fn who_was_not_let_in_has_no_line() {
        assert_eq!(Turns::new(1, 1).wait("a", ()), None);
    }

    proptest! {
        /// Whatever comes: no more inside or worked on than may be, nobody forgotten, no place free while one
        /// waits, and none for who has more of them than another that waits.
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
                    0 | 1 if turns.enter(tenants[tenant]) => match turns.begin(tenants[tenant]) {
                        true => working.push(tenant),
                        false => {
                            in_line.push((tenant, turns.wait(tenants[tenant], number).unwrap(), number));
                        }
                    },
                    2 if !working.is_empty() => {
                        let tenant = working.remove(which.index(working.len()));
                        if let Some(next) = turns.end(tenants[tenant]) {
                            let place = in_line.iter().position(|(_, _, number)| *number == next).unwrap();
                            let places = |tenant| working.iter().filter(|other| **other == tenant).count();
                            let fewest = in_line.iter().map(|(tenant, ..)| places(*tenant)).min();
                            prop_assert_eq!(Some(places(in_line[place].0)), fewest);
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
