//! Records the owner of the ids that an answer makes known, before its client can read them.

use std::sync::Arc;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::sync::Mutex;

use crate::binding::ownership::Owner;
use crate::client::ClientId;
use crate::store::Budget;
use crate::turn::Gateway;
use crate::turn::http::heavy_places::HeavyPlaces;
use crate::turn::http::id_gate::Issued;
use crate::wire::items::listed;

/// Records `owner` for all ids of one answer, within its turn's budget. `heavy`: where the items of
/// a long document are read.
pub fn writer(
    (gateway, heavy): (&Arc<Gateway>, &Arc<HeavyPlaces>),
    client: &ClientId,
    owner: Owner,
    budget: Budget,
) -> impl FnMut(Issued) -> BoxFuture<'static, ()> + Send + 'static {
    let (gateway, heavy, client) = (Arc::clone(gateway), Arc::clone(heavy), client.clone());
    // A gate asks for one write at a time.
    let budget = Arc::new(Mutex::new(budget));
    move |Issued { response, mut items, document }| {
        let (gateway, client, owner) = (Arc::clone(&gateway), client.clone(), owner.clone());
        let (heavy, budget) = (Arc::clone(&heavy), Arc::clone(&budget));
        async move {
            if let Some(document) = document {
                let read = move || listed(document.as_ref()).unwrap_or_default();
                items = heavy.finish(&client, read).await.unwrap_or_else(|error| {
                    tracing::warn!(
                        cause = %error,
                        "the items of a stored response could not be read, so no turn can refer to them"
                    );
                    Vec::new()
                });
            }
            let mut budget = budget.lock().await;
            if let Some(id) = response {
                gateway.entry.record_owner(&client, &id, owner.clone(), &mut budget).await;
            }
            gateway.entry.own_items(&client, &items, &owner, &mut budget).await;
        }
        .boxed()
    }
}
