//! The XDP program, packet in and packet out. One file per topic.

mod packets {
    mod common;
    mod cut;
    mod egress;
    //mod every_outcome;
    mod forward;
    mod local;
    mod parse;
    mod strip;
    mod too_big;
}
