//! A POP on a bad network: what Homing promises holds when gossip is lost, doubled,
//! held, cut off, forged and replayed. Needs root.

mod faults {
    mod common;
    mod forger;
    mod forgery;
    mod gossip;
    mod ways;
}
