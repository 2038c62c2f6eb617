//! Frames to bytes on a connection: the bodies of responses.
//!
//! A watch's body yields what the watch yields, one piece per poll, and hyper writes it at once. Pieces are large and
//! shared: a DATA frame per event would cost HTTP/2 four times as much, a copy per watch would cost memory per reader.

use std::convert::Infallible;

use bytes::Bytes;
use futures::stream;
use http::header::{CACHE_CONTROL, CONTENT_TYPE};
use http::{HeaderValue, Response};
use http_body::Frame;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};

use crate::watch::Watch;

/// The body of every response.
pub type Body = UnsyncBoxBody<Bytes, Infallible>;

/// The media type of everything that is not a discovery document with parameters.
pub const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// A body that is all there.
pub fn whole(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).boxed_unsync()
}

/// The answer to a watch. Its headers go out at once; there is no `Content-Length`, which makes kube-aggregator flush each
/// piece as it comes.
pub fn watching(watch: Watch) -> Response<Body> {
    // Boxed, because each piece moves it in and out.
    let pieces = stream::unfold(Box::new(watch), |mut watch| async move {
        let piece = watch.next().await?;
        Some((Ok(Frame::data(piece)), watch))
    });
    let mut response = Response::new(StreamBody::new(pieces).boxed_unsync());
    response.headers_mut().insert(CONTENT_TYPE, JSON);
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
    response
}
