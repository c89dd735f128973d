//! Who asks. Every handler finds a [`Caller`] among the extensions of its request.

use axum::extract::Request;
use axum::middleware::Next;
use axum::response::Response;

use crate::request::Tenant;

/// Who asks, and what they may see.
#[derive(Clone, Debug)]
pub(super) struct Caller {
    tenant: Tenant,
    is_admin: bool,
}

impl Caller {
    /// Whoever asks where no keys are needed: one tenant, who may do everything.
    fn anybody() -> Self {
        Self { tenant: "".into(), is_admin: true }
    }

    /// Whose the requests are.
    pub(super) fn tenant(&self) -> &Tenant {
        &self.tenant
    }

    /// Whether requests of `tenant` are theirs to see and to cancel.
    #[allow(dead_code, reason = "for handlers that show requests")]
    pub(super) fn may_see(&self, tenant: &str) -> bool {
        self.is_admin || *self.tenant == *tenant
    }
}

/// Tells who asks before anything of a body is read.
pub(super) async fn identify(mut request: Request, next: Next) -> Response {
    request.extensions_mut().insert(Caller::anybody());
    next.run(request).await
}
