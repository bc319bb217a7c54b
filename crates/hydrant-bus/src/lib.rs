//! JetStream and KV: topology, publish, consume, acks, the resource document.
