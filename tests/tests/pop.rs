//! A whole POP on real packets: what Homing claims, each claim in a small size.
//! Needs root.

mod pop {
    mod agents;
    mod asks;
    mod bases;
    mod bulk;
    mod capture;
    mod claims;
    mod clocks;
    mod common;
    mod datagrams;
    mod drain;
    mod drained;
    mod edge;
    mod explain;
    mod flood;
    mod flows;
    mod fragments;
    mod hangs;
    mod join;
    mod kernels;
    mod keys;
    mod lines;
    mod load;
    mod messages;
    mod mtu;
    mod narrow;
    mod offloads;
    mod quic;
    mod reborn;
    mod refused;
    mod reload;
    mod rendezvous;
    mod reused;
    mod routes;
    mod sessions;
    mod strangers;
    mod tables;
    mod watch;
}
