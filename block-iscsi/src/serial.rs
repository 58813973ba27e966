//! Serial numbers of 32 bits that wrap around (RFC 1982; RFC 7143, section 4.2.2).
//!
//! CmdSN, StatSN, DataSN and R2TSN are such numbers. Of two of them one is before the other if it
//! is reached by going back fewer than 2^31 steps. Two that are 2^31 apart have no order. The
//! order is not transitive, so [`Serial`] is not `Ord`.

use std::cmp::Ordering;
use std::fmt;

const HALF: u32 = 1 << 31;

/// A serial number.
#[derive(Copy, Clone, PartialEq, Eq, Hash, Default)]
pub struct Serial(u32);

impl Serial {
    /// The serial number that stands as `value` on the wire.
    pub const fn new(value: u32) -> Self {
        Self(value)
    }

    /// What stands on the wire.
    pub const fn value(self) -> u32 {
        self.0
    }

    /// The number after this one; 0 follows 2^32 - 1.
    #[must_use]
    pub const fn next(self) -> Self {
        self.plus(1)
    }

    /// The number `steps` after this one. It compares as greater if `0 < steps < 1 << 31`.
    #[must_use]
    pub const fn plus(self, steps: u32) -> Self {
        Self(self.0.wrapping_add(steps))
    }

    /// The number `steps` before this one.
    #[must_use]
    pub const fn minus(self, steps: u32) -> Self {
        Self(self.0.wrapping_sub(steps))
    }

    /// How the two compare (RFC 1982, section 3.2); `None` if they are 2^31 apart.
    pub const fn compare(self, other: Self) -> Option<Ordering> {
        match self.0.wrapping_sub(other.0) {
            0 => Some(Ordering::Equal),
            HALF => None,
            steps if steps < HALF => Some(Ordering::Greater),
            _ => Some(Ordering::Less),
        }
    }

    /// Whether this number comes before `other`.
    pub const fn is_before(self, other: Self) -> bool {
        matches!(self.compare(other), Some(Ordering::Less))
    }

    /// Whether this number comes after `other`.
    pub const fn is_after(self, other: Self) -> bool {
        matches!(self.compare(other), Some(Ordering::Greater))
    }

    /// How many steps lead from `earlier` to this number; `None` if it is not at or before it.
    pub const fn steps_from(self, earlier: Self) -> Option<u32> {
        match self.0.wrapping_sub(earlier.0) {
            steps if steps < HALF => Some(steps),
            _ => None,
        }
    }
}

impl fmt::Debug for Serial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Serial({:#x})", self.0)
    }
}

impl fmt::Display for Serial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// Which command numbers the target takes: from ExpCmdSN to MaxCmdSN, both included.
///
/// Invariant: `max` is not before `exp - 1`, so there are 0 to 2^31 - 1 numbers in it.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct CommandWindow {
    exp: Serial,
    max: Serial,
}

impl CommandWindow {
    /// The closed window before `exp`.
    pub const fn closed(exp: Serial) -> Self {
        Self { exp, max: exp.minus(1) }
    }

    /// The first number that the target has not yet seen.
    pub const fn exp(self) -> Serial {
        self.exp
    }

    /// The last number that the target takes.
    pub const fn max(self) -> Serial {
        self.max
    }

    /// How many commands may be sent if the next one has the number `next`. 0 if `next` is not in
    /// the window.
    pub const fn room(self, next: Serial) -> u32 {
        if !self.contains(next) {
            return 0;
        }
        match self.max.plus(1).steps_from(next) {
            Some(count) => count,
            None => 0,
        }
    }

    /// Whether a command of this number may be sent.
    pub const fn contains(self, cmd_sn: Serial) -> bool {
        let from_exp = cmd_sn.0.wrapping_sub(self.exp.0);
        from_exp < self.max.0.wrapping_sub(self.exp.0).wrapping_add(1)
    }

