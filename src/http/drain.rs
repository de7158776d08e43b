//! Bodies of requests: given up when nothing arrives any more, and read to their end when they are refused, so that the
//! client gets to read the refusal.
//!
//! A server that answers early and closes the connection while the client is still sending makes the client's system
//! throw the answer away (TCP reset); the client then reports a broken pipe instead of the reason.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody};
use axum::extract::{Request, State};
use axum::http::header::EXPECT;
use axum::middleware::Next;
use axum::response::Response;
use http_body_util::BodyExt;
use tokio::time::Sleep;

use crate::error::Error;

/// Bytes that are read and thrown away at most.
const MAX_BYTES: usize = 64 * 1024 * 1024;

/// How long this may take at most.
const MAX_TIME: Duration = Duration::from_secs(15);

/// Passes a request on, whose body fails once nothing has arrived for `idle`. Reads the rest of the body when it was refused
/// before its end.
pub async fn leftover(State(idle): State<Duration>, request: Request, next: Next) -> Response {
    let slot = Slot::default();
    let waits = request.headers().get(EXPECT).is_some_and(|what| what.as_bytes().eq_ignore_ascii_case(b"100-continue"));
    let lent = |body| Body::new(Lent { body: Some(body), slot: slot.clone(), idle, silence: None, waits });
    let request = request.map(lent);
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

/// A body that comes back when it is dropped, unless nothing arrived any more, or nothing was asked for.
struct Lent {
    body: Option<Body>,
    slot: Slot,
    idle: Duration,
    /// Ends when nothing has arrived for too long.
    silence: Option<Pin<Box<Sleep>>>,
    /// Whether the client waits to be told to send it (RFC 9110, section 10.1.1), as reading from it does.
    waits: bool,
}

impl Drop for Lent {
    fn drop(&mut self) {
        if !self.waits {
            *self.slot.lock().unwrap_or_else(PoisonError::into_inner) = self.body.take();
        }
    }
}

impl HttpBody for Lent {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, Error>>> {
        let lent = &mut *self;
        lent.waits = false;
        let Some(body) = &mut lent.body else { return Poll::Ready(None) };
        if let Poll::Ready(frame) = Pin::new(body).poll_frame(context) {
            lent.silence = None;
            return Poll::Ready(frame.map(|frame| frame.map_err(|_| Error::Disconnected)));
        }
        let silence = lent.silence.get_or_insert_with(|| Box::pin(tokio::time::sleep(lent.idle)));
        ready!(silence.as_mut().poll(context));
        lent.body = None;
        Poll::Ready(Some(Err(Error::Idle(lent.idle))))
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(HttpBody::is_end_stream)
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.body.as_ref().map_or_else(Default::default, HttpBody::size_hint)
    }
}
