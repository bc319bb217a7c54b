//! What the allocator is told, so that memory given back is given back.
//!
//! Parts of blobs are 8 MiB, and glibc would soon serve such sizes from its heaps, where they leave
//! holes: measured with a 2 GiB layer, the peak is then about twice what is in use.

/// Sizes from here on are mapped by themselves and unmapped when freed.
const MAPPED_FROM: libc::c_int = 128 * 1024;
/// Heaps shared by all threads, instead of eight per core.
const HEAPS: libc::c_int = 4;

/// To be called first thing in `main`, before there are threads.
#[allow(unsafe_code)]
pub fn tune() {
    #[cfg(target_env = "gnu")]
    // SAFETY: `mallopt` only sets parameters of the allocator, and no other thread runs yet.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, MAPPED_FROM);
        libc::mallopt(libc::M_ARENA_MAX, HEAPS);
    }
}
