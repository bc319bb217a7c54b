//! The whole pipeline on real parts, and what must hold for the workspace as a whole.

mod away;
mod depcheck;
mod example_config;
mod herd;
mod kills;
mod lab;
mod large;
mod lies;
mod pull;
mod trace;
