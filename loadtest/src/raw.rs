//! The bus and the store without hydrant: what they can do at most, as the limit of the parts that
//! wait for them.

pub mod disk;
pub mod nats;
pub mod s3;
