//! Bytes of parts that are encoded before their turn. Rows may be long: their number alone bounds no memory.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::db::jobs::Lease;

/// How often whoever waits looks whether the work was stopped.
const LOOK_UP: Duration = Duration::from_millis(100);

/// What waits for its turn. The encoder of the range that is written never waits, so that one always goes on: each encoder's
/// ranges ascend.
pub struct Backlog {
    state: Mutex<State>,
    changed: Condvar,
    limit: usize,
}

#[derive(Default)]
struct State {
    /// The range that is being written.
    current: usize,
    /// Bytes of parts of later ranges.
    bytes: usize,
}

impl Backlog {
    /// One that takes so many bytes, or one part that has more.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self { state: Mutex::default(), changed: Condvar::new(), limit }
    }

    /// Waits until a part of a range may go to the writer: it is its turn, there is room, or the work was stopped. Answers
    /// with the bytes that it takes up, which the writer frees.
    pub fn enter(&self, range: usize, bytes: usize, lease: &Lease) -> usize {
        let mut state = self.state();
        while state.current != range && state.bytes > 0 && state.bytes + bytes > self.limit && !lease.is_cancelled() {
            state = self.changed.wait_timeout(state, LOOK_UP).unwrap_or_else(PoisonError::into_inner).0;
        }
        if state.current == range {
            return 0;
        }
        state.bytes += bytes;
        bytes
    }

    /// Frees what a part took up.
    pub fn leave(&self, bytes: usize) {
        self.state().bytes -= bytes;
        self.changed.notify_all();
    }

    /// Goes on with the next range.
    pub fn advance(&self) {
        self.state().current += 1;
        self.changed.notify_all();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::thread;

    use uuid::Uuid;

    use super::*;

    #[test]
    fn parts_of_later_ranges_wait_for_room_and_those_of_the_current_one_never() {
        let (backlog, lease) = (Arc::new(Backlog::new(100)), Lease::new(Uuid::nil(), 1));
        assert_eq!(backlog.enter(1, 400, &lease), 400, "one is let in, however large");
        assert_eq!(backlog.enter(0, 1_000, &lease), 0);
        let waiting = {
            let (backlog, lease) = (Arc::clone(&backlog), lease.clone());
            thread::spawn(move || backlog.enter(2, 50, &lease))
        };
        thread::sleep(LOOK_UP * 3);
        assert!(!waiting.is_finished());
        backlog.advance();
        backlog.leave(400);
        assert_eq!(waiting.join().expect("thread"), 50);
        assert_eq!(backlog.enter(2, 50, &lease), 50, "there is room");
        let stopped = {
            let (backlog, lease) = (Arc::clone(&backlog), lease.clone());
            thread::spawn(move || backlog.enter(2, 1, &lease))
        };
        thread::sleep(LOOK_UP * 3);
        assert!(!stopped.is_finished());
        lease.cancel();
        assert_eq!(stopped.join().expect("thread"), 1);
    }
}
