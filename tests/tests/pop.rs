//! A whole POP on real packets: what Homing claims, each claim in a small size.
//! Needs root.

mod pop {
    mod agents;
    mod claims;
    mod common;
    mod join;
    mod kernels;
    mod keys;
    mod load;
    mod sessions;
    mod strangers;
    mod tables;
}
