//! `homing top` and `homing stats --watch` in a real terminal, on a host of a real POP: what
//! they show of it, what keys do, and that the terminal is given back. Needs root.

mod top {
    mod live;
    mod terminal;
    mod terminals;
    mod watched;
}
