//! A bound on lines of the log that somebody else can bring about as often as he likes:
//! an application, a session, the kernel, a member of the POP. A flood of one kind is cut
//! to [`LINES_PER_SECOND`], or to what [`Bound::per_second`] says; what is left out is
//! counted, and told in the next line that is not. (What strangers can bring about, `gossip`
//! and the carriers bound more tightly by themselves.)

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// Lines of one kind that are written in a second at most, unless more is said to be well.
pub const LINES_PER_SECOND: u32 = 10;

/// How much of one kind may be written in the present second.
#[derive(Debug)]
pub struct Bound {
    lines_max: u32,
    second: Mutex<Second>,
}

#[derive(Debug)]
struct Second {
    began: Option<Instant>,
    lines: u32,
    left_out: u64,
}

impl Default for Bound {
    fn default() -> Self {
        Self::new()
    }
}

impl Bound {
    /// Nothing has been written yet.
    pub const fn new() -> Self {
        Self::per_second(LINES_PER_SECOND)
    }

    /// The same, of so many lines in a second.
    pub const fn per_second(lines_max: u32) -> Self {
        Self {
            lines_max,
            second: Mutex::new(Second {
                began: None,
                lines: 0,
                left_out: 0,
            }),
        }
    }

    /// Takes a line: gives the number of lines left out before it, or nothing if this one
    /// is to be left out, too.
    pub fn take(&self) -> Option<u64> {
        self.take_at(Instant::now())
    }

    fn take_at(&self, now: Instant) -> Option<u64> {
        let mut second = self.second.lock().unwrap_or_else(PoisonError::into_inner);
        let began = *second.began.get_or_insert(now);
        if now.duration_since(began) >= Duration::from_secs(1) {
            second.began = Some(now);
            second.lines = 0;
        }
        if second.lines == self.lines_max {
            second.left_out += 1;
            return None;
        }
        second.lines += 1;
        Some(std::mem::take(&mut second.left_out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_cut_and_what_is_left_out_is_counted() {
        let bound = Bound::new();
        let start = Instant::now();
        for _ in 0..LINES_PER_SECOND {
            assert_eq!(bound.take_at(start), Some(0));
        }
        for _ in 0..7 {
            assert_eq!(bound.take_at(start), None);
        }
        assert_eq!(bound.take_at(start + Duration::from_secs(1)), Some(7));
        assert_eq!(bound.take_at(start + Duration::from_secs(1)), Some(0));
    }
}
