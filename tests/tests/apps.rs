//! Applications that take part in moves: the examples of `client/`, each a process of its
//! own, with an agent's end that stands in for a whole agent. The moves themselves are
//! left out: what is exported stays where it is, and what is imported is a connection
//! that the test makes with the application's socket.

mod apps {
    mod common;
    mod driver;
    mod ends;
    mod moves;
    mod restarts;
}
