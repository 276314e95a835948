//! The fast path as the agent sees it: programs, maps, links, next hops.
