//! The package and its unit on a host whose first process is systemd, in a root of its own
//! that is checked to be contained first. Needs root, and Debian's tools.

mod systemd {
    mod common;
    mod contained;
    mod package;
    mod unit;
}
