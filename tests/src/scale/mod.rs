//! A POP at the size the design is meant for, simulated: what gossip costs there
//! and how soon a fault is over.

mod histogram;
mod pop;

pub use self::{
    histogram::Histogram,
    pop::{Measured, Pop, Size},
};
