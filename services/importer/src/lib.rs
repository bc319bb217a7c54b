//! The import worker: a job from the queue made durable in storage.
