//! What is measured of a trial, in which unit, and which direction is better.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The values of one trial.
pub type Values = BTreeMap<Metric, f64>;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Metric {
    Wall,
    FirstByte,
    Throughput,
    Rate,
    P50,
    P99,
    P999,
    /// Highest.
    Slowest,
    /// Upstream bytes by image bytes.
    Amplification,
    /// GETs of what was read most often.
    MostGets,
    /// GETs of a part of a blob.
    RangedGets,
    /// GETs of blobs that the upstream answered at the same time, at most.
    PeakOpen,
    UpstreamRequests,
    Errors,
    Unserved,
    /// Sent noticeably later than it was due.
    Late,
    /// How often something was done.
    Count,
    /// Herds that pulled, one after the other.
    Herds,
    CpuPerGb,
    Cpu,
    /// CPU seconds per second.
    Cores,
    PeakMemory,
    Memory,
    Descriptors,
    Disk,
    Queue,
    /// Writes that were begun and neither ended nor removed.
    Unfinished,
    Messages,
    /// Messages that the bus wrote into streams on disk.
    Stored,
    /// Of the nats-server.
    BusMemory,
    /// Of one core; what the load generator itself took.
    ClientCpu,
    /// Of all cores of the machine.
    Busy,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Better {
    Lower,
    Higher,
}

impl Metric {
    /// What it is called in a table, with its unit.
    pub fn title(self) -> &'static str {
        match self {
            Self::Wall => "wall s",
            Self::FirstByte => "first byte ms",
            Self::Throughput => "MB/s",
            Self::Rate => "per s",
            Self::P50 => "p50 ms",
            Self::P99 => "p99 ms",
            Self::P999 => "p99.9 ms",
            Self::Slowest => "max ms",
            Self::Amplification => "upstream/image bytes",
            Self::MostGets => "GETs of one blob",
            Self::RangedGets => "ranged GETs",
            Self::PeakOpen => "open together",
            Self::UpstreamRequests => "upstream requests",
            Self::Errors => "errors",
            Self::Unserved => "unserved",
            Self::Late => "sent late",
            Self::Count => "count",
            Self::Herds => "herds",
            Self::CpuPerGb => "CPU s/GB",
            Self::Cpu => "CPU s",
            Self::Cores => "cores",
            Self::PeakMemory => "peak MiB",
            Self::Memory => "memory MiB",
            Self::Descriptors => "open files",
            Self::Disk => "scratch MiB",
            Self::Queue => "queue",
            Self::Unfinished => "unfinished writes",
            Self::Messages => "bus messages/s",
            Self::Stored => "stored messages/s",
            Self::BusMemory => "bus MiB",
            Self::ClientCpu => "client cores",
            Self::Busy => "machine busy",
        }
    }

    pub fn better(self) -> Better {
        match self {
            Self::Throughput | Self::Rate => Better::Higher,
            Self::PeakOpen | Self::Count | Self::Herds => Better::Higher,
            _ => Better::Lower,
        }
    }
}
