//! The values labels may have. Each is an enum, so their number is known when this is compiled.

macro_rules! label {
    ($(#[$about:meta])* $name:ident { $($(#[$case_about:meta])* $case:ident = $text:literal),+ $(,)? }) => {
        $(#[$about])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum $name {
            $($(#[$case_about])* $case),+
        }

        impl $name {
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$case => $text),+
                }
            }
        }
    };
}

label! {
    /// What a client pulled.
    PullKind { Manifest = "manifest", Blob = "blob" }
}

label! {
    /// How a pull was served.
    PullOutcome {
        /// From storage.
        Hit = "hit",
        /// From the upstream.
        Miss = "miss",
        /// From a flight somebody else began.
        Joined = "joined",
        /// From storage, past its freshness, because the upstream could not tell.
        Stale = "stale",
        Error = "error",
    }
}

label! {
    /// What became of a miss on its way to the queue.
    MissOutcome {
        /// Its job is on the queue.
        Queued = "queued",
        /// The miss log did not take it; its job was published all the same.
        Unrecorded = "unrecorded",
        /// Too many wait. The next pull makes it again.
        Dropped = "dropped",
    }
}

label! {
    /// The part a process takes in a flight.
    FlightPart {
        /// Fetches from the upstream and stores, for the whole cluster.
        Lead = "lead",
        /// Reads from the process that leads.
        Follow = "follow",
        /// Goes on where a leader that is gone stopped.
        TakeOver = "take-over",
        /// Fetches for itself: the bus or the leader cannot be reached.
        Alone = "alone",
        /// Straight from the upstream to one client, for want of spool space.
        Pass = "pass",
    }
}

label! {
    /// What became of a range that a client wanted long before the flight came to it.
    FarOutcome {
        /// Fetched as that range.
        Fetched = "fetched",
        /// Asked for in vain; it waits for the flight.
        Failed = "failed",
        /// Not asked for, because it is long, enough was, or for want of room; it waits for the
        /// flight.
        Refused = "refused",
    }
}

label! {
    /// What an upstream was asked for.
    RequestKind {
        ManifestHead = "manifest-head",
        Manifest = "manifest",
        BlobHead = "blob-head",
        Blob = "blob",
        Tags = "tags",
        Token = "token",
        Ping = "ping",
    }
}

label! {
    /// Why an upstream was not asked.
    SpareReason {
        Breaker = "breaker",
        Quota = "quota",
        UnknownNames = "unknown-names",
        Queue = "queue",
    }
}

label! {
    /// The circuit breaker of an upstream.
    BreakerState { Closed = "closed", HalfOpen = "half-open", Open = "open" }
}

impl BreakerState {
    /// Closed 0, half open 1, open 2.
    pub(super) const fn level(self) -> u64 {
        match self {
            Self::Closed => 0,
            Self::HalfOpen => 1,
            Self::Open => 2,
        }
    }
}

label! {
    /// How a job was settled.
    JobVerdict {
        Done = "done",
        Obsolete = "obsolete",
        Later = "later",
        Dead = "dead",
        Malformed = "malformed",
        /// The process stopped before the handler did; another one will take it.
        Returned = "returned",
    }
}

label! {
    /// How one attempt of a webhook delivery ended.
    DeliveryOutcome {
        Delivered = "delivered",
        Retried = "retried",
        DeadLettered = "dead-lettered",
        /// The endpoint does not want this event, or is disabled.
        Skipped = "skipped",
    }
}

label! {
    /// What the object store was asked.
    StoreOperation {
        Get = "get",
        Head = "head",
        Put = "put",
        Delete = "delete",
        List = "list",
        Upload = "upload",
        Complete = "complete",
        Abort = "abort",
        Presign = "presign",
    }
}

label! {
    /// What the object store answered.
    StoreOutcome {
        Ok = "ok",
        Missing = "missing",
        Conflict = "conflict",
        Throttled = "throttled",
        Unavailable = "unavailable",
        Corrupt = "corrupt",
        Error = "error",
    }
}

label! {
    /// What became of a message given to the bus.
    PublishOutcome {
        Sent = "sent",
        /// The same job is queued or running.
        Duplicate = "duplicate",
        Full = "full",
        /// No answer: it may be on the bus or not.
        Unknown = "unknown",
        Refused = "refused",
    }
}
