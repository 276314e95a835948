//! A filter of the names of services that a host offers: 64 bits that its membership record
//! has room for. It names no service, but says of most that they are not offered.

use std::hash::Hasher as _;

use siphasher::sip::SipHasher13;

/// Bits of a name.
const BITS: u32 = 3;

/// The bits of a name.
fn bits(name: &str) -> u64 {
    let mut hasher = SipHasher13::new();
    hasher.write(name.as_bytes());
    let hash = hasher.finish();
    (0..BITS).fold(0, |bits, which| bits | 1 << (hash >> (8 * which) & 63))
}

/// The filter of these names.
pub fn of<'a>(names: impl Iterator<Item = &'a str>) -> u64 {
    names.fold(0, |filter, name| filter | bits(name))
}

/// Whether a name may be among those of a filter.
pub fn may_be_in(filter: u64, name: &str) -> bool {
    filter & bits(name) == bits(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_of_a_filter_is_found_and_few_others_are() {
        let names: Vec<_> = (0..8).map(|number| format!("service {number}")).collect();
        let filter = of(names.iter().map(String::as_str));
        assert!(names.iter().all(|name| may_be_in(filter, name)));
        let others = (0..10_000).map(|number| format!("other {number}"));
        let found = others.filter(|name| may_be_in(filter, name)).count();
        // (1 - e^(-3 * 8 / 64))^3 of 10,000 is 308.
        assert!((1..600).contains(&found), "{found}");
    }
}
