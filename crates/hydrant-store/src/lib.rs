//! Object storage: keys, verified writes, reads, records with compare-and-set.
