//! What a set of claims amounts to: their number, and a digest that does not
//! depend on their order.

use homing_common::session::SessionId;

/// Count and digest of a set of claims of one origin. Two hosts whose tallies of
/// an origin agree hold the same claims of it, but for a chance of 2^-64.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Tally {
    /// How many claims.
    pub count: u64,
    /// The wrapping sum of their mixed ids and generations.
    pub digest: u64,
}

impl Tally {
    /// Adds a claim that is not in the set.
    pub fn add(&mut self, id: SessionId, generation: u16) {
        self.count += 1;
        self.digest = self.digest.wrapping_add(mix(id, generation));
    }

    /// Removes a claim that is in the set.
    pub fn remove(&mut self, id: SessionId, generation: u16) {
        self.count -= 1;
        self.digest = self.digest.wrapping_sub(mix(id, generation));
    }
}

/// The finalizer of MurmurHash3 (Appleby): every bit of the input changes half
/// of the output, so that sums of different sets differ.
fn mix(id: SessionId, generation: u16) -> u64 {
    let mut x = id.0 ^ u64::from(generation).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    x = (x ^ x >> 33).wrapping_mul(0xff51_afd7_ed55_8ccd);
    x = (x ^ x >> 33).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    x ^ x >> 33
}
