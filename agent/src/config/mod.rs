//! Configuration: a TOML file, read strictly.
