//! For the fuzz targets alone: a request's body, as the listener carries it to a reception, without the network before it.

use std::sync::Arc;

use bytes::Bytes;
use http::Request;
use http::header::CONTENT_TYPE;
use http_body_util::{BodyExt as _, Full};

use crate::listener::carry;
use crate::{Limits, Reception};

/// The HTTP status and the body with which a POST of `body` is answered.
pub async fn answer<R: Reception>(body: &[u8], reception: Arc<R>, caller: R::Caller, limits: &Limits) -> (u16, Bytes) {
    let mut request = Request::new(Full::new(Bytes::copy_from_slice(body)));
    *request.method_mut() = http::Method::POST;
    request.headers_mut().insert(CONTENT_TYPE, http::HeaderValue::from_static("application/json"));
    let response = carry(request, reception, Arc::new(caller), limits, || ()).await;
    let status = response.status().as_u16();
    (status, response.into_body().collect().await.map(|body| body.to_bytes()).unwrap_or_default())
}
