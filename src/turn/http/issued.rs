//! Records the owner of the ids that an answer makes known, before its client can read them.

use std::sync::Arc;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::sync::Mutex;

use crate::binding::ownership::Owner;
use crate::client::ClientId;
use crate::store::Budget;
use crate::turn::Gateway;
use crate::turn::http::id_gate::Issued;

/// Records `owner` for all ids of one answer, within its turn's budget.
pub fn writer(
    gateway: &Arc<Gateway>,
    client: &ClientId,
    owner: Owner,
    budget: Budget,
) -> impl FnMut(Issued) -> BoxFuture<'static, ()> + Send + 'static {
    let (gateway, client) = (Arc::clone(gateway), client.clone());
    // A gate asks for one write at a time.
    let budget = Arc::new(Mutex::new(budget));
    move |Issued { response, items }| {
        let (gateway, client, owner) = (Arc::clone(&gateway), client.clone(), owner.clone());
        let budget = Arc::clone(&budget);
        async move {
            let mut budget = budget.lock().await;
            if let Some(id) = response {
                gateway.entry.record_owner(&client, &id, owner.clone(), &mut budget).await;
            }
            gateway.entry.own_items(&client, &items, &owner, &mut budget).await;
        }
        .boxed()
    }
}
