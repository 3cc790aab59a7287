//! The door as a JSON-RPC service: whatever jsonrpsee makes of a request's body, it comes out here, and goes to [`Door::enter`].

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use common::outcome::{ErrorCode, Failure};
use jsonrpsee::core::middleware::{Batch, Notification, Request, RpcServiceT};
use jsonrpsee::core::server::{MethodResponse, ResponsePayload};
use jsonrpsee::types::error::OVERSIZED_RESPONSE_CODE;
use jsonrpsee::types::{ErrorObjectOwned, Id};

use super::{Door, Knock, Reply};
use crate::server::Caller;

/// The door for one request of one caller.
#[derive(Debug, Clone)]
pub(crate) struct DoorService {
    door: Arc<Door>,
    caller: Arc<Caller>,
    has_entered: Arc<AtomicBool>,
}

impl DoorService {
    pub(crate) fn new(door: Arc<Door>, caller: Arc<Caller>) -> Self {
        Self { door, caller, has_entered: Arc::new(AtomicBool::new(false)) }
    }

    /// To be called when the request has been answered: what never came as far as the door, because it was no JSON-RPC, is audited too.
    /// `knock` is what that was.
    pub(crate) async fn close(self, knock: Knock<'_>) {
        if !self.has_entered.load(Ordering::Relaxed) {
            let _refusal = self.door.enter(&self.caller, knock).await;
        }
    }

    fn enter(&self) -> (Arc<Door>, Arc<Caller>) {
        self.has_entered.store(true, Ordering::Relaxed);
        (Arc::clone(&self.door), Arc::clone(&self.caller))
    }
}

impl RpcServiceT for DoorService {
    type MethodResponse = MethodResponse;
    type NotificationResponse = MethodResponse;
    type BatchResponse = MethodResponse;

    fn call<'a>(&self, request: Request<'a>) -> impl Future<Output = MethodResponse> + Send + 'a {
        let (door, caller) = self.enter();
        async move {
            let knock = match &request.id {
                Id::Null => Knock::WithoutId { method: &request.method },
                Id::Number(_) | Id::Str(_) => {
                    Knock::Call { method: &request.method, params: request.params.as_ref().map_or("null", |params| params.get()) }
                }
            };
            let answer = door.enter(&caller, knock).await;
            response(&door, request.id, answer)
        }
    }

    fn batch<'a>(&self, _: Batch<'a>) -> impl Future<Output = MethodResponse> + Send + 'a {
        let (door, caller) = self.enter();
        async move {
            let answer = door.enter(&caller, Knock::Batch).await;
            response(&door, Id::Null, answer)
        }
    }

    fn notification<'a>(&self, notification: Notification<'a>) -> impl Future<Output = MethodResponse> + Send + 'a {
        let (door, caller) = self.enter();
        async move {
            let answer = door.enter(&caller, Knock::WithoutId { method: &notification.method }).await;
            response(&door, Id::Null, answer)
        }
    }
}

fn response(door: &Door, id: Id<'_>, answer: Result<Reply, Failure>) -> MethodResponse {
    let max_bytes = door.reply_max_bytes();
    let failure = match answer {
        Ok(reply) => {
            let response = MethodResponse::response(id.clone(), ResponsePayload::success(reply), max_bytes);
            if response.as_error_code() != Some(OVERSIZED_RESPONSE_CODE) {
                return response;
            }
            let message = format!("{}: the reply would be larger than limits.result_max_bytes allows; ask for less at once", door.name);
            Failure::new(ErrorCode::ResultTooLarge, message)
        }
        Err(failure) => failure,
    };
    MethodResponse::error(id, ErrorObjectOwned::owned(failure.code, failure.message, failure.data))
}
