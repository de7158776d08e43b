//! The usual gzip body, inflated in one go by libdeflate, in half the time that a stream of it takes.
//!
//! It has arrived whole, and is one member, undamaged, of a usual size. Any other is given back unread, and the stream of
//! [`super::decode`] says what it is. So this never decides that a body is wrong.

use std::ffi::c_void;
use std::ptr::NonNull;

use libdeflate_sys::{
    libdeflate_alloc_decompressor, libdeflate_decompressor, libdeflate_free_decompressor,
    libdeflate_gzip_decompress_ex, libdeflate_result_LIBDEFLATE_SUCCESS,
};

/// Bytes of text that are made at once: what usual result files have. An upload holds them until its rows are read.
const MOST: usize = 4 * 1024 * 1024;

/// The text of a body; `None` when it is not a usual one.
#[must_use]
pub fn gunzip(body: &[u8]) -> Option<Vec<u8>> {
    // How a member ends. Source: RFC 1952, section 2.3.1, ISIZE.
    let size = usize::try_from(u32::from_le_bytes(*body.last_chunk()?)).ok()?;
    if size == 0 || size > MOST {
        return None;
    }
    let mut text = Vec::with_capacity(size);
    let read = Decompressor::new()?.gzip(body, &mut text)?;
    (read == body.len() && text.len() == size).then_some(text)
}

/// libdeflate's own, which its safe bindings do not offer with the number of bytes that were read.
struct Decompressor(NonNull<libdeflate_decompressor>);

impl Decompressor {
    fn new() -> Option<Self> {
        // SAFETY: it has no preconditions, and gives null where there is no memory.
        NonNull::new(unsafe { libdeflate_alloc_decompressor() }).map(Self)
    }

    /// Appends the first member of `body` to `text`, if it is undamaged and `text` has room for it: the number of bytes read.
    fn gzip(&mut self, body: &[u8], text: &mut Vec<u8>) -> Option<usize> {
        let (mut read, mut made) = (0, 0);
        let from = body.as_ptr().cast::<c_void>();
        let room = text.spare_capacity_mut();
        let (to, most) = (room.as_mut_ptr().cast::<c_void>(), room.len());
        // SAFETY: the decompressor is ours alone; `from` and `to` are as long as is said, and live longer than the call, as do
        // the two numbers. It writes to `to` and reads nothing there but what it has written.
        let result = unsafe {
            libdeflate_gzip_decompress_ex(self.0.as_ptr(), from, body.len(), to, most, &raw mut read, &raw mut made)
        };
        (result == libdeflate_result_LIBDEFLATE_SUCCESS).then(|| {
            // SAFETY: so many bytes have been written behind those that were there.
            unsafe { text.set_len(text.len() + made) };
            read
        })
    }
}

impl Drop for Decompressor {
    fn drop(&mut self) {
        // SAFETY: it was allocated by its counterpart, and nobody has it any more.
        unsafe { libdeflate_free_decompressor(self.0.as_ptr()) }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::Compression;
    use flate2::write::GzEncoder;

    use super::*;

    fn gzip(text: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(text).expect("memory");
        encoder.finish().expect("memory")
    }

    #[test]
    fn a_member_comes_back_as_it_was() {
        for text in [&b"a"[..], b"{\"a\": 1}\n", &vec![b'x'; MOST]] {
            assert_eq!(gunzip(&gzip(text)).as_deref(), Some(text));
        }
    }

    #[test]
    fn whatever_is_not_one_undamaged_member_of_a_usual_size_is_given_back() {
        let one = gzip(b"the same text\n");
        let two = [&one[..], &one[..]].concat();
        let followed = [&one[..], b"garbage", &one[one.len() - 8..]].concat();
        let nothing = gzip(b"");
        let large = gzip(&vec![0; MOST + 1]);
        for body in [&two, &followed, &nothing, &large] {
            assert_eq!(gunzip(body), None);
        }
        for end in 0..one.len() {
            assert_eq!(gunzip(&one[..end]), None, "cut off at {end}");
        }
        // Within the text, and each byte of its digest and its length.
        for place in [12, 16].into_iter().chain(one.len() - 8..one.len()) {
            let mut damaged = one.clone();
            damaged[place] ^= 0x10;
            assert_eq!(gunzip(&damaged), None, "damaged at {place}");
        }
    }
}
