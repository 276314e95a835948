//! The admin socket: what the agent tells operators.
