//! Buffers that are filled again and again. Memory that is given back to the system comes anew page by page, cleared: a tenth
//! of the time that an upload takes.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

/// Bytes that a buffer is made for.
pub const BUFFER: usize = 36 * 1024;

/// Buffers that are kept while nobody uses them: 9 MiB, about what is on its way to a busy database.
const KEPT: usize = 256;

/// Buffers that wait to be filled.
#[derive(Default)]
pub struct Buffers(Mutex<Vec<Vec<u8>>>);

impl Buffers {
    /// An empty buffer.
    pub fn take(&self) -> Vec<u8> {
        self.waiting().pop().unwrap_or_else(|| Vec::with_capacity(BUFFER))
    }

    /// The bytes of a buffer, which comes back when nobody holds them any more.
    pub fn lend(self: &Arc<Self>, buffer: Vec<u8>) -> Bytes {
        Bytes::from_owner(Lent { buffer, owner: Arc::clone(self) })
    }

    fn waiting(&self) -> MutexGuard<'_, Vec<Vec<u8>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Lent {
    buffer: Vec<u8>,
    owner: Arc<Buffers>,
}

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        &self.buffer
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        let mut buffer = std::mem::take(&mut self.buffer);
        let mut waiting = self.owner.waiting();
        // One that a long row made grow would hold its memory for ever.
        if buffer.capacity() == BUFFER && waiting.len() < KEPT {
            buffer.clear();
            waiting.push(buffer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_comes_back_empty_once_nobody_holds_its_bytes() {
        let buffers = Arc::new(Buffers::default());
        let mut buffer = buffers.take();
        let place = buffer.as_ptr();
        buffer.extend_from_slice(b"rows");
        let bytes = buffers.lend(buffer);
        let part = bytes.slice(1..);
        drop(bytes);
        assert_eq!((part.as_ref(), buffers.waiting().len()), (b"ows".as_slice(), 0));
        drop(part);
        let again = buffers.take();
        assert_eq!((again.as_ptr(), again.len()), (place, 0));
    }

    #[test]
    fn so_many_are_kept_and_none_that_has_grown() {
        let buffers = Arc::new(Buffers::default());
        drop(buffers.lend(vec![0; BUFFER + 1]));
        assert_eq!(buffers.waiting().len(), 0);
        let lent: Vec<Bytes> = (0..=KEPT).map(|_| buffers.lend(Vec::with_capacity(BUFFER))).collect();
        drop(lent);
        assert_eq!(buffers.waiting().len(), KEPT);
    }
}
