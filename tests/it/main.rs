//! The whole pipeline on real parts, and what must hold for the workspace as a whole.

mod depcheck;
mod example_config;
