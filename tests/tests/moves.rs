//! Sessions that move between the hosts of a POP of real agents, applications and
//! clients: whatever happens meanwhile, the client notices nothing. Needs root.
//!
//! In each test a capture shows who answered the client, when, and with what.

mod moves {
    mod apart;
    mod bulk;
    mod client;
    mod common;
    mod cuts;
    mod disputes;
    mod ends;
    mod holders;
    mod killed;
    mod options;
    mod power;
    mod states;
    mod steps;
    mod walks;
}
