//! What the allocator is told, so that memory given back is given back.
//!
//! Parts of blobs are 8 MiB, and glibc would soon serve such sizes from its heaps, where they leave
//! holes: measured with a 2 GiB layer, the peak is then about twice what is in use. Buffers of
//! connections and pieces of blobs, some hundred KiB each, are the opposite: there are thousands a
//! second of them, and mapping each anew had the kernel clear every page of it again, which was most
//! of the time a cold pull took.

/// Sizes from here on are mapped by themselves and unmapped when freed.
const MAPPED_FROM: libc::c_int = 1024 * 1024;
/// What each heap keeps at its end for the next buffers, in bytes. More is given back.
const KEPT: libc::c_int = 4 * 1024 * 1024;
/// Heaps shared by all threads, instead of eight per core.
const HEAPS: libc::c_int = 4;

/// To be called first thing in `main`, before there are threads.
#[allow(unsafe_code)]
pub fn tune() {
    #[cfg(target_env = "gnu")]
    // SAFETY: `mallopt` only sets parameters of the allocator, and no other thread runs yet.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, MAPPED_FROM);
        libc::mallopt(libc::M_TRIM_THRESHOLD, KEPT);
        libc::mallopt(libc::M_ARENA_MAX, HEAPS);
    }
}
