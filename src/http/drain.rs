//! Reads what is left of a refused body, so that the client gets to read the refusal.
//!
//! A server that answers early and closes the connection while the client is still sending makes the client's system
//! throw the answer away (TCP reset); the client then reports a broken pipe instead of the reason.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody};
use axum::extract::Request;
use axum::middleware::Next;
use axum::response::Response;
use http_body_util::BodyExt;

/// Bytes that are read and thrown away at most.
const MAX_BYTES: usize = 64 * 1024 * 1024;

/// How long this may take at most.
const MAX_TIME: Duration = Duration::from_secs(15);

/// Passes a request on, and reads the rest of its body when it was refused before its end.
pub async fn leftover(request: Request, next: Next) -> Response {
    let slot = Slot::default();
    let request = request.map(|body| Body::new(Lent { body: Some(body), slot: slot.clone() }));
    let response = next.run(request).await;
    let rest = slot.lock().unwrap_or_else(PoisonError::into_inner).take();
    let is_refused = response.status().is_client_error() || response.status().is_server_error();
    if let Some(rest) = rest.filter(|body| is_refused && !body.is_end_stream()) {
        // In time or not: the answer is given either way.
        drop(tokio::time::timeout(MAX_TIME, read(rest)).await);
    }
    response
}

async fn read(mut body: Body) {
    let mut bytes = 0;
    while let Some(Ok(frame)) = body.frame().await {
        bytes += frame.data_ref().map_or(0, Bytes::len);
        if bytes > MAX_BYTES {
            return;
        }
    }
}

/// Where a body goes when its reader is done with it.
type Slot = Arc<Mutex<Option<Body>>>;

/// A body that comes back when it is dropped.
struct Lent {
    body: Option<Body>,
    slot: Slot,
}

impl Drop for Lent {
    fn drop(&mut self) {
        *self.slot.lock().unwrap_or_else(PoisonError::into_inner) = self.body.take();
    }
}

impl HttpBody for Lent {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, axum::Error>>> {
        self.body.as_mut().map_or(Poll::Ready(None), |body| Pin::new(body).poll_frame(context))
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(HttpBody::is_end_stream)
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.body.as_ref().map_or_else(Default::default, HttpBody::size_hint)
    }
}
