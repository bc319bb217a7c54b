//! One upstream read per blob: start, follow, finish.