    /// Takes ExpCmdSN and MaxCmdSN of a PDU from the target. Neither goes back, so that PDUs
    /// which overtook others change nothing; a pair with MaxCmdSN before ExpCmdSN - 1, and one that
    /// would make the window longer than 2^31 - 1, is ignored as a whole.
    pub const fn update(&mut self, exp: Serial, max: Serial) {
        if max.steps_from(exp.minus(1)).is_none() {
            return;
        }
        let exp = if exp.is_after(self.exp) { exp } else { self.exp };
        let max = if max.is_after(self.max) { max } else { self.max };
        if max.steps_from(exp.minus(1)).is_some() {
            *self = Self { exp, max };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The order as a walk: from `a` to `b` on the circle, in 64 bits.
    fn slow_compare(a: u32, b: u32) -> Option<Ordering> {
        let forward = (u64::from(b) + (1 << 32) - u64::from(a)) % (1 << 32);
        match forward.cmp(&(1 << 31)) {
            _ if forward == 0 => Some(Ordering::Equal),
            Ordering::Less => Some(Ordering::Less),
            Ordering::Equal => None,
            Ordering::Greater => Some(Ordering::Greater),
        }
    }

    fn edges() -> impl Strategy<Value = u32> {
        let edge = prop::sample::select(vec![0, 1, HALF - 1, HALF, HALF + 1, u32::MAX]);
        prop_oneof![any::<u32>(), (edge, 0..3_u32).prop_map(|(e, d)| e.wrapping_add(d))]
    }

    proptest! {
        #[test]
        fn the_order_is_that_of_a_walk_around_the_circle(a in edges(), b in edges()) {
            let (left, right) = (Serial::new(a), Serial::new(b));
            prop_assert_eq!(left.compare(right), slow_compare(a, b));
            prop_assert_eq!(left.is_before(right), right.is_after(left));
            let steps = right.steps_from(left);
            prop_assert_eq!(steps.is_some(), left == right || left.is_before(right));
            if let Some(steps) = steps {
                prop_assert_eq!(left.plus(steps), right);
                prop_assert_eq!(right.minus(steps), left);
            }
        }

        #[test]
        fn adding_less_than_half_of_the_circle_makes_greater(a in edges(), n in 1..HALF) {
            prop_assert!(Serial::new(a).plus(n).is_after(Serial::new(a)));
        }

        #[test]
        fn a_window_holds_what_counting_says(exp in edges(), len in 0..40_u32, at in 0..60_u32) {
            let mut window = CommandWindow::closed(Serial::new(exp));
            prop_assert_eq!(window.room(Serial::new(exp)), 0);
            window.update(Serial::new(exp), Serial::new(exp).plus(len).minus(1));
            let next = Serial::new(exp).plus(at).minus(10);
            let inside = (10..10 + len).contains(&at);
            prop_assert_eq!(window.contains(next), inside);
            prop_assert_eq!(window.room(next), if inside { 10 + len - at } else { 0 });
        }

        #[test]
        fn a_window_never_goes_back(pairs in prop::collection::vec((edges(), edges()), 1..40)) {
            let mut window = CommandWindow::closed(Serial::new(pairs[0].0));
            for (exp, max) in pairs {
                let before = window;
                window.update(Serial::new(exp), Serial::new(max));
                prop_assert!(!window.exp().is_before(before.exp()));
                prop_assert!(!window.max().is_before(before.max()));
                prop_assert!(window.max().steps_from(window.exp().minus(1)).is_some());
            }
        }
    }

    #[test]
    fn a_window_reaches_over_the_end_of_the_numbers() {
        let mut window = CommandWindow::closed(Serial::new(u32::MAX));
        window.update(Serial::new(u32::MAX), Serial::new(1));
        assert_eq!(window.room(Serial::new(u32::MAX)), 3);
        assert_eq!(window.room(Serial::new(1)), 1);
        assert!(!window.contains(Serial::new(2)));
        // A PDU that was overtaken.
        window.update(Serial::new(u32::MAX), Serial::new(0));
        assert_eq!(window.max(), Serial::new(1));
        // MaxCmdSN before ExpCmdSN - 1.
        window.update(Serial::new(5), Serial::new(3));
        assert_eq!(window.exp(), Serial::new(u32::MAX));
    }

    #[test]
    fn the_longest_window_has_one_less_than_half_of_the_numbers() {
        let mut window = CommandWindow::closed(Serial::new(7));
        window.update(Serial::new(7), Serial::new(7).plus(HALF - 2));
        assert_eq!(window.room(Serial::new(7)), HALF - 1);
        window.update(Serial::new(7), Serial::new(7).plus(HALF - 1));
        assert_eq!(window.room(Serial::new(7)), HALF - 1);
    }
}
