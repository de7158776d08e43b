//! Leaves a server alone that does not answer: after some failures in a row it is asked once in a while, not once a row.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Failures in a row after which a server counts as away.
const FAILURES: u32 = 5;

/// Counts failures in a row.
#[derive(Debug)]
pub struct Breaker {
    pause: Duration,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    failures: u32,
    /// Nobody asks before that.
    until: Option<Instant>,
}

impl Breaker {
    /// A breaker that lets one request through each `pause` once the server is away.
    #[must_use]
    pub fn new(pause: Duration) -> Self {
        Self { pause, state: Mutex::default() }
    }

    /// Lets a request pass, or says how long none will.
    ///
    /// # Errors
    /// The time to wait.
    pub fn pass(&self) -> Result<(), Duration> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        match state.until {
            Some(until) if now < until => Err(until - now),
            Some(_) => {
                // This one asks for all.
                state.until = Some(now + self.pause);
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// The server answered, whatever it said.
    pub fn answered(&self) {
        *self.state.lock().unwrap_or_else(PoisonError::into_inner) = State::default();
    }

    /// The server did not answer.
    pub fn failed(&self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.failures += 1;
        if state.failures >= FAILURES {
            state.until = Some(Instant::now() + self.pause);
        }
    }

    /// Whether the server counts as away.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).until.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_is_away_is_asked_once_a_pause_until_it_answers() {
        let breaker = Breaker::new(Duration::from_millis(30));
        for _ in 0..FAILURES {
            assert!(breaker.pass().is_ok());
            breaker.failed();
        }
        assert!(breaker.is_open() && breaker.pass().is_err());
        std::thread::sleep(Duration::from_millis(40));
        assert!(breaker.pass().is_ok(), "one may ask");
        assert!(breaker.pass().is_err(), "and only one");
        breaker.answered();
        assert!(!breaker.is_open() && breaker.pass().is_ok());
    }
}
