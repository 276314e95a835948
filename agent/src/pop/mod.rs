//! The POP: its key, its members, and datagrams that can be trusted.
