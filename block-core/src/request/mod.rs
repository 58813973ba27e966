//! The request layer, the same for every node. (In progress: the steps are being written.)

pub mod status;

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use futures::future::BoxFuture;

use crate::error::Result;

/// A request in flight: a future of its result. Does nothing until polled.
///
/// Once polled, the request runs to completion: dropping this detaches it.
#[must_use = "a request does nothing until it is polled"]
pub struct Request {
    inner: BoxFuture<'static, Result<()>>,
}

impl Request {
    pub(crate) fn boxed(inner: impl Future<Output = Result<()>> + Send + 'static) -> Self {
        Self {
            inner: Box::pin(inner),
        }
    }
}

impl Future for Request {
    type Output = Result<()>;
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        self.inner.as_mut().poll(cx)
    }
}
