//! The reception as a JSON-RPC service: whatever jsonrpsee makes of a request's body, it comes out here, and goes to
//! [`Reception::enter`].

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use common::outcome::Failure;
use http::HeaderMap;
use jsonrpsee::core::middleware::{Batch, Notification, Request, RpcServiceT};
use jsonrpsee::core::server::{MethodResponse, ResponsePayload};
use jsonrpsee::types::error::OVERSIZED_RESPONSE_CODE;
use jsonrpsee::types::{ErrorObjectOwned, Id};

use crate::{Knock, Reception};

/// The way to the reception for one request of one caller.
pub(super) struct Entrance<R: Reception> {
    reception: Arc<R>,
    caller: Arc<R::Caller>,
    has_entered: Arc<AtomicBool>,
}

impl<R: Reception> Clone for Entrance<R> {
    fn clone(&self) -> Self {
        Self { reception: Arc::clone(&self.reception), caller: Arc::clone(&self.caller), has_entered: Arc::clone(&self.has_entered) }
    }
}

impl<R: Reception> Entrance<R> {
    pub(super) fn new(reception: Arc<R>, caller: Arc<R::Caller>) -> Self {
        Self { reception, caller, has_entered: Arc::new(AtomicBool::new(false)) }
    }

    /// To be called when the request has been answered: what never came as far as the reception, because it was no JSON-RPC, enters too.
    /// `knock` is what that was, `headers` are those of the answer.
    pub(super) async fn close(self, knock: Knock<'_>, headers: &mut HeaderMap) {
        if !self.has_entered.load(Ordering::Relaxed) {
            let _refusal = self.reception.enter(&self.caller, knock).await;
        }
        self.reception.mark(headers);
    }

    fn enter(&self) -> (Arc<R>, Arc<R::Caller>) {
        self.has_entered.store(true, Ordering::Relaxed);
        (Arc::clone(&self.reception), Arc::clone(&self.caller))
    }
}

impl<R: Reception> RpcServiceT for Entrance<R> {
    type MethodResponse = MethodResponse;
    type NotificationResponse = MethodResponse;
    type BatchResponse = MethodResponse;

    fn call<'a>(&self, request: Request<'a>) -> impl Future<Output = MethodResponse> + Send + 'a {
        let (reception, caller) = self.enter();
        async move {
            let knock = match &request.id {
                Id::Null => Knock::WithoutId { method: &request.method },
                Id::Number(_) | Id::Str(_) => {
                    Knock::Call { method: &request.method, params: request.params.as_ref().map_or("null", |params| params.get()) }
                }
            };
            let answer = reception.enter(&caller, knock).await;
            response(&*reception, request.id, answer)
        }
    }

    fn batch<'a>(&self, _: Batch<'a>) -> impl Future<Output = MethodResponse> + Send + 'a {
        let (reception, caller) = self.enter();
        async move {
            let answer = reception.enter(&caller, Knock::Batch).await;
            response(&*reception, Id::Null, answer)
        }
    }

    fn notification<'a>(&self, notification: Notification<'a>) -> impl Future<Output = MethodResponse> + Send + 'a {
        let (reception, caller) = self.enter();
        async move {
            let answer = reception.enter(&caller, Knock::WithoutId { method: &notification.method }).await;
            response(&*reception, Id::Null, answer)
        }
    }
}

fn response<R: Reception>(reception: &R, id: Id<'_>, answer: Result<R::Reply, Failure>) -> MethodResponse {
    let failure = match answer {
        Ok(reply) => {
            let response = MethodResponse::response(id.clone(), ResponsePayload::success(reply), reception.reply_max_bytes());
            if response.as_error_code() != Some(OVERSIZED_RESPONSE_CODE) {
                return response;
            }
            reception.reply_too_large()
        }
        Err(failure) => failure,
    };
    MethodResponse::error(id, ErrorObjectOwned::owned(failure.code, failure.message, failure.data))
}
