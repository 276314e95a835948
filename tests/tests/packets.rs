//! The XDP program, packet in and packet out. One file per topic.

mod packets {
    mod ask;
    mod common;
    mod cut;
    mod echo;
    mod egress;
    mod every_outcome;
    mod flows;
    mod forward;
    mod fragments;
    mod headers;
    mod local;
    mod loops;
    mod moving;
    mod order;
    mod parse;
    mod related;
    mod strip;
    mod too_big;
}
