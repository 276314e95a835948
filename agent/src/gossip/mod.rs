//! Gossip: who owns which session.
