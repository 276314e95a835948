//! The XDP program, packet in and packet out.

mod packets {
    mod forward;
}
