//! The whole pipeline on real parts.
