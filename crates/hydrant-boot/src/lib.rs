//! Start and stop of a process: settings, signals, drain, the admin port, retry schedules.
