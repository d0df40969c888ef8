//! The configuration of a replica of a cluster.

use super::Cluster;

impl Cluster {
    /// The configuration of a replica.
    pub(super) fn configuration(&self, upstream: &str, store: Option<&str>) -> String {
        let server: String =
            self.server.iter().map(|(name, value)| format!("{name} = {value}\n")).collect();
        let keys: String = self
            .keys
            .iter()
            .map(|key| {
                format!(
                    "[[key]]\nid = {:?}\nupstream = \"openai\"\norganization = {:?}\nproject = {:?}\nregion = \"us\"\n\
                     weight = {}\nsecret = {:?}\n",
                    key.id,
                    key.organization,
                    key.project,
                    key.weight,
                    key.secret()
                )
            })
            .collect();
        format!(
            "[server]\n{server}[store]\nurl = {}\n{}[ledger]\n{}\n[binding]\n{}\n[telemetry]\n{}\n[[upstream]]\nname = \"openai\"\nbase_url = {upstream:?}\n{}\n\
             {keys}{}{}",
            store.unwrap_or("\"memory:\""),
            self.store,
            self.ledger,
            self.binding,
            self.telemetry,
            self.upstream_options,
            self.clients,
            self.prices
        )
    }
}
