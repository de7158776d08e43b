//! What can go wrong with a request, on purpose.

use std::time::Duration;

use super::lists::Refusal;
use super::wire::Reply;
use super::{Seen, import};

/// What happens to one request.
#[derive(Debug, Clone, PartialEq)]
pub enum Fault {
    /// The connection breaks before the request is handled.
    Drop,
    /// The request is handled and committed, and the connection breaks without an answer.
    DropAfter,
    /// The request is handled and committed, and the connection breaks in the middle of the answer.
    Truncate,
    /// The request is handled so much later, and it is handled even if the client has gone away by then.
    DelayBefore(Duration),
    /// The request is handled at once, and answered so much later.
    Delay(Duration),
    /// 401: the key is not known.
    BadKey,
    /// 401: the CSRF token is refused.
    Csrf,
    /// 401: the server is starting.
    NotReady,
    /// The class of an error that may pass, such as a deadlock: 500, of an import 200.
    Error,
    /// The disk of the server is full: 500, of an import 200 without the exception's class.
    Full,
    /// The row is there by now, brought by a request that this one has waited for: of an import 200.
    Exists,
    /// 413 of a proxy: the request is not handled.
    TooLarge,
    /// 302 to the same place by https, as when the server is reached by http or under maintenance.
    Redirect,
    /// 503 as HTML, with `Retry-After` in seconds if some.
    Unavailable(Option<u32>),
}

impl Fault {
    /// The answer to a request of that action, of a fault that answers without handling it.
    pub(super) fn reply(&self, action: &str) -> Option<Reply> {
        Some(match self {
            Self::BadKey => Reply::bad_key(),
            Self::Csrf => Reply::bad_csrf(),
            Self::NotReady => Reply::failure(401, "server is not ready"),
            Self::Error => Reply::exception(
                if action == "query-import" { 200 } else { 500 },
                "org.springframework.dao.DeadlockLoserDataAccessException",
                "SqlExecutor.execute(); ERROR: deadlock detected",
            ),
            Self::Full if action == "query-import" => import::form("No space left on device"),
            Self::Full => Reply::exception(500, "java.io.IOException", "No space left on device"),
            Self::Exists => import::refused(Refusal::Database(
                "ERROR: duplicate key value violates unique constraint \"c1d2_gottcha2_results_pk\"".to_owned(),
            )),
            Self::TooLarge => Reply::html(413, "Request Entity Too Large"),
            Self::Redirect => {
                let mut reply = Reply::html(302, "");
                reply.location = Some("https://labkey.invalid/");
                reply
            }
            Self::Unavailable(seconds) => {
                let mut reply = Reply::html(503, "The server is shutting down");
                reply.retry_after = *seconds;
                reply
            }
            Self::Drop | Self::DropAfter | Self::Truncate | Self::DelayBefore(_) | Self::Delay(_) => return None,
        })
    }
}

type Choose = Box<dyn FnMut(&Seen) -> Option<Fault> + Send>;

/// The faults that wait for their requests.
#[derive(Default)]
pub(super) struct Faults {
    queue: Vec<(String, Fault)>,
    choose: Option<Choose>,
}

impl Faults {
    pub fn inject(&mut self, action: &str, fault: Fault) {
        self.queue.push((action.to_owned(), fault));
    }

    pub fn choose_with(&mut self, choose: impl FnMut(&Seen) -> Option<Fault> + Send + 'static) {
        self.choose = Some(Box::new(choose));
    }

    /// The fault of this request.
    pub fn next(&mut self, seen: &Seen) -> Option<Fault> {
        if let Some(place) = self.queue.iter().position(|(action, _)| *action == seen.action) {
            return Some(self.queue.remove(place).1);
        }
        self.choose.as_mut().and_then(|choose| choose(seen))
    }
}
