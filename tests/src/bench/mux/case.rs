//! What is sent, and over how many connections: the same for every transport.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::message::SHORT;

/// The sizes of messages.
pub const SIZES: [usize; 4] = [SHORT, KIB, 64 * KIB, MIB];
/// Connections where there are many.
pub const MANY: usize = 64;

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;

/// A batch has so many messages, where they are small.
pub const BATCH: usize = 64;

/// What a client does.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Work {
    /// Sends as fast as it can, one message at a time.
    OneWay,
    /// Sends as fast as it can, [`BATCH`] messages at a time.
    OneWayBatched,
    /// Sends a message on each connection once the last one has come back.
    RequestReply,
    /// Sends large messages as fast as it can, and now and then a small one: over the
    /// same connection if there is one, over a second one if there are two.
    SmallUnderBulk,
}

/// A client's work with one size of messages.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Case {
    /// What it does.
    pub work: Work,
    /// The length of a message, in bytes; of the large ones, where there are two sizes.
    pub len: usize,
    /// Over so many connections.
    pub connections: usize,
}

impl Case {
    /// All that are measured.
    pub fn all() -> Vec<Self> {
        let mut cases = Vec::new();
        let mut add = |work, len, connections| {
            cases.push(Self {
                work,
                len,
                connections,
            });
        };
        for connections in [1, MANY] {
            for len in SIZES {
                add(Work::OneWay, len, connections);
                if len * BATCH < MIB {
                    add(Work::OneWayBatched, len, connections);
                }
                add(Work::RequestReply, len, connections);
            }
        }
        for connections in [1, 2] {
            add(Work::SmallUnderBulk, MIB, connections);
        }
        cases
    }

    /// How many streams of messages there are, each numbered for itself.
    pub fn streams(&self) -> usize {
        match self.work {
            Work::SmallUnderBulk => 2,
            _ => self.connections,
        }
    }

    /// The length of a stream's messages.
    pub fn len_of(&self, stream: usize) -> usize {
        match self.work {
            Work::SmallUnderBulk if stream == SMALL => SHORT,
            _ => self.len,
        }
    }
}

/// The stream of small messages under bulk.
pub const SMALL: usize = 0;
/// The stream of large ones.
pub const BULK: usize = 1;

/// As a name of a field: `one_way_64b`, `request_reply_1kb_x64`.
impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let size = match self.len {
            len if len >= MIB => format!("{}mb", len / MIB),
            len if len >= KIB => format!("{}kb", len / KIB),
            len => format!("{len}b"),
        };
        match (self.work, self.connections) {
            (Work::OneWay, _) => write!(f, "one_way_{size}")?,
            (Work::OneWayBatched, _) => write!(f, "one_way_{size}_batched")?,
            (Work::RequestReply, _) => write!(f, "request_reply_{size}")?,
            (Work::SmallUnderBulk, 1) => return f.write_str("small_under_bulk"),
            (Work::SmallUnderBulk, _) => return f.write_str("small_under_bulk_apart"),
        }
        match self.connections {
            1 => Ok(()),
            many => write!(f, "_x{many}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_case_has_a_name_of_its_own() {
        let names: Vec<_> = Case::all().iter().map(Case::to_string).collect();
        let distinct: HashSet<_> = names.iter().collect();
        assert_eq!(distinct.len(), names.len(), "{names:?}");
        for name in [
            "one_way_64b",
            "one_way_64b_batched",
            "one_way_1mb",
            "request_reply_64kb_x64",
            "small_under_bulk",
            "small_under_bulk_apart",
        ] {
            assert!(distinct.contains(&name.to_owned()), "{name}: {names:?}");
        }
    }
}
